"""A ledger's folder is one run's at a time, and a proved resume alone drops its boosters."""

import copy
import dataclasses
import gc
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from anatomy import flat
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.ledger import owner
from torch_xgb.ledger.chain import Chain
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.weights.fingerprints import EARLIER

ROOT = Path(__file__).resolve().parents[2]
Given = tuple[nn.Module, BoostedLowRankOptimizer]


def build(record: object, seed: int = 0, dtype: Any = torch.float32, **settings: Any) -> Given:
    torch.manual_seed(seed)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]).to(dtype)
    settings = {"kappa": 2, "layers_per_booster": 2, "lr": 1e-2, "record": record, **settings}
    return model, BoostedLowRankOptimizer(AdamW, model, **settings)


def train(model: nn.Module, optimizer: Any, steps: range, shift: float = 0.0) -> None:
    for i in steps:
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(i)) + shift
        model(x.to(model[0][0].weight)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def states(model: nn.Module, optimizer: Any) -> Any:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def resume(record: object, saved: Any) -> Given:
    model, optimizer = build(record)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    return model, optimizer


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "owner.lock"}


def recorded(folder: Path, steps: int) -> Any:
    """What a run saved after so many steps, and two boosters later it was finished."""
    model, optimizer = build(folder)
    train(model, optimizer, range(steps))
    saved = states(model, optimizer)
    train(model, optimizer, range(steps, steps + 4))
    optimizer.finalize()
    return saved


# What drops boosters, and what does not


def test_a_fresh_state_loaded_back_changes_nothing(tmp_path: Path) -> None:
    """Accelerate does so when it prepares an optimizer."""
    folder = tmp_path / "run"
    recorded(folder, 4)
    before = content(folder)
    model, optimizer = build(folder)
    for _ in range(2):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(RuntimeError, match="holds 4 boosters.*choose another path"):
        train(model, optimizer, range(1))
    assert content(folder) == before
    assert not (folder / "owner.lock").exists()


def test_a_script_started_again_goes_on_after_its_fresh_state_was_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    saved = recorded(folder, 5)
    whole, uninterrupted = build(None)
    train(whole, uninterrupted, range(12))
    model, optimizer = build(folder)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, range(5, 12))
    assert torch.equal(flat(optimizer.finalize()), flat(uninterrupted.finalize()))
    assert torch.equal(flat(Chain.load(folder).rollback(model, 5)), flat(whole))


@pytest.mark.parametrize("steps", [0, 3], ids=["before its first step", "later"])
def test_a_checkpoint_of_a_run_without_a_ledger_drops_nothing(tmp_path: Path, steps: int) -> None:
    folder = tmp_path / "run"
    recorded(folder, 4)
    before = content(folder)
    stranger, unrecorded = build(None)
    train(stranger, unrecorded, range(steps))
    model, optimizer = build(folder)
    model.load_state_dict(stranger.state_dict())
    with pytest.raises(RuntimeError, match="no ledger|holds 4 boosters"):
        optimizer.load_state_dict(unrecorded.state_dict())
        train(model, optimizer, range(2))
    assert content(folder) == before


def test_boosters_are_dropped_when_the_next_one_is_written(tmp_path: Path) -> None:
    """Until then a run that resumed may be killed, or resume from a later checkpoint."""
    folder = tmp_path / "run"
    early, late = recorded(folder, 2), recorded(tmp_path / "other", 2)
    assert len(Chain.load(folder)) == 3
    before = content(folder)
    model, optimizer = resume(folder, early)
    assert optimizer.chain is not None and len(optimizer.chain) == 1
    train(model, optimizer, range(2, 3))
    assert content(folder) == before
    later = states(model, optimizer)
    train(model, optimizer, range(3, 4))
    assert len(Chain.load(folder)) == 2
    resume(folder, early)
    resume(folder, later)
    with pytest.raises(RuntimeError, match="not the one of the checkpoint"):
        resume(folder, late)
    assert len(Chain.load(folder)) == 2


