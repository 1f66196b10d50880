import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from recording import (
    Run,
    bert,
    gpt2,
    logits,
    same,
    synthetic,
    synthetic_header,
    total_update,
    weights_of,
)
from torch_xgb import BoostedLowRankOptimizer, MergeReport
from torch_xgb.ledger.archive import Archive
from torch_xgb.ledger.chain import Chain
from torch_xgb.ledger.records import BoosterRecord
from torch_xgb.ledger.resume import Bookmark
from torch_xgb.ledger.writer import Writer, writer
from torch_xgb.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BF16 = torch.bfloat16
PLACES = pytest.mark.parametrize("place", ["memory", "folder"])
FORMS = [("lora", "none"), ("lora", "targets"), ("direft", "none")]


def where(place: str, tmp_path: Path) -> bool | Path:
    return True if place == "memory" else tmp_path / "run"


def at(run: Run) -> Bookmark:
    """What a checkpoint taken now would say of the ledger."""
    return Bookmark(len(run.chain), 0, **run.writer.bookmark)


def same_record(a: BoosterRecord, b: BoosterRecord) -> bool:
    plain = ("booster_index", "layers", "steps", "rank", "update_norm")
    return (
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and a.updates.keys() == b.updates.keys()
        and all(
            torch.equal(a.updates[n][0], b.updates[n][0])
            and torch.equal(a.updates[n][1], b.updates[n][1])
            and a.updates[n][2] == b.updates[n][2]
            for n in a.updates
        )
        and same(dict(a.saved), dict(b.saved))
    )


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
        Writer.open(record, header, base)  # type: ignore[arg-type]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    header, base = synthetic_header()
    with pytest.raises(ValueError, match="is a file"):
        Writer.open(tmp_path / "file", header, base)
    assert (tmp_path / "file").read_text() == "mine"


def test_without_safetensors_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    header, base = synthetic_header()
    with pytest.raises(ImportError, match=r"torch-xgb\[ledger\]"):
        Writer.open(tmp_path / "run", header, base)
    assert not (tmp_path / "run").exists()
    Writer.open(True, header, base).check_next(0)


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
    bookmark = at(run)
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
            run.writer.resume(replace(at(run), booster_index=wrong))
    fresh = Run(bert(), tmp_path / "other")
    with pytest.raises(RuntimeError, match="resumed at booster 2 and the ledger holds 0"):
        fresh.writer.resume(at(run))
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
    resumed.writer.resume(replace(at(first), booster_step=1))
    resumed.boost(1)
    assert same(weights_of(resumed.chain.rollback(resumed.model, -1)), first.after[-1])


def test_a_ledger_of_another_run_is_not_cut_for_a_checkpoint(tmp_path: Path) -> None:
    run, other = Run(bert(), tmp_path / "run"), Run(bert(), tmp_path / "other")
    assert run.chain.run is None
    run.boost(1)
    bookmark = at(run)
    run.boost(1)
    other.boost(4)
    assert run.chain.run and run.chain.run == Chain.load(tmp_path / "run").run
    with pytest.raises(RuntimeError, match="not the one of the checkpoint"):
        other.writer.resume(at(run))
    assert len(Chain.load(tmp_path / "other")) == 4
    with pytest.raises(RuntimeError, match="not the one of the checkpoint"):
        Run(bert(), tmp_path / "third").writer.resume(replace(at(run), booster_index=0))
    again = Run(bert(), tmp_path / "run")
    again.writer.resume(bookmark)
    assert (len(again.chain), again.chain.run) == (1, run.chain.run)
    assert len(Chain.load(tmp_path / "run")) == 2  # until the next booster is written


def test_leftovers_of_ours_are_cleaned_by_the_next_run_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (run := Run(bert(), folder)).boost(2)
    bookmark = at(run)
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
from torch_xgb.ledger.resume import Bookmark
from torch_xgb.ledger.writer import Writer

folder, kills, dice = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
torch.set_num_threads(1)
header, base = synthetic_header()

def write(pipe):
    writer = Writer.open(folder, header, base)
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
    growing.resume(at(run))
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


# Kept by the optimizer


def boosted(
    model: nn.Module, record: bool | Path | None, **settings: Any
) -> BoostedLowRankOptimizer:
    settings = {"kappa": 3, "layers_per_booster": 1, "lr": 1e-2, **settings}
    return BoostedLowRankOptimizer(AdamW, model, record=record, **settings)


