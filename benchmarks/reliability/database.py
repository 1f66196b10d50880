"""PyTorch's own database of optimizers: each of its inputs, boosted and beside the plain class.

For as long as a booster lasts its factors are what the plain class makes of copies of them,
bitwise; a run that is saved within one goes on bitwise.
"""

from __future__ import annotations

import sys
import types
import unittest
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, SparseAdam

from benchmarks.reliability.apart import apart
from benchmarks.reliability.counts import Counts
from benchmarks.reliability.subjects import Kind, digest, model_of, step
from torch_xgb import BoostedLowRankOptimizer

__all__ = ["run"]

KIND = Kind("stack", "plain")


def run(quick: bool, seed: int) -> Counts:
    """Try every input; in a process of its own, as importing torch's tests changes its flags."""
    return apart(lambda: _run(1 if quick else 3))


def _run(boosters: int) -> Counts:
    warnings.simplefilter("ignore")
    counts = Counts()
    for optimizer_class, name, kwargs in _inputs():
        with counts.fault(name) as fault:
            try:
                BoostedLowRankOptimizer(optimizer_class, model_of(KIND), **kwargs).finalize()
            except ValueError as error:
                fault.raised(error)
                if optimizer_class not in (LBFGS, SparseAdam):
                    fault.wrong = f"refused: {error}"
                continue
            fault.wrong = _differs(optimizer_class, kwargs, boosters) or _resumes(
                optimizer_class, kwargs
            )
    counts.figures["optimizers and settings"] = counts.injected
    return counts


def _inputs() -> Iterator[tuple[type[Optimizer], str, dict[str, Any]]]:
    # What torch's test helpers want of this package is its class of tests.
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
    stand_in.assert_expected_inline = None  # type: ignore[attr-defined]
    sys.modules.setdefault("expecttest", stand_in)
    from torch.testing._internal.common_optimizers import optim_db

    for info in optim_db:
        for given in info.optim_inputs_func(device="cpu"):
            kwargs = dict(given.kwargs)
            if kwargs.get("differentiable") and "foreach" not in kwargs:
                kwargs["foreach"] = False
            yield info.optim_cls, f"{info.optim_cls.__name__} ({given.desc})", kwargs


def _plain(optimizer_class: type[Optimizer], pairs: list[Tensor], kwargs: dict[str, Any]) -> Any:
    twins = [torch.nn.Parameter(p.detach().clone()) for p in pairs]
    return twins, optimizer_class([{"params": twins}], **kwargs)


def _differs(optimizer_class: type[Optimizer], kwargs: dict[str, Any], boosters: int) -> str:
    model = model_of(KIND)
    optimizer = BoostedLowRankOptimizer(
        optimizer_class, model, kappa=3, layers_per_booster=2, **kwargs
    )
    factors = optimizer.boosting.factors
    for t in range(boosters):
        twins, plain = _plain(optimizer_class, factors, kwargs)
        for number in range(2):
            step(model, optimizer, 3 * t + number)
            for twin, factor in zip(twins, factors, strict=True):
                twin.grad = None if factor.grad is None else factor.grad.clone()
            plain.step()
            for twin, factor in zip(twins, factors, strict=True):
                if not torch.equal(twin, factor):
                    return f"booster {t}, step {number}: a factor differs from the plain class's"
        step(model, optimizer, 3 * t + 2)
    return ""


def _resumes(optimizer_class: type[Optimizer], kwargs: dict[str, Any]) -> str:
    def build(model: torch.nn.Module) -> BoostedLowRankOptimizer:
        return BoostedLowRankOptimizer(
            optimizer_class, model, kappa=3, layers_per_booster=1, modules_to_save=heads, **kwargs
        )

    flat = "Muon" not in optimizer_class.__name__  # which takes matrices alone
    heads = ["head"] if flat else []
    model, other = model_of(KIND), model_of(KIND)
    optimizer = build(model)
    for number in range(4):
        step(model, optimizer, number)
    saved = model.state_dict(), optimizer.state_dict()
    other.load_state_dict(saved[0])
    resumed = build(other)
    resumed.load_state_dict(saved[1])
    for ours, theirs in ((model, optimizer), (other, resumed)):
        for number in range(4, 8):
            step(ours, theirs, number)
    same = digest(model.state_dict()) == digest(other.state_dict())
    return "" if same else "a resumed run differs from one that went on"
