"""Ledgers that the optimizer keeps: of whole runs, resumed, interrupted, and refused."""

import copy
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

from recording import PLACES, Run, bert, gpt2, logits, same, same_record, weights_of, where
from torch_xgb import BoostedLowRankOptimizer, MergeReport
from torch_xgb.ledger.chain import Chain
from torch_xgb.ledger.opening import writer
from torch_xgb.ledger.records import BoosterRecord
from torch_xgb.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BF16 = torch.bfloat16


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
    bookmark = run.bookmark
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
from tests.ledger.test_recorded import *
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