def train(model: nn.Module, optimizer: BoostedLowRankOptimizer, steps: range) -> None:
    """Take some steps of a run; the batch depends on the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(40, (4, 6), generator=generator)
        head = {"labels": ids[:, 0] % 3} if hasattr(model, "classifier") else {"labels": ids}
        model(input_ids=ids, **head).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "rank schedule": {"r": [4, 1, 2], "shrinkage": [1.0, 0.5]},
    "biases": {"bias": "targets", "r": 2, "lora_alpha": 8},
    "direft": {"adapter": "direft", "r": [2, 1]},
    "stochastic": {"merge_precision": "stochastic", "seed": 3},
    "nearest": {"merge_precision": "nearest", "r": 2},
    "residual": {"merge_precision": "residual", "layers_per_booster": None},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_rolled_back_run_is_bitwise_the_shorter_run(
    tmp_path: Path, make: type[nn.Module], dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    whole = make(dtype)
    optimizer = boosted(whole, tmp_path / "run", **settings)
    train(whole, optimizer, range(10))  # the last booster has a single step
    chain = optimizer.chain
    assert chain is not None
    assert optimizer.finalize() is whole
    assert [record.steps for record in chain] == [3, 3, 3, 1]
    final = weights_of(whole)
    for to in (0, 2, -1):
        shorter = make(dtype)
        stopped = boosted(shorter, None, **settings)
        train(shorter, stopped, range(3 * (to + 1)))
        stopped.finalize()
        assert same(weights_of(chain.rollback(whole, to)), weights_of(shorter))
    assert same(weights_of(Chain.load(tmp_path / "run").rollback(whole, 3)), final)
    assert same(weights_of(chain.apply(make(dtype), exact=False)), final)


def test_recording_changes_nothing(tmp_path: Path) -> None:
    models = []
    for record in (None, True, tmp_path / "run"):
        model = bert(BF16)
        optimizer = boosted(model, record)
        assert (optimizer.chain is None) == (record is None)
        train(model, optimizer, range(7))
        models.append(weights_of(optimizer.finalize()))
    assert same(models[0], models[1])
    assert same(models[0], models[2])


def test_a_record_says_what_the_report_says(tmp_path: Path) -> None:
    model, reports = bert(), []
    optimizer = boosted(model, True, r=2, layers_per_booster=2)
    optimizer.on_merge(reports.append)
    train(model, optimizer, range(7))
    optimizer.finalize()
    assert optimizer.chain is not None
    for record, report in zip(optimizer.chain, reports, strict=True):
        for name in ("booster_index", "layers", "steps", "rank", "update_norm"):
            assert getattr(record, name) == getattr(report, name)


def test_boosters_are_scored_as_they_are_merged(tmp_path: Path) -> None:
    model = bert()
    optimizer = boosted(model, tmp_path / "run", kappa=2, lr=0.1)
    chain = optimizer.chain
    assert chain is not None
    seen = {}

    def score(report: MergeReport) -> None:
        seen[report.booster_index] = logits(model)
        chain.score(report.booster_index, float(-((report.booster_index - 2) ** 2)))

    optimizer.on_merge(score)
    steps = iter(range(100))
    while not chain.should_stop(2):
        train(model, optimizer, range(step := next(steps), step + 1))
    assert (len(chain), chain.best) == (5, 2)
    optimizer.finalize()
    for t, wanted in seen.items():
        assert torch.allclose(logits(chain.rollback(model, t)), wanted, atol=1e-6)


@pytest.mark.parametrize("stop", [1, 6, 8], ids=lambda step: f"step{step}")
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_a_resumed_run_has_the_chain_of_one_that_was_not_interrupted(
    tmp_path: Path, dtype: torch.dtype, stop: int
) -> None:
    whole = bert(dtype)
    uninterrupted = boosted(whole, True)
    train(whole, uninterrupted, range(11))
    first = bert(dtype)
    optimizer = boosted(first, tmp_path / "run")
    train(first, optimizer, range(stop))
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "checkpoint.pt")
    train(first, optimizer, range(stop, stop + 5))  # and killed

    second = bert(dtype)
    resumed = boosted(second, tmp_path / "run")
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    train(second, resumed, range(stop, 11))
    uninterrupted.finalize()
    resumed.finalize()
    assert uninterrupted.chain is not None and resumed.chain is not None
    assert same(weights_of(second), weights_of(whole))
    assert all(map(same_record, resumed.chain, uninterrupted.chain))
    for to in (3, 1, -1):
        rolled = uninterrupted.chain.rollback(whole, to)
        assert same(weights_of(resumed.chain.rollback(second, to)), weights_of(rolled))


def test_a_second_run_on_the_same_folder_stops_at_its_first_step(tmp_path: Path) -> None:
    model = bert()
    train(model, optimizer := boosted(model, tmp_path / "run"), range(4))
    optimizer.finalize()
    again = bert()
    second = boosted(again, tmp_path / "run")
    before = weights_of(again)
    with pytest.raises(RuntimeError, match="holds 2 boosters.*earlier run"):
        train(again, second, range(1))
    assert same(weights_of(again), before)
    with pytest.raises(ValueError, match="another configuration"):
        boosted(bert(), tmp_path / "run", seed=1)


def test_a_run_cannot_be_resumed_without_its_ledger(tmp_path: Path) -> None:
    model = bert()
    train(model, optimizer := boosted(model, tmp_path / "run"), range(4))
    states = model.state_dict(), optimizer.state_dict()
    for record in (True, tmp_path / "other"):
        again = bert()
        resumed = boosted(again, record)
        again.load_state_dict(states[0])
        with pytest.raises(RuntimeError, match="resumed at booster 1 and the ledger holds 0"):
            resumed.load_state_dict(states[1])
        assert resumed.booster_index == 0
        assert not resumed.base.state_dict()["state"]


def test_a_full_disk_leaves_the_booster_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = bert(), bert()
    train(model, optimizer := boosted(model, tmp_path / "run"), range(2))
    train(other, unharmed := boosted(other, None), range(3))

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            train(model, optimizer, range(2, 3))
    assert optimizer.booster_index == 0
    assert torch.allclose(logits(model), logits(other), atol=1e-6)
    optimizer.merge()
    assert same(weights_of(optimizer.finalize()), weights_of(unharmed.finalize()))


@pytest.mark.parametrize("step", [0, 2], ids=["first step", "merge"])
def test_what_the_system_refuses_is_said_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    model = bert()
    train(model, optimizer := boosted(model, tmp_path / "run"), range(step))
    before = weights_of(model)

    def read_only(*args: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", read_only)
        with pytest.raises(OSError, match="Read-only.*run'.*(nothing was trained|pending).*merge"):
            train(model, optimizer, range(step, step + 1))
    if not step:
        assert same(weights_of(model), before)
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_folder_deleted_in_mid_run_is_not_begun_anew(tmp_path: Path) -> None:
    model = bert()
    train(model, optimizer := boosted(model, tmp_path / "run"), range(5))
    (tmp_path / "run").rename(tmp_path / "aside")
    weights = {n: p for n, p in weights_of(model).items() if "boosters" not in n}
    for _ in range(2):
        with pytest.raises(OSError, match="booster 1 is not lost.*put it back.*record= there"):
            optimizer.merge()
    assert optimizer.booster_index == 1
    now = weights_of(model)
    assert all(torch.equal(now[name], weight) for name, weight in weights.items())
    assert not (tmp_path / "run").exists()
    (tmp_path / "aside").rename(tmp_path / "run")
    optimizer.merge()
    assert len(Chain.load(tmp_path / "run")) == 2


def test_a_booster_that_takes_the_place_of_a_later_one_is_written_before_that_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run := Run(bert(), tmp_path / "run")).boost(1)
    bookmark = at(run)
    run.boost(3)
    run.writer.close()
    again = Run(bert(), tmp_path / "run")
    again.writer.resume(bookmark)

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            again.boost(1)
    assert len(Chain.load(tmp_path / "run")) == 4
    again.boost(1)
    assert len(Chain.load(tmp_path / "run")) == 2


def test_a_booster_that_was_written_and_not_counted_is_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt may come between any two instructions."""
    (run := Run(bert(), tmp_path / "run")).boost(1)
    record = replace(run.chain[0], booster_index=1)
    store = run.writer._archive.store
    write = store.write

    def interrupted(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.writer.append(record)
    for _ in range(2):
        run.writer.append(record)
    assert len(run.chain) == len(Chain.load(tmp_path / "run")) == 2
    with pytest.raises(RuntimeError, match="holds 2 boosters"):
        run.writer.append(replace(record, steps=9))
    with monkeypatch.context() as patched:
        patched.setattr(store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.writer.append(replace(record, booster_index=2))
    run.writer.append(replace(record, booster_index=2, steps=9))  # trained on before it is merged
    assert Chain.load(tmp_path / "run")[2].steps == 9


def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole = bert()
    train(whole, uninterrupted := boosted(whole, None, kappa=1), range(12))
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "support")!r}]
import os, signal, torch
from tests.ledger.test_ledger import *
model = bert(); optimizer = boosted(model, Path({str(tmp_path / "run")!r}), kappa=1)
train(model, optimizer, range(5))
torch.save([model.state_dict(), optimizer.state_dict()], {str(tmp_path / "checkpoint.pt")!r})
train(model, optimizer, range(5, 9))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert killed.returncode == -9, killed.stderr
    assert len(Chain.load(tmp_path / "run")) == 9
    model = bert()
    optimizer = boosted(model, tmp_path / "run", kappa=1)
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    assert optimizer.chain is not None and len(optimizer.chain) == 5
    train(model, optimizer, range(5, 12))
    optimizer.finalize()
    assert len(optimizer.chain) == 12
    assert same(weights_of(model), weights_of(uninterrupted.finalize()))


