"""Interruptions at any line of ``step()``, ``merge()`` and ``finalize()``, as Ctrl-C makes them.

Afterwards the model computes what it did before or what it would have after, and going on reaches
the same weights. One whose optimizer was interrupted in the making is what it was, without a hook.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import torch_xgb
from benchmarks.reliability.counts import Counts, Fault
from benchmarks.reliability.subjects import Kind, batch, boosted, digest, model_of, step
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.boosters.hooks import hooks_in

__all__ = ["Interruption", "interrupted", "lines_of", "run"]

_HERE = str(Path(torch_xgb.__file__).resolve().parent)
KINDS = [
    Kind("stack", "plain"),
    Kind("bfloat16", "residual"),
    Kind("stack", "direft"),
    Kind("stack", "carry"),
    Kind("tied", "bias"),
    Kind("uneven", "head"),
]


class Interruption(BaseException):
    """What is raised: no Exception, as KeyboardInterrupt is none."""


def lines_of(act: Callable[[], object], at: int | None = None) -> list[str]:
    """Call something, raising at the ``at``-th line of the library's; return those it ran."""
    lines: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(_HERE):
            return None
        if event == "line":
            lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            if len(lines) == at:
                raise Interruption(lines[-1])
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return lines


def interrupted(act: Callable[[], object], at: int) -> bool:
    """Call something and interrupt it at a line; return whether it came to that."""
    try:
        lines_of(act, at)
    except Interruption:
        return True
    return False


def run(quick: bool, seed: int) -> Counts:
    """Interrupt every call of every kind: at every line that it runs, or at a few."""
    warnings.simplefilter("ignore")
    counts, dice = Counts(), random.Random(seed)
    for kind in KINDS[:2] if quick else KINDS:
        for call in ("step", "merge", "finalize"):
            places = _once_each(_lines(kind, call), dice)
            for at in sorted(dice.sample(places, min(len(places), 6)) if quick else places):
                with counts.fault(f"{kind.model}, {kind.settings}, {call}(), line {at}") as fault:
                    one(kind, call, at, fault)
        places = _once_each(lines_of(lambda: boosted(model_of(kind), kind)), dice)  # noqa: B023
        for at in sorted(dice.sample(places, 6)) if quick else places:
            with counts.fault(f"{kind.model}, {kind.settings}, made, line {at}") as fault:
                made(kind, at, fault)
    return counts


def _once_each(lines: Sequence[str], dice: random.Random) -> list[int]:
    """Return of every line of code the number of one of the times that it was run."""
    runs: dict[str, list[int]] = {}
    for number, line in enumerate(lines, 1):
        runs.setdefault(line, []).append(number)
    return [dice.choice(numbers) for numbers in runs.values()]


def one(kind: Kind, call: str, at: int, fault: Fault) -> None:
    """Interrupt one call, look at the function, go on, and compare with a run that was let be."""
    model, optimizer = _ready(kind, call)
    twin_model, twin = _ready(kind, call)
    before = _outputs(model, kind)
    _act(call, twin_model, twin)
    after = _outputs(twin_model, kind)
    try:
        lines_of(lambda: _act(call, model, optimizer), at)
        return
    except Interruption as where:
        line = str(where)
    now = _outputs(model, kind)
    bound = {torch.bfloat16: 0.1}.get(kind.dtype, 1e-4) * max(1.0, float(before.abs().max()))
    if min(float((now - then).abs().max()) for then in (before, after)) > bound:
        fault.wrong = f"neither the function of before nor of after ({line})"
        return
    try:
        _go_on(call, model, optimizer, twin_model, twin, fault)
    except Exception as error:
        fault.raised(error)
        if not fault.wrong:
            fault.wrong = f"cannot go on ({line}): {error}"
            fault.refused = False
    if fault.wrong and line not in fault.wrong:
        fault.wrong += f" ({line})"


def made(kind: Kind, at: int, fault: Fault) -> None:
    """Interrupt an optimizer in the making; look at the model, and make another."""
    model, twin = model_of(kind), model_of(kind)
    if not interrupted(lambda: boosted(model, kind), at):
        return
    if _described(model) != _described(twin):
        fault.wrong = "the model is not what it was"
        return
    ends = []
    for one in (model, twin):
        optimizer = boosted(one, kind)
        for number in range(4):
            step(one, optimizer, number)
        ends.append(digest(optimizer.finalize().state_dict()))
    if ends[0] != ends[1]:
        fault.wrong = "another optimizer reaches other weights"


def _described(model: nn.Module) -> tuple[str, list[bool], dict[str, int]]:
    hooks = {name: len(list(hooks_in(module))) for name, module in model.named_modules()}
    return digest(model.state_dict()), [p.requires_grad for p in model.parameters()], hooks


def _go_on(
    call: str,
    model: nn.Module,
    optimizer: BoostedLowRankOptimizer,
    twin_model: nn.Module,
    twin: BoostedLowRankOptimizer,
    fault: Fault,
) -> None:
    """Repeat what was interrupted unless it is done, and finish both runs."""
    done = twin.boosting.course.progress
    if call == "finalize":
        optimizer.finalize()
    elif call == "merge" and optimizer.booster_index < done.booster_index:
        optimizer.merge()
    elif call == "step":
        if optimizer.boosting.course.progress.total_steps < done.total_steps:
            _act(call, model, optimizer)
        elif optimizer.booster_index < done.booster_index:
            optimizer.merge()
    if call != "finalize":
        for ours, theirs in ((model, optimizer), (twin_model, twin)):
            for number in range(10, 14):
                step(ours, theirs, number)
            theirs.finalize()
    if digest(model.state_dict()) != digest(twin_model.state_dict()):
        fault.wrong = "going on reaches other weights"


def _ready(kind: Kind, call: str) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    """Make a run one step before the end of booster 1, so that a step merges."""
    model = model_of(kind)
    optimizer = boosted(model, kind)
    for number in range(5):
        step(model, optimizer, number)
    return model, optimizer


def _act(call: str, model: nn.Module, optimizer: BoostedLowRankOptimizer) -> None:
    if call != "step":
        getattr(optimizer, call)()
        return
    step(model, optimizer, 5)


def _lines(kind: Kind, call: str) -> list[str]:
    model, optimizer = _ready(kind, call)
    return lines_of(lambda: _act(call, model, optimizer))


def _outputs(model: nn.Module, kind: Kind) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model(batch(0, kind.dtype)[0]).double())