@pytest.mark.parametrize("record", ["folder", "memory"])
def test_a_checkpoint_of_another_branch_of_the_run_is_refused(tmp_path: Path, record: str) -> None:
    """Same run, same index, other weights: the ledger went on differently from a resume."""
    place: object = True if record == "memory" else tmp_path / "run"
    model, optimizer = build(place)
    train(model, optimizer, range(2))
    fork = states(model, optimizer)
    train(model, optimizer, range(2, 7))
    branch = states(model, optimizer)
    model.load_state_dict(fork[0])
    optimizer.load_state_dict(fork[1])
    train(model, optimizer, range(2, 8), shift=1.0)
    assert optimizer.chain is not None and len(optimizer.chain) == 4
    model.load_state_dict(branch[0])
    with pytest.raises(RuntimeError, match="went on differently"):
        optimizer.load_state_dict(branch[1])
    assert len(optimizer.chain) == 4


def test_a_ledger_of_an_earlier_version_goes_on_from_its_first_booster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its numbers of float64 weights are others than a checkpoint's of now."""
    with monkeypatch.context() as earlier:
        of = ChainHeader.of
        earlier.setattr(ChainHeader, "of", lambda *what: dataclasses.replace(of(*what), version=4))
        earlier.setattr("torch_xgb.ledger.writer.NUMBERING", EARLIER)
        model, optimizer = build(True, dtype=torch.float64)
        train(model, optimizer, range(1))
    saved = states(model, optimizer)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, range(1, 4))
    assert optimizer.chain is not None and len(optimizer.chain) == 2
    start = flat(optimizer.chain.rollback(optimizer.finalize(), -1))
    assert torch.equal(start, flat(build(None, dtype=torch.float64)[0]))


def test_a_run_may_start_over_from_its_own_first_state(tmp_path: Path) -> None:
    """A search for the rate saves the first states, tries, and loads them back."""
    model, optimizer = build(True)
    first = states(model, optimizer)
    train(model, optimizer, range(6))
    model.load_state_dict(first[0])
    optimizer.load_state_dict(first[1])
    train(model, optimizer, range(4))
    assert optimizer.chain is not None and len(optimizer.chain) == 2
    start = flat(optimizer.chain.rollback(optimizer.finalize(), -1))
    assert torch.equal(start, flat(build(None)[0]))


def test_the_first_step_after_a_resume_in_mid_booster_looks_at_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    saved = recorded(folder, 5)
    model, optimizer = resume(folder, saved)
    (folder / "booster-000004.safetensors").unlink()  # since it was resumed
    with pytest.raises(RuntimeError, match="taken away"):
        train(model, optimizer, range(5, 6))


# One at a time


def test_the_second_of_two_runs_is_refused_before_it_writes(tmp_path: Path) -> None:
    """Both were made before either began."""
    folder = tmp_path / "run"
    (a, first), (b, second) = build(folder), build(folder, seed=1)
    train(a, first, range(1))
    before = content(folder)
    with pytest.raises(RuntimeError, match="another optimizer of this process.*another path"):
        train(b, second, range(1))
    assert content(folder) == before
    train(a, first, range(1, 4))
    assert torch.equal(flat(Chain.load(folder).rollback(first.finalize(), 1)), flat(a))
    with pytest.raises(RuntimeError, match="holds 2 boosters"):
        train(b, second, range(1))
    assert not (folder / "owner.lock").exists()


def in_another_process(folder: Path, code: str) -> str:
    """Run a script that has ``model`` and ``optimizer``, with the record in the folder."""
    lines = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "support")!r}]