@PLACES
def test_an_optimizer_with_a_ledger_travels_by_pickle(tmp_path: Path, place: str) -> None:
    model = bert()
    optimizer = boosted(model, where(place, tmp_path))
    train(model, optimizer, range(4))
    again = pickle.loads(pickle.dumps(optimizer))
    train(again.model, again, range(4, 7))
    again.finalize()
    assert [record.booster_index for record in again.chain] == [0, 1, 2]
    assert same(weights_of(again.chain.rollback(again.model, 2)), weights_of(again.model))


def test_two_writers_do_not_overwrite_each_other(tmp_path: Path) -> None:
    run = Run(bert(), tmp_path / "run")
    run.boost(1)
    copy = pickle.loads(pickle.dumps(run.writer))
    run.boost(1)
    with pytest.raises(RuntimeError, match="written by another process, by a copy"):
        copy.append(BoosterRecord.of(MergeReport(1, (), 1, 1, {}, {}), [], {}))
    assert same_record(Chain.load(tmp_path / "run")[1], run.chain[1])


@pytest.mark.parametrize("where_from", ["checkpoint", "nothing"])
def test_the_originals_are_those_of_the_first_step(tmp_path: Path, where_from: str) -> None:
    model, start = bert(), bert(seed=7)
    optimizer = boosted(model, tmp_path / "run")
    if where_from == "checkpoint":  # of something else, loaded after the optimizer was made
        model.load_state_dict(start.state_dict())
    before = {n: p for n, p in weights_of(model).items() if "boosters" not in n}
    train(model, optimizer, range(4))
    assert optimizer.chain is not None
    assert same(weights_of(optimizer.chain.rollback(optimizer.finalize(), -1)), before)


