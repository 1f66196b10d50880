"""The wrapped optimizer: any class of ``torch.optim``, third-party class or callable."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam

T = TypeVar("T")

__all__ = ["FreshStart", "build"]

_REFUSED = {
    LBFGS: "it evaluates the model several times a step, with one history for all parameters",
    SparseAdam: "the factors' gradients are dense",
}


def build(
    optimizer_class: Callable[..., Optimizer],
    factors: Sequence[nn.Parameter],
    saved: Sequence[nn.Parameter],
    kwargs: dict[str, Any],
) -> Optimizer:
    """Build the base optimizer: group 0 the factors, group 1 the modules trained in full, if any.

    Raises:
        TypeError: If ``optimizer_class`` is no class or callable, or does not answer with an
            Optimizer.
        ValueError: If it cannot serve as a base, or rearranges the groups it is given.
    """
    if isinstance(optimizer_class, Optimizer) or not callable(optimizer_class):
        raise TypeError(
            "optimizer_class must be an optimizer's class (e.g. torch.optim.AdamW) or a callable "
            f"that takes parameters and returns an optimizer, got {optimizer_class!r}"
        )
    if inspect.isclass(optimizer_class):
        _refuse(optimizer_class)
    groups: list[dict[str, Any]] = [{"params": list(factors)}]
    if saved:
        groups.append({"params": list(saved)})
    base = optimizer_class(groups, **kwargs)
    if not isinstance(base, Optimizer):
        raise TypeError(
            f"optimizer_class must make a torch.optim.Optimizer, got {type(base).__name__}"
        )
    _refuse(type(base))
    given, kept = (
        [[id(p) for p in group["params"]] for group in gs] for gs in (groups, base.param_groups)
    )
    if given != kept:
        raise ValueError(
            f"{type(base).__name__} rearranges its param_groups; it must keep the groups given"
        )
    return base


def _refuse(optimizer_class: type) -> None:
    for refused, why in _REFUSED.items():
        if issubclass(optimizer_class, refused):
            raise ValueError(f"{refused.__name__} cannot train boosters: {why}")


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
