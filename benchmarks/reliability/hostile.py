"""Files that are not what they say: of a ledger, a packed one, a checkpoint, an export's folder.

Each is refused in bounded time and memory with nothing changed, or read as what it was.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.reliability.apart import Fork
from benchmarks.reliability.counts import OWN, Counts, Fault, is_ours
from benchmarks.reliability.subjects import Kind, boosted, digest, model_of, step
from torch_xgb import BoostedLowRankOptimizer, Chain

__all__ = ["run"]

KIND = Kind("stack", "plain")
_SECONDS, _BYTES = 20.0, 3 << 30
_OTHER_READERS = ("torch.load does not read it:", "the model does not load it:")
Damage = Callable[[Path, random.Random], None]


def _cut(path: Path, dice: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: dice.randrange(len(data))])


def _flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = dice.randrange(len(data))
    data[at] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def _longer(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(dice.randrange(1, 99)))


def _noise(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(300))


def _huge(path: Path, dice: random.Random) -> None:
    """Declare more than any machine has."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        one = next(entry for name, entry in header.items() if name != "__metadata__")
        one["shape"], one["data_offsets"] = [1 << 40, 1 << 20], [0, 1 << 62]
        told = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(told)) + told + data[8 + size :])
    else:
        path.write_bytes(struct.pack("<Q", (1 << 63) - 1) + data)


def _long_header(path: Path, dice: random.Random) -> None:
    path.write_bytes(struct.pack("<Q", 1 << dice.choice((31, 40, 62))) + path.read_bytes()[8:])


def _deep(path: Path, dice: random.Random) -> None:
    text = b"[" * 200_000
    path.write_bytes(text if path.suffix == ".json" else struct.pack("<Q", len(text)) + text)


def _empty(path: Path, dice: random.Random) -> None:
    path.write_bytes(b"")


def _gone(path: Path, dice: random.Random) -> None:
    path.unlink()