def test_of_several_processes_the_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("torch_xgb.boosting.handle.agree", lambda *_: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert boosted(bert(), tmp_path / "run").chain is None
    assert boosted(bert(), True).chain is not None
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert boosted(bert(), tmp_path / "run").chain is not None


def test_sharded_weights_are_refused(tmp_path: Path) -> None:
    run = Run(bert())
    weight = run.layers[0].targets[0].modules[0].weight
    weight.data = torch.empty(0)  # what ZeRO-3 leaves of a weight
    with pytest.raises(ValueError, match="sharded over processes"):
        writer(run.model, Settings(record=tmp_path / "run"), run.selection, run.form)
    assert writer(run.model, Settings(), run.selection, run.form) is None
    assert not (tmp_path / "run").exists()


@PLACES
def test_a_state_that_cannot_be_loaded_costs_no_boosters(tmp_path: Path, place: str) -> None:
    """The base refuses groups that the optimizer does not have; the ledger is as it was."""
    model = bert()
    optimizer = boosted(model, where(place, tmp_path))
    train(model, optimizer, range(3))
    state, weights = optimizer.state_dict(), copy.deepcopy(model.state_dict())
    train(model, optimizer, range(3, 9))
    chain = optimizer.chain
    assert chain is not None
    before = list(chain)
    model.load_state_dict(weights)
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict(state | {"param_groups": 2 * state["param_groups"]})
    assert len(chain) == 3 and all(map(same_record, chain, before))
    optimizer.load_state_dict(state)
    assert len(chain) == 1