from tests.ledger.test_owner import *
model, optimizer = build(Path({str(folder)!r}))
try:
    {code}
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.returncode in (0, -9), done.stderr
    return done.stdout


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_another_process_is_refused_while_this_one_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    off = "owner._fcntl = None; " if not locks else ""
    if not locks:
        monkeypatch.setattr(owner, "_fcntl", None)
    folder = tmp_path / "run"
    model, optimizer = build(folder)
    train(model, optimizer, range(1))
    before = content(folder)
    said = in_another_process(folder, off + "train(model, optimizer, range(1))")
    assert f"goes on in process {os.getpid()} on" in said and "delete" in said
    assert content(folder) == before
    train(model, optimizer, range(1, 4))
    saved = states(model, optimizer)
    torch.save(saved, tmp_path / "saved.pt")
    optimizer.finalize()
    go_on = f"saved = torch.load({str(tmp_path / 'saved.pt')!r}, weights_only=True)"
    go_on += "; model.load_state_dict(saved[0]); optimizer.load_state_dict(saved[1])"
    go_on += "; train(model, optimizer, range(4, 7)); os.kill(os.getpid(), signal.SIGKILL)"
    assert in_another_process(folder, off + go_on) == ""
    assert (folder / "owner.lock").exists()  # of a process that is no more
    assert len(Chain.load(folder)) == 3
    model, optimizer = resume(folder, saved)
    train(model, optimizer, range(4, 6))
    assert len(Chain.load(folder)) == 3
    optimizer.finalize()
    assert not (folder / "owner.lock").exists()


def test_a_copied_folder_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied while its run goes on, with the name of its owner."""
    monkeypatch.setattr(owner, "_fcntl", None)
    monkeypatch.setattr(owner, "_runs", lambda pid: True)
    model, optimizer = build(tmp_path / "run")
    train(model, optimizer, range(5))
    saved = states(model, optimizer)
    (tmp_path / "copy").mkdir()
    for file in (tmp_path / "run").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    again, second = resume(tmp_path / "copy", saved)
    train(again, second, range(5, 8))
    train(model, optimizer, range(5, 8))
    assert torch.equal(flat(second.finalize()), flat(optimizer.finalize()))
    assert content(tmp_path / "copy") == content(tmp_path / "run")


def test_of_another_host_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_fcntl", None)
    folder = tmp_path / "run"
    model, optimizer = build(folder)
    (folder / "owner.lock").touch()
    inode = (folder / "owner.lock").stat().st_ino
    who = {"pid": 1, "host": "elsewhere", "inode": inode, "token": "x"}
    (folder / "owner.lock").write_text(json.dumps(who))
    with pytest.raises(RuntimeError, match="process 1 on elsewhere.*delete .*owner.lock"):
        train(model, optimizer, range(1))
    (folder / "owner.lock").unlink()
    train(model, optimizer, range(1))


def test_a_file_of_this_name_that_is_not_ours_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model, optimizer = build(folder)
    (folder / "owner.lock").write_text("somebody's")
    with pytest.raises(RuntimeError, match="was not written by torch_xgb"):
        train(model, optimizer, range(1))
    assert (folder / "owner.lock").read_text() == "somebody's"


def test_an_owner_whose_file_was_taken_writes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where locks are not kept over machines: what the file says is what counts."""
    monkeypatch.setattr(owner, "_fcntl", None)
    folder = tmp_path / "run"
    model, optimizer = build(folder)
    train(model, optimizer, range(3))
    before = content(folder)
    who = json.loads((folder / "owner.lock").read_text())
    (folder / "owner.lock").write_text(json.dumps(who | {"host": "elsewhere"}))
    with pytest.raises(RuntimeError, match="on elsewhere"):
        train(model, optimizer, range(3, 4))
    assert content(folder) == before


