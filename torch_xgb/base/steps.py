"""A step of the base, at a rate of its own, and the state of before its first one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

T = TypeVar("T")

__all__ = ["FreshStart", "scaled_lr"]


@contextmanager
def scaled_lr(group: dict[str, Any], factor: float) -> Iterator[None]:
    """Multiply a group's learning rate for the duration of a step."""
    if factor == 1:
        yield
        return
    lr = group["lr"]
    group["lr"] = lr * factor
    try:
        yield
    finally:
        group["lr"] = lr


class FreshStart:
    """Gives the factors' part of a base optimizer back the state it had before its first step.

    State per parameter is dropped, or restored where the class makes it at construction (Adagrad).
    Counters that a class keeps in the group itself (schedule-free's ``k``) are known by changing
    during its ``step``.

    Args:
        base: An optimizer that has not stepped yet.
        factors: The Parameters of its group 0.
    """

    def __init__(self, base: Optimizer, factors: Iterable[nn.Parameter]) -> None:
        self._pristine_state = {
            i: copy.deepcopy(base.state[p]) for i, p in enumerate(factors) if base.state.get(p)
        }
        self._pristine_group = _scalars(base.param_groups[0])
        self._counters: set[str] = set()

    def watch(self, base: Optimizer, step: Callable[[], T]) -> T:
        """Run a step of the base, learning which entries of its group it changes by itself."""
        before = _scalars(base.param_groups[0])
        result = step()
        after = _scalars(base.param_groups[0])
        changed = {key for key in after if key not in before or after[key] != before[key]}
        self._counters |= changed - {"lr"}  # a closure may set the rate; no class counts in it
        return result

    def apply(self, base: Optimizer, counters: bool = True) -> None:
        """Make the state of group 0 as if it had never stepped.

        Args:
            base: The optimizer.
            counters: Whether what the group itself counts starts anew as well.
        """
        group = base.param_groups[0]
        for i, parameter in enumerate(group["params"]):
            base.state.pop(parameter, None)
            if i in self._pristine_state:
                base.state[parameter] = copy.deepcopy(self._pristine_state[i])
        for key in self._counters if counters else ():
            if key in self._pristine_group:
                group[key] = self._pristine_group[key]
            else:
                group.pop(key, None)


def _scalars(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if isinstance(value, (bool, int, float))}
