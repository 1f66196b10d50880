"""A chain of boosters: kept, gone on with, scored, put back into models, packed."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from recording import (
    PLACES,
    Run,
    bert,
    gpt2,
    logits,
    same,
    same_record,
    synthetic,
    synthetic_header,
    total_update,
    weights_of,
    where,
)
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.ledger.archive import Archive
from torch_xgb.ledger.chain import Chain
from torch_xgb.ledger.opening import archive_for
from torch_xgb.ledger.writer import Writer

ROOT = Path(__file__).resolve().parents[2]
BF16 = torch.bfloat16
FORMS = [("lora", "none"), ("lora", "targets"), ("direft", "none")]


# What is kept


@PLACES
def test_a_chain_is_a_sequence_of_records(tmp_path: Path, place: str) -> None:
    run = Run(bert(), where(place, tmp_path), ranks=(2,))
    run.boost(3)
    chain = run.chain
    assert len(chain) == 3
    assert [record.booster_index for record in chain] == [0, 1, 2]
    assert same_record(chain[-1], chain[2])
    assert chain[1].layers == (run.layers[1].name,)
    assert (chain[1].rank, chain[1].steps) == (2, 8)
    assert list(chain[1].update_norm) == [target.name for target in run.layers[1].targets]
    for target, norm in chain[1].update_norm.items():
        left, right, scale = chain[1].updates[f"{target}.weight"]
        assert left.device.type == right.device.type == "cpu"
        assert norm == pytest.approx(float((scale * left @ right).norm()), rel=1e-5)
    head = {name: run.after[1][name] for name in run.chain.header.saved}
    assert same(dict(chain[1].saved), head)
    for t in (3, -4):
        with pytest.raises(IndexError, match="the ledger holds 3"):
            chain[t]
    with pytest.raises(TypeError, match="must be an integer"):
        chain["0"]  # type: ignore[index]


def test_a_record_shares_nothing_with_the_model(tmp_path: Path) -> None:
    run = Run(bert())
    run.boost()
    left, _, _ = next(iter(run.chain[0].updates.values()))
    before, head = left.clone(), {n: p.clone() for n, p in run.chain[0].saved.items()}
    run.boost(2)
    assert torch.equal(left, before)
    assert same(dict(run.chain[0].saved), head)


def test_a_folder_holds_a_file_per_booster_and_reads_as_memory_does(tmp_path: Path) -> None:
    run, memory = Run(bert(BF16), tmp_path / "run"), Run(bert(BF16))
    run.boost(3)
    memory.boost(3)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "base.safetensors",
        *[f"booster-{t:06d}.safetensors" for t in range(3)],
        "chain.json",
        "owner.lock",
    ]
    run.writer.close()
    assert not (tmp_path / "run" / "owner.lock").exists()
    loaded = Chain.load(tmp_path / "run")
    assert loaded.header == run.chain.header
    assert all(map(same_record, loaded, memory.chain))


def test_a_loaded_booster_reads_no_other(tmp_path: Path) -> None:
    run = Run(bert(), tmp_path / "run")
    run.boost(3)
    chain = Chain.load(tmp_path / "run")
    for other in ("base", "booster-000000", "booster-000002"):
        (tmp_path / "run" / f"{other}.safetensors").write_bytes(b"spoilt")
    assert same_record(chain[1], run.chain[1])


def test_load_explains_what_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ledger at .*chain.json"):
        Chain.load(tmp_path)
    with pytest.raises(ValueError, match="no ledger at"):
        Chain.load(tmp_path / "absent")
    run = Run(bert(), tmp_path / "run")
    run.boost(3)
    (tmp_path / "run" / "booster-000001.safetensors").unlink()
    with pytest.raises(ValueError, match="lost booster 1"):
        Chain.load(tmp_path / "run")
    header = tmp_path / "run" / "chain.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        Chain.load(tmp_path / "run")


@pytest.mark.parametrize("record", [False, 3, None])
def test_record_is_true_or_a_path(record: object) -> None:
    header, base = synthetic_header()
    with pytest.raises(TypeError, match="None, True or a path"):
        Writer(archive_for(record, header), base)  # type: ignore[arg-type]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    header, base = synthetic_header()
    with pytest.raises(ValueError, match="is a file"):
        Writer(archive_for(tmp_path / "file", header), base)
    assert (tmp_path / "file").read_text() == "mine"


def test_without_safetensors_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    header, base = synthetic_header()
    with pytest.raises(ImportError, match=r"torch-xgb\[ledger\]"):
        Writer(archive_for(tmp_path / "run", header), base)
    assert not (tmp_path / "run").exists()
    Writer(archive_for(True, header), base).check_next(0)


# Runs that end, and runs that go on


def test_a_fresh_run_on_an_old_folder_is_refused(tmp_path: Path) -> None:
    Run(bert(), tmp_path / "run").boost(2)
    again = Run(bert(), tmp_path / "run")
    with pytest.raises(RuntimeError, match="holds 2 boosters.*choose another path"):
        again.writer.check_next(0)
    with pytest.raises(RuntimeError, match="holds 2 boosters"):
        again.writer.append(synthetic(0))
    assert len(Chain.load(tmp_path / "run")) == 2


def test_a_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    Run(bert(), tmp_path / "run").boost(2)
    with pytest.raises(ValueError, match=r"differs in merge_precision, seed"):
        Run(bert(), tmp_path / "run", precision="nearest", seed=1)
    with pytest.raises(ValueError, match=r"differs in weights"):
        Run(gpt2(), tmp_path / "run")


@PLACES
def test_a_resumed_run_drops_the_boosters_after_its_checkpoint(tmp_path: Path, place: str) -> None:
    whole = Run(bert(BF16), ranks=(2,))
    whole.boost(5)
    run = Run(bert(BF16), where(place, tmp_path), ranks=(2,))
    run.boost(3)
    bookmark = run.bookmark
    checkpoint, residuals = (
        weights_of(run.model),
        {n: r.clone() for n, r in run.merger.residuals.items()},
    )
    run.boost(1)
    run.chain.score(1, 0.5)
    run.chain.score(3, 0.9)
    resumed = Run(bert(BF16), where(place, tmp_path), ranks=(2,))
    if place == "memory":
        resumed.writer = run.writer
    resumed.model.load_state_dict(checkpoint, strict=False)
    resumed.merger.residuals = residuals
    resumed.writer.resume(bookmark)
    assert (len(resumed.chain), dict(resumed.chain.scores)) == (3, {1: 0.5})
    resumed.boost(2)
    assert all(map(same_record, resumed.chain, whole.chain))
    assert same(weights_of(resumed.model), whole.after[4])
    for to in (4, 1, -1):
        assert same(weights_of(resumed.chain.rollback(resumed.model, to)), whole.after[to])


def test_a_ledger_that_lost_boosters_is_refused(tmp_path: Path) -> None:
    run = Run(bert(), tmp_path / "run")
    run.boost(2)
    for wrong in (3, -1):
        with pytest.raises(RuntimeError, match="the ledger holds 2"):
            run.writer.resume(replace(run.bookmark, booster_index=wrong))
    fresh = Run(bert(), tmp_path / "other")
    with pytest.raises(RuntimeError, match="resumed at booster 2 and the ledger holds 0"):
        fresh.writer.resume(run.bookmark)
    with pytest.raises(RuntimeError, match="at booster 2.*ends with its process"):
        fresh.writer.check_next(2)


def test_a_run_that_ended_in_its_first_booster_is_begun_anew_or_resumed(tmp_path: Path) -> None:
    first = Run(bert(), tmp_path / "run")
    first.writer.check_next(0)
    first.writer.close()
    other = Run(bert(seed=1), tmp_path / "run")  # a new run, with other weights
    other.boost(1)
    assert same(weights_of(other.chain.rollback(other.model, -1)), other.after[-1])

    first = Run(bert(), tmp_path / "second")
    first.writer.check_next(0)
    resumed = Run(bert(), tmp_path / "second")
    with torch.no_grad():  # trained since
        resumed.saved["classifier.bias"].add_(1)
    resumed.writer.resume(replace(first.bookmark, booster_step=1))
    resumed.boost(1)
    assert same(weights_of(resumed.chain.rollback(resumed.model, -1)), first.after[-1])


def test_a_ledger_of_another_run_is_not_cut_for_a_checkpoint(tmp_path: Path) -> None:
    run, other = Run(bert(), tmp_path / "run"), Run(bert(), tmp_path / "other")
    assert run.chain.run is None
    run.boost(1)
    bookmark = run.bookmark
    run.boost(1)
    other.boost(4)
    assert run.chain.run and run.chain.run == Chain.load(tmp_path / "run").run
    with pytest.raises(RuntimeError, match="not the one of the checkpoint"):
        other.writer.resume(run.bookmark)
    assert len(Chain.load(tmp_path / "other")) == 4
    with pytest.raises(RuntimeError, match="not the one of the checkpoint"):
        Run(bert(), tmp_path / "third").writer.resume(replace(run.bookmark, booster_index=0))
    again = Run(bert(), tmp_path / "run")
    again.writer.resume(bookmark)
    assert (len(again.chain), again.chain.run) == (1, run.chain.run)
    assert len(Chain.load(tmp_path / "run")) == 2  # until the next booster is written


def test_leftovers_of_ours_are_cleaned_by_the_next_run_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (run := Run(bert(), folder)).boost(2)
    bookmark = run.bookmark
    ours = [
        folder / f"booster-000002.safetensors.{16 * 'a'}.part",
        folder / f"scores.json.{16 * '0'}.part",
    ]
    others = ["mine.part", "model-00001.safetensors.part", "chain.json.part", ".tmpAbC123"]
    for file in [*ours, *(folder / name for name in others)]:
        file.write_bytes(b"half")
    assert len(Chain.load(folder)) == 2
    again = Run(bert(), folder)
    assert all(file.exists() for file in ours)
    run.writer.close()
    again.writer.resume(bookmark)
    again.boost(1)
    assert not any(file.exists() for file in ours)
    assert all((folder / name).read_bytes() == b"half" for name in others)


def test_a_failed_write_leaves_the_chain_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(bert(), tmp_path / "run")
    run.boost(2)
    files = sorted(file.name for file in (tmp_path / "run").iterdir())

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            run.boost(1)
    assert len(run.chain) == 2
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == files
    run.model.load_state_dict(run.after[1], strict=False)
    run.boost(1)
    assert len(Chain.load(tmp_path / "run")) == 3


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from recording import synthetic, synthetic_header
from torch_xgb.ledger.chain import Chain
from torch_xgb.ledger.opening import archive_for
from torch_xgb.ledger.resume import Bookmark
from torch_xgb.ledger.writer import Writer

folder, kills, dice = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
torch.set_num_threads(1)
header, base = synthetic_header()

def write(pipe):
    writer = Writer(archive_for(folder, header), base)
    chain = writer.chain
    if len(chain):
        here = chain._archive
        writer.resume(Bookmark(len(chain), 0, here.header.run, here.sections.tip(len(chain))))
    while True:
        writer.append(synthetic(len(chain)))
        chain.score(len(chain) - 1, float(len(chain)))
        os.write(pipe, b"x")

def check(held, written):
    if not (folder / "chain.json").exists():
        assert written == 0
        return 0
    chain = Chain.load(folder)
    assert len(chain) in (held + written, held + written + 1), (len(chain), held, written)
    for t in range(max(0, held - 5), len(chain)):
        mine, want = chain[t], synthetic(t)
        assert all(torch.equal(mine.tensors[key], want.tensors[key]) for key in want.tensors)
        assert mine.facts == want.facts
    assert all(chain.scores[t] == t + 1 for t in range(held, held + written))
    return len(chain)

held = midway = 0
for _ in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        write(writer)
    os.close(writer)
    written = sum(len(os.read(reader, 1)) for _ in range(dice.randint(0, 2)))
    time.sleep(dice.uniform(0, 0.02))  # an append takes a few milliseconds
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reader, 1 << 16):
        written += len(piece)
    os.close(reader)
    midway += any(folder.glob("*.part"))
    held = check(held, written)
print(held, midway)
"""