def test_an_optimizer_that_is_gone_owns_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model, optimizer = build(folder)
    train(model, optimizer, range(1))
    assert (folder / "owner.lock").exists()
    del model, optimizer
    model, optimizer = build(folder, seed=1)
    train(model, optimizer, range(3))
    assert len(Chain.load(folder)) == 1
    del model, optimizer
    gc.collect()
    assert not (folder / "owner.lock").exists()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_of_an_optimizer_and_its_copy_one_goes_on(tmp_path: Path, copied: Any) -> None:
    folder = tmp_path / "run"
    model, optimizer = build(folder)
    train(model, optimizer, range(2))
    twin = copied(optimizer)
    train(twin.model, twin, range(2, 4))
    with pytest.raises(RuntimeError, match="copy of this optimizer.*ledger of its own"):
        train(model, optimizer, range(2, 4))
    train(twin.model, twin, range(4, 6))
    assert torch.equal(flat(Chain.load(folder).rollback(twin.finalize(), 2)), flat(twin.model))


def test_a_copy_with_its_ledger_in_memory_has_one_of_its_own() -> None:
    model, optimizer = build(True)
    train(model, optimizer, range(3))
    twin = copy.deepcopy(optimizer)
    train(twin.model, twin, range(3, 8))
    train(model, optimizer, range(3, 5), shift=1.0)
    assert twin.chain is not None and optimizer.chain is not None
    assert (len(twin.chain), len(optimizer.chain)) == (4, 2)
    optimizer.finalize()
    assert torch.equal(flat(twin.chain.rollback(twin.finalize(), 3)), flat(twin.model))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_leaves_the_owner_alone(tmp_path: Path) -> None:
    """A loader's workers hold copies of everything, and end."""
    folder = tmp_path / "run"
    model, optimizer = build(folder)
    train(model, optimizer, range(3))
    child = os.fork()
    if not child:
        try:
            train(model, optimizer, range(3, 4))
        except RuntimeError:
            del model, optimizer
            gc.collect()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert (folder / "owner.lock").exists()
    claim = f"owner.Owner(Path({str(folder)!r})).claim('x')"
    assert "goes on in process" in in_another_process(folder, claim)
    train(model, optimizer, range(3, 6))
    assert len(Chain.load(folder)) == 3


@pytest.mark.parametrize("empty", ["", " ", "\t", "a\0b"])
def test_a_path_that_names_no_folder_is_refused(empty: str) -> None:
    with pytest.raises(ValueError, match="path of a folder"):
        build(empty)


def test_the_folder_is_where_it_was_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = build("run")
    train(model, optimizer, range(2))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(model, optimizer, range(2, 4))
    assert len(Chain.load(tmp_path / "run")) == 2


@pytest.mark.parametrize("name", ["chain.json", "base.safetensors", "scores.json"])
def test_files_of_others_are_not_overwritten(tmp_path: Path, name: str) -> None:
    """A model of that name, say, in the folder that was given."""
    from safetensors.torch import save

    theirs = {"base.safetensors": save({"a": torch.ones(2)}, {"format": "pt"})}
    (tmp_path / name).write_bytes(theirs.get(name, b'{"0": 1.0}'))
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f"{name}.*no part of a ledger"):
        build(tmp_path)
    assert content(tmp_path) == before


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link", "file/run"):
        with pytest.raises(ValueError, match="another path for record="):
            build(tmp_path / name)


def test_a_state_of_after_finalize_drops_nothing_and_goes_on(tmp_path: Path) -> None:
    model, optimizer = build(tmp_path / "run")
    start = copy.deepcopy(model.state_dict())
    train(model, optimizer, range(5))
    optimizer.finalize()
    before = content(tmp_path / "run")
    model, optimizer = resume(tmp_path / "run", states(model, optimizer))
    assert content(tmp_path / "run") == before and optimizer.booster_index == 3
    train(model, optimizer, range(5, 9))
    optimizer.finalize()
    again = build(None)[1].finalize()
    again.load_state_dict(start)
    chain = Chain.load(tmp_path / "run")
    assert len(chain) == 5
    assert torch.equal(flat(chain.apply(again)), flat(model))
