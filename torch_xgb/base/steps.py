"""A step of the base, at a rate of its own, and the state of before its first one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Adadelta, Adam, Adamax, AdamW, Optimizer, RAdam, RMSprop

from torch_xgb.weights.transfers import state_beside

T = TypeVar("T")

__all__ = ["FreshStart", "only_fills_state", "scaled_lr"]

# What D-Adaptation, Prodigy and their kin have learned of the rate, and learn it from. A booster
# that began without it would begin at a rate of next to nothing; and of sums begun anew with every
# booster the first, noisy ones would decide, as the largest estimate so far is the one that counts.
LEARNED_RATE = frozenset(
    {"d", "d_denom", "d_hat", "d_max", "d_numerator"}
    | {"gsq_weighted", "numerator_weighted", "sk_sq"}
)

# Whose state begins as zeros. In a graph of the device (``capturable``) it keeps its addresses.
_BEGIN_AT_ZERO = (Adadelta, Adam, Adamax, AdamW, RAdam, RMSprop)


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


def only_fills_state(base: Optimizer) -> bool:
    """Tell a step that trains nothing: torch's ``_init_optim_state`` takes one to get state filled.

    It takes it of an optimizer without state, at a rate of zero, with gradients of zeros. Gradients
    are looked at only where both others hold.
    """
    groups = base.param_groups
    if base.state or not all(_is_zero(group.get("lr")) for group in groups):
        return False
    gradients = [factor.grad for factor in groups[0]["params"]]
    return all(g is not None and not bool(g.any()) for g in gradients)


def _is_zero(lr: object) -> bool:
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        return False
    return lr is not None and float(lr) == 0  # type: ignore[arg-type]


class FreshStart:
    """Gives the factors' part of a base optimizer back the state it had before its first step.

    State per parameter is dropped, or restored where the class makes it at construction (Adagrad).
    What a class counts in the group itself (schedule-free's ``k`` and ``lr_max``) is known by
    changing during its ``step``, and gets back the value it had before the first one. What it has
    learned of the rate there (Prodigy's ``d``) is kept: ``LEARNED_RATE``, and whatever an optimizer
    names in an attribute ``kept_over_boosters``. State of no Parameter (MADGRAD's ``k``) is of all
    groups: it begins anew where the factors are alone.

    Args:
        base: An optimizer that has not stepped yet.
        factors: The Parameters of its group 0.

    Attributes:
        counters: What has been found so far, with the value before the first step, or None if there
            was none.
    """

    def __init__(self, base: Optimizer, factors: Iterable[nn.Parameter]) -> None:
        self._pristine_state = {
            i: copy.deepcopy(base.state[p]) for i, p in enumerate(factors) if base.state.get(p)
        }
        self._pristine_rest = copy.deepcopy(_of_none(base))
        self._pristine_group = _scalars(base.param_groups[0])
        self._device = _device(base)
        self._kept = LEARNED_RATE | set(getattr(base, "kept_over_boosters", ()))
        self.counters: dict[str, float | None] = {}

    def watch(self, base: Optimizer, step: Callable[[], T]) -> T:
        """Run a step of the base, learning which entries of its group it changes by itself."""
        before = _scalars(base.param_groups[0])
        result = step()
        after = _scalars(base.param_groups[0])
        changed = {key for key in after if key not in before or after[key] != before[key]}
        # A closure may set the rate; no class counts in it.
        for key in changed - {"lr"} - self._kept - self.counters.keys():
            self.counters[key] = self._pristine_group.get(key)
        return result

    def follow(self, base: Optimizer) -> None:
        """Move the state to where the factors are, if the model has been moved since."""
        if self._device != (device := _device(base)):
            self._device, group = device, base.param_groups[0]
            for parameter in (p for p in group["params"] if p in base.state):
                base.state[parameter] = state_beside(base.state[parameter], parameter, group)

    def apply(self, base: Optimizer, counters: bool = True) -> None:
        """Make the state of group 0 as if it had never stepped.

        Args:
            base: The optimizer.
            counters: Whether what the group itself counts starts anew as well.
        """
        group = base.param_groups[0]
        if counters and group.get("capturable") and type(base) in _BEGIN_AT_ZERO:
            return _zero([base.state.get(parameter, {}) for parameter in group["params"]])
        for i, parameter in enumerate(group["params"]):
            base.state.pop(parameter, None)
            if i in self._pristine_state:
                state = copy.deepcopy(self._pristine_state[i])
                base.state[parameter] = state_beside(state, parameter, group)
        if counters and len(base.param_groups) == 1:
            for key in _of_none(base):
                del base.state[key]
            base.state.update(copy.deepcopy(self._pristine_rest))
        for key, value in self.counters.items() if counters else ():
            if value is None:
                group.pop(key, None)
            else:
                group[key] = value


def _of_none(base: Optimizer) -> dict[Any, Any]:
    return {key: value for key, value in base.state.items() if not isinstance(key, Tensor)}


def _device(base: Optimizer) -> torch.device:
    device: torch.device = base.param_groups[0]["params"][0].device
    return device


@torch.no_grad()
def _zero(states: Iterable[dict[str, Any]]) -> None:
    tensors = [one for state in states for one in state.values() if isinstance(one, Tensor)]
    if tensors:
        torch._foreach_zero_(tensors)


def _scalars(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if isinstance(value, (bool, int, float))}