def test_a_killed_writer_leaves_every_complete_booster(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "run"), "50"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    held, midway = map(int, done.stdout.split())
    assert held > 25
    assert midway > 0, "no kill came while a file was being written"


# Scores


@PLACES
def test_scores_know_the_best_booster_and_when_to_stop(tmp_path: Path, place: str) -> None:
    run = Run(bert(), where(place, tmp_path))
    run.boost(7)
    chain = run.chain
    with pytest.raises(RuntimeError, match="no booster has a score"):
        chain.best  # noqa: B018
    assert not chain.should_stop(1)
    for t, value in enumerate([0.1, 0.5, 0.5, 0.2]):
        chain.score(t, value)
    assert chain.best == chain.best_iteration == 1
    assert [chain.should_stop(n) for n in (1, 2, 3)] == [True, True, False]
    chain.score(6, torch.tensor(0.9))  # type: ignore[arg-type]
    assert chain.best == 6
    assert not chain.should_stop(1)
    assert list(chain.scores) == [0, 1, 2, 3, 6]
    if place == "folder":
        again = Chain.load(tmp_path / "run")
        assert (again.best, dict(again.scores)) == (6, dict(chain.scores))


def test_wrong_scores_are_refused() -> None:
    run = Run(bert())
    run.boost(2)
    for t in (2, -1):
        with pytest.raises(ValueError, match="t must be from 0 to 1"):
            run.chain.score(t, 0.5)
    with pytest.raises(TypeError, match="t must be an integer"):
        run.chain.score(0.0, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        run.chain.score(0, float("nan"))
    for rounds, error in ((0, ValueError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match="early_stopping_rounds"):
            run.chain.should_stop(rounds)  # type: ignore[arg-type]


# Back into models


@pytest.mark.parametrize("precision", ["auto", "nearest", "stochastic", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("make", [bert, gpt2])
def test_rollback_is_bitwise_a_run_that_ended_there(
    tmp_path: Path, make: type[nn.Module], dtype: torch.dtype, precision: str
) -> None:
    run = Run(make(dtype), tmp_path / "run", precision, ranks=(1, 3, 2))
    run.boost(6)
    for to in (5, 2, 0, -1, 3):
        assert run.chain.rollback(run.model, to) is run.model
        assert same(weights_of(run.model), run.after[to])


@pytest.mark.parametrize(("adapter", "bias"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, BF16], ids=str)
def test_rollback_of_every_form(adapter: str, bias: str, dtype: torch.dtype) -> None:
    run = Run(bert(dtype), adapter=adapter, bias=bias, ranks=(2, 1))
    run.boost(5)
    biases = [name for name in run.after[0] if name.endswith("output.dense.bias")]
    moved = any(not torch.equal(run.after[-1][name], run.after[4][name]) for name in biases)
    assert moved == ((adapter, bias) != ("lora", "none"))
    for to in (3, 0, -1, 4):
        assert same(weights_of(run.chain.rollback(run.model, to)), run.after[to])


def test_rollback_of_wide_weights_is_bitwise() -> None:
    # Wide enough for the matrix libraries' blocked kernels, with a rank that uses a corner.
    model = nn.Sequential(
        *[nn.Sequential(nn.Linear(320, 700), nn.Linear(700, 320)) for _ in range(2)]
    )
    run = Run(model, ranks=(5, 8, 1))
    run.boost(4)
    for to in (2, 0, 3):
        assert same(weights_of(run.chain.rollback(run.model, to)), run.after[to])


def test_rollback_refuses_before_it_changes_anything() -> None:
    run = Run(bert())
    with pytest.raises(RuntimeError, match="nothing was trained"):
        run.chain.rollback(run.model, -1)
    run.boost(3)
    for to in (3, -2):
        with pytest.raises(ValueError, match="to must be from -1 to 2"):
            run.chain.rollback(run.model, to)
    with pytest.raises(TypeError, match="to must be an integer"):
        run.chain.rollback(run.model, True)
    strangers = {"is missing": gpt2(), "shape": bert(labels=5), "bfloat16": bert(BF16)}
    for message, stranger in strangers.items():
        before = weights_of(stranger)
        with pytest.raises(ValueError, match=f"another model.*{message}"):
            run.chain.rollback(stranger, 0)
        assert same(weights_of(stranger), before)


def test_an_attached_optimizer_is_finalized_first() -> None:
    run = Run(bert())
    run.boost(2)
    optimizer = BoostedLowRankOptimizer(AdamW, run.model, lr=1e-3)
    for call in (run.chain.apply, lambda model: run.chain.rollback(model, 0)):
        with pytest.raises(RuntimeError, match=r"call finalize\(\)"):
            call(run.model)
    run.chain.rollback(optimizer.finalize(), 0)
    assert same(weights_of(run.model), run.after[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BF16], ids=str)
@pytest.mark.parametrize("make", [bert, gpt2])
def test_apply_makes_the_trained_model_of_the_original(
    make: type[nn.Module], dtype: torch.dtype
) -> None:
    run = Run(make(dtype), ranks=(2,))
    run.boost(5)
    assert same(weights_of(run.chain.apply(make(dtype), exact=False)), run.after[4])
    assert same(weights_of(run.chain.apply(make(dtype), to=1, exact=False)), run.after[1])
    by_default, exact = run.chain.apply(make(dtype)), run.chain.apply(make(dtype), exact=True)
    wanted = exact if dtype == BF16 else run.model
    assert same(weights_of(by_default), weights_of(wanted))
    for name, facts in run.chain.header.weights.items():
        update = total_update(run, name)
        total = run.after[-1][name].double() + (update.T if facts.transposed else update)
        summed = weights_of(exact)[name]
        if dtype == torch.float64:
            assert torch.allclose(summed, total, rtol=1e-14, atol=1e-16)
        else:
            assert torch.equal(summed, total.to(dtype))


def test_apply_refuses_other_weights() -> None:
    run = Run(bert())
    run.boost(2)
    for model in (run.model, bert(seed=1)):
        before = weights_of(model)
        with pytest.raises(ValueError, match="not the ones the run began with"):
            run.chain.apply(model)
        assert same(weights_of(model), before)
    with pytest.raises(ValueError, match="to must be from -1 to 1"):
        run.chain.apply(bert(), to=2)


def test_a_new_head_is_no_other_model() -> None:
    run = Run(bert())
    run.boost(2)
    other = bert()
    nn.init.normal_(other.classifier.weight)  # drawn anew by every from_pretrained
    assert same(weights_of(run.chain.apply(other)), run.after[1])


def test_weights_tied_among_linear_maps_are_rolled_back_once() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
    model[2][0].weight = model[0][0].weight
    run = Run(model)
    run.boost(4)
    assert run.chain.header.weights["0.0.weight"].modules == ("0.0", "2.0")
    run.chain.rollback(model, 1)
    assert same(weights_of(model), run.after[1])
    assert model[2][0].weight is model[0][0].weight


def test_a_model_compiled_later_or_no_more_is_the_same_model() -> None:
    compiled, plain = bert(), bert()
    for i, layer in enumerate(compiled.bert.encoder.layer):
        compiled.bert.encoder.layer[i] = torch.compile(layer, backend="eager")
    run = Run(compiled)
    run.boost(2)
    assert any("_orig_mod" in name for name in run.chain.header.weights)
    run.chain.apply(plain)
    trained = {name.replace("_orig_mod.", ""): value for name, value in run.after[1].items()}
    assert same(weights_of(plain), trained)


@pytest.mark.parametrize(("adapter", "bias"), FORMS)
def test_delta_is_the_sum_of_the_updates(adapter: str, bias: str) -> None:
    run = Run(bert(), adapter=adapter, bias=bias, ranks=(1, 2))
    run.boost(5)
    for name in run.chain.header.weights:
        left, right = run.chain.delta(name)
        assert left.shape[1] == right.shape[0]
        assert torch.allclose(left @ right, total_update(run, name), rtol=1e-12, atol=1e-15)
    left, right = run.chain.delta(f"{run.layers[1].targets[0].name}.weight", to=0)
    assert (left.shape[1], len(right)) == (0, 0)
    with pytest.raises(ValueError, match="no weight 'classifier.weight' in the ledger"):
        run.chain.delta("classifier.weight")


# Into one file


@PLACES
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_a_packed_chain_is_the_chain(tmp_path: Path, place: str, dtype: torch.dtype) -> None:
    run = Run(bert(dtype), where(place, tmp_path), ranks=(1, 3))
    run.boost(4)
    run.chain.score(2, 0.5)
    file = tmp_path / "chain.safetensors"
    run.chain.save(file)
    packed = Chain.load(file)
    assert packed.header == run.chain.header
    assert all(map(same_record, packed, run.chain))
    assert (len(packed), packed.best) == (4, 2)
    for to in (3, 1, -1):
        assert same(weights_of(packed.rollback(run.model, to)), run.after[to])
    packed.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_a_packed_chain_cannot_grow(tmp_path: Path) -> None:
    run = Run(bert())
    with pytest.raises(RuntimeError, match="nothing was trained"):
        run.chain.save(tmp_path / "chain.safetensors")
    run.boost(2)
    run.chain.save(tmp_path / "chain.safetensors")
    packed = Chain.load(tmp_path / "chain.safetensors")
    growing = Writer(Archive.at(tmp_path / "chain.safetensors"), dict)
    growing.resume(run.bookmark)
    with pytest.raises(RuntimeError, match="cannot grow"):
        growing.append(run.chain[1].__class__(**{**vars(run.chain[1]), "booster_index": 2}))
    packed.score(1, 2.0)
    assert packed.best == 1


def test_a_file_of_something_else_is_no_chain(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not written by Chain.save"):
        Chain.load(tmp_path / "model.safetensors")


def test_a_packed_chain_is_readable_by_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = Run(bert(BF16), ranks=(1,))
    run.boost(1)
    run.chain.save(tmp_path / "chain.safetensors")
    tensors = load_file(tmp_path / "chain.safetensors")
    name = f"{run.layers[0].targets[0].name}.weight"
    assert torch.equal(tensors[f"booster-000000/left/{name}"], run.chain[0].updates[name][0])
    assert torch.equal(tensors[f"base/{name}"], run.after[-1][name])


def test_a_chain_travels_by_pickle(tmp_path: Path) -> None:
    run = Run(bert(), tmp_path / "run")
    again = pickle.loads(pickle.dumps(run.chain))
    assert len(again) == 0
    run.boost(2)
    again = pickle.loads(pickle.dumps(run.chain))
    assert same_record(again[1], run.chain[1])
    assert torch.equal(logits(again.apply(bert())), logits(run.model))