def _folder(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _endless(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _pipe(path: Path, dice: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _circle(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _foreign(path: Path, dice: random.Random) -> None:
    """Put a well-formed file of other tensors there."""
    from safetensors.torch import save_file

    if path.suffix == ".json":
        path.write_text(json.dumps({"version": 1, "boosters": -1, "targets": {"a": [[]]}}))
    else:
        save_file({"blocks.0.up.weight": torch.ones(2, 3)}, path)


DAMAGES: list[Damage] = [
    *(_cut, _flip, _flip, _longer, _noise, _huge, _long_header, _deep),
    *(_empty, _gone, _folder, _endless, _pipe, _circle, _foreign),
]


def run(quick: bool, seed: int) -> Counts:
    """Damage every file in every way, and use it."""
    warnings.simplefilter("ignore")
    counts, dice = Counts(), random.Random(seed)
    made = Path(tempfile.mkdtemp())
    expected = _make(made)
    for turn in range(1 if quick else 12):
        for damage in DAMAGES:
            for part in ("run", "packed.safetensors", "checkpoint.pt"):
                if part.endswith(".pt") and damage in (_pipe, _endless):
                    continue  # which torch.load reads for ever
                name = f"{part}, {damage.__name__[1:]}, {turn}"
                with counts.fault(name) as fault:
                    _try(made, part, damage, dice, expected, fault)
    _structures(made, 40 if quick else 2000, dice, counts)
    with counts.fault("an export onto a link") as fault:
        _export_onto_a_link(made, fault)
    shutil.rmtree(made)
    return counts


def _make(folder: Path) -> dict[str, str]:
    model = model_of(KIND)
    optimizer = boosted(model, KIND, record=folder / "run")
    for number in range(8):
        step(model, optimizer, number)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(saved, folder / "checkpoint.pt")
    assert optimizer.chain is not None
    optimizer.chain.save(folder / "packed.safetensors")
    optimizer.boosting.leave()
    expected = {
        part: _use(folder / part) for part in ("run", "packed.safetensors", "checkpoint.pt")
    }
    # Without its last file a ledger is that of a run that was killed before: whole, and shorter.
    shorter = Path(shutil.copytree(folder / "run", folder / "shorter"))
    sorted(shorter.glob("booster-*"))[-1].unlink()
    return {**expected, "run, gone": _use(shorter)}


def _use(path: Path) -> str:
    """Use all of a file or folder; return what came of it."""
    if path.suffix == ".pt":
        return _resume(path)
    model = model_of(KIND)
    before = digest(model.state_dict())
    chain = Chain.load(path)
    try:
        chain.apply(model)
        found = digest(model.state_dict())
        chain.rollback(model, to=0)
        return found + digest(model.state_dict())
    except OWN:
        if digest(model.state_dict()) not in (before, locals().get("found")):
            raise AssertionError("refused, and the model changed") from None
        raise


def _resume(path: Path) -> str:
    try:
        saved = torch.load(path, weights_only=True)
    except Exception as error:  # torch's reader is what refuses
        raise ValueError(f"{_OTHER_READERS[0]} {error}") from error
    try:
        model, optimizer = _ready(saved["model"])
    except Exception as error:
        raise ValueError(f"{_OTHER_READERS[1]} {error}") from error
    before = digest(model.state_dict(), optimizer.state_dict())
    try:
        optimizer.load_state_dict(saved["optimizer"])
    except OWN:
        if digest(model.state_dict(), optimizer.state_dict()) != before:
            raise AssertionError("refused, and something changed") from None
        raise
    step(model, optimizer, 8)
    return digest(model.state_dict(), optimizer.state_dict())


def _try(
    made: Path,
    part: str,
    damage: Damage,
    dice: random.Random,
    expected: dict[str, str],
    fault: Fault,
) -> None:
    """Damage a copy and use it in a process of its own, with a bound on its memory and time."""
    folder = Path(tempfile.mkdtemp())
    source = made / part
    path = folder / part
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
    files = [p for p in sorted(path.iterdir()) if p.suffix in (".json", ".safetensors")] if source.is_dir() else [path]  # fmt: skip  # noqa: E501
    damage(dice.choice(files), dice)
    process = Fork(partial(_bounded, path))
    began = time.monotonic()
    answer = process.wait()
    if answer is None or time.monotonic() - began > _SECONDS:
        fault.wrong = "it took all the memory or time there was"
    elif not answer[0]:
        fault.wrong = str(answer[1])[-300:]
    elif answer[1] == "refused":
        fault.refused = True
    elif answer[1] not in (expected[part], expected.get(f"{part}, {damage.__name__[1:]}")):
        fault.wrong = "it was read as something else"
    shutil.rmtree(folder)


def _bounded(path: Path) -> str:
    import resource
    import signal

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, used + _BYTES))
    signal.alarm(int(_SECONDS))
    try:
        return _use(path)
    except Exception as error:
        if is_ours(error) or str(error).startswith(_OTHER_READERS):
            return "refused"
        raise


def _structures(made: Path, many: int, dice: random.Random, counts: Counts) -> None:
    """Put something else in the place of any value of an optimizer's state."""
    saved = torch.load(made / "checkpoint.pt", weights_only=True)
    run = _ready(saved["model"])
    before = digest(run[0].state_dict(), run[1].state_dict())
    places = list(_places(saved["optimizer"]))
    for number in range(many):
        state = copy.deepcopy(saved["optimizer"])
        path = dice.choice(places)
        inner: Any = state
        for key in path[:-1]:
            inner = inner[key]
        if isinstance(inner, tuple):
            continue
        old, new = inner[path[-1]], dice.choice(_OTHERS)
        inner[path[-1]] = new(old) if callable(new) else new
        if digest({"": state}) == digest({"": saved["optimizer"]}) or "lr" in str(path[-1]):
            continue
        with counts.fault(f"state {path}, {number}") as fault:
            try:
                run[1].load_state_dict(state)
                fault.wrong = f"accepted with {str(inner[path[-1]])[:60]}"
            except Exception as error:
                fault.raised(error)
            if digest(run[0].state_dict(), run[1].state_dict()) != before:
                fault.wrong += "; something changed"
                run = _ready(saved["model"])


def _ready(weights: Mapping[str, Any]) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    """Make a run that has not begun, with weights that were saved."""
    model = model_of(KIND)
    optimizer = boosted(model, KIND)
    model.load_state_dict(weights)
    return model, optimizer


_OTHERS: list[Any] = [
    *(None, "x", -1, 10**30, float("nan"), [], {}, b"x", True),
    torch.zeros(0),
    torch.ones(3, 3, 3),
    lambda old: old + 1 if isinstance(old, (int, float)) else [old],
    lambda old: old.double() + 1 if isinstance(old, torch.Tensor) else {"a": old},
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if path:
        yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _places(one, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            yield from _places(one, (*path, i))


def _export_onto_a_link(made: Path, fault: Fault) -> None:
    folder, victim = made / "export", made / "victim"
    folder.mkdir()
    victim.write_text("precious")
    (folder / "adapter_model.safetensors").symlink_to(victim)
    try:
        Chain.load(made / "run").to_peft(folder)
    except Exception as error:
        fault.raised(error)
    if victim.read_text() != "precious":
        fault.lost = "an export wrote through a link"
