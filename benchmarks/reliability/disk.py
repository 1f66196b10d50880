"""A ledger's folder that is full, read-only, deleted or another's.

It is said clearly, nothing complete is lost, and when the cause is gone the run goes on to the
weights of one that was let be.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks.reliability.apart import apart
from benchmarks.reliability.counts import Counts, Fault
from benchmarks.reliability.subjects import Kind, boosted, digest, model_of, step
from torch_xgb import Chain

__all__ = ["run"]

KIND = Kind("stack", "head")
_NOBODY = 65534


@contextmanager
def full(run: Path, room: int) -> Iterator[None]:
    """Let no file grow over so many bytes: what a full disk does to who writes."""
    import resource

    no_end = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, no_end))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (no_end, no_end))


@contextmanager
def read_only(run: Path) -> Iterator[None]:
    """Take away the right to write, from root too."""
    root = os.geteuid() == 0
    run.parent.chmod(0o755)
    run.chmod(0o555)
    if root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        run.chmod(0o755)


@contextmanager
def deleted(run: Path, back: bool) -> Iterator[None]:
    """Delete the folder; bring it back from a copy, or only its place."""
    shutil.copytree(run, run.parent / "copy")
    shutil.rmtree(run)
    yield
    if back:
        (run.parent / "copy").rename(run)


@contextmanager
def in_the_way(run: Path) -> Iterator[None]:
    """Put a folder where the next booster's file belongs."""
    place = run / "booster-000002.safetensors"
    place.mkdir()
    yield
    place.rmdir()


CAUSES: dict[str, Callable[[Path], object]] = {
    "full": partial(full, room=0),
    "full after 100 bytes": partial(full, room=100),
    "full after 700 bytes": partial(full, room=700),
    "read-only": read_only,
    "deleted, and back": partial(deleted, back=True),
    "a folder in the way": in_the_way,
}


def run(quick: bool, seed: int) -> Counts:
    """Try every cause at a merge by ``step()``, ``merge()`` and ``finalize()``, and two writers."""
    warnings.simplefilter("ignore")
    boosted(model_of(KIND), KIND, record=True).finalize()  # what is loaded only now is readable
    counts = Counts()
    for name, cause in CAUSES.items():
        for call in ("step",) if quick else ("step", "merge", "finalize"):
            with counts.fault(f"{name}, {call}()") as fault:
                said = apart(partial(_disturbed, cause, call))
                fault.refused, fault.lost, fault.wrong = said.refused, said.lost, said.wrong
    for name, try_it in (("another optimizer", _second), ("another process", _second_process)):
        with counts.fault(f"two writers: {name}") as fault:
            said = apart(partial(_shared, try_it))
            fault.refused, fault.lost, fault.wrong = said.refused, said.lost, said.wrong
    return counts


def _disturbed(cause: Callable[[Path], object], call: str) -> Fault:
    fault, folder = Fault(call), Path(tempfile.mkdtemp())
    model = model_of(KIND)
    optimizer = boosted(model, KIND, record=folder / "run")
    twin_model = model_of(KIND)
    twin = boosted(twin_model, KIND)
    for ours, theirs in ((model, optimizer), (twin_model, twin)):
        for number in range(8):
            step(ours, theirs, number)
    before = digest(model.state_dict())
    complete = _boosters(folder / "run")
    with cause(folder / "run"):  # type: ignore[attr-defined]
        try:
            step(model, optimizer, 8) if call == "step" else getattr(optimizer, call)()
            fault.wrong = "nothing was said"
        except Exception as error:
            fault.raised(error)
    if call != "step" and digest(model.state_dict()) != before:
        fault.wrong = "the model changed"
    if any((folder / "run" / name).read_bytes() != data for name, data in complete.items()):
        fault.lost = "a complete booster is not what it was"
    # As the words say: put it right, and merge again.
    optimizer.finalize() if call == "finalize" else optimizer.merge()
    step(twin_model, twin, 8) if call == "step" else getattr(twin, call)()
    if call != "finalize":
        for ours, theirs in ((model, optimizer), (twin_model, twin)):
            for number in range(9, 14):
                step(ours, theirs, number)
            theirs.finalize()
    _compare(fault, model, twin_model, folder / "run")
    shutil.rmtree(folder, ignore_errors=True)
    return fault


def _compare(fault: Fault, model: torch.nn.Module, twin: torch.nn.Module, run: Path) -> None:
    if digest(model.state_dict()) != digest(twin.state_dict()):
        fault.wrong = "the run went on to other weights"
    applied = Chain.load(run).apply(model_of(KIND)).state_dict()
    mine = {name: value for name, value in model.state_dict().items() if "blocks" in name}
    if digest(mine) != digest({name: applied[name] for name in mine}):
        fault.lost = "the ledger does not make the trained model"


def _shared(try_it: Callable[[Path], Fault]) -> Fault:
    """Have a second run write to the folder of one that lives."""
    folder = Path(tempfile.mkdtemp())
    model, twin_model = model_of(KIND), model_of(KIND)
    optimizer, twin = boosted(model, KIND, record=folder / "run"), boosted(twin_model, KIND)
    fault = Fault("two writers")
    for number in range(12):
        step(model, optimizer, number)
        step(twin_model, twin, number)
        if number == 7:
            fault = try_it(folder / "run")
    optimizer.finalize()
    twin.finalize()
    _compare(fault, model, twin_model, folder / "run")
    return fault


def _second(run: Path) -> Fault:
    fault, model = Fault("two writers", wrong="nothing was said"), model_of(KIND, seed=5)
    before = digest(model.state_dict())
    try:
        optimizer = boosted(model, KIND, record=run)
        for number in range(4):
            step(model, optimizer, number)
    except Exception as error:
        fault.wrong = ""
        fault.raised(error)
        if digest(model.state_dict()) != before:
            fault.wrong = "the second run's model changed"
    return fault


def _second_process(run: Path) -> Fault:
    return apart(partial(_second, run))


def _boosters(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("booster-*.safetensors")}
