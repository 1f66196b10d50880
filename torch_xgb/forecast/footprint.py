"""What a training step holds and computes, found without weights: the step is run on fake tensors.

Fake tensors have shapes and no memory. Every operator of forward and backward runs on them, and
each storage it makes is followed until it is released, as an allocator would.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from torch_xgb.forecast.flops import UNKNOWN_TO_TORCH

__all__ = ["Footprint", "byte_count", "footprint", "truncated"]

_RULES = {**flop_registry, **{op: shape_wrapper(rule) for op, rule in UNKNOWN_TO_TORCH.items()}}


@dataclass(frozen=True)
class Footprint:
    """One forward and backward pass.

    Attributes:
        saved: Bytes held when forward is done: what backward will need.
        peak: The most bytes held at once, both above what was there before.
        flops: Of all matrix products, attention's included.
    """

    saved: float
    peak: float
    flops: float

    def plus(self, other: Footprint, times: float = 1.0) -> Footprint:
        """Return the sum with a multiple of another."""
        return Footprint(
            self.saved + times * other.saved,
            self.peak + times * other.peak,
            self.flops + times * other.flops,
        )

    def minus(self, other: Footprint) -> Footprint:
        """Return the difference."""
        return self.plus(other, -1.0)


def footprint(model: nn.Module, batch: Mapping[str, Tensor]) -> Footprint:
    """Run a step of a model of fake tensors on a batch of fake tensors.

    Args:
        model: Answers with an object that has a ``loss``, or with the loss.
        batch: Its keyword arguments.
    """
    memory = _Memory()
    with memory:
        answer = model(**batch)
        loss = getattr(answer, "loss", answer)
        del answer
        saved = memory.in_use
        loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return Footprint(saved, memory.most, memory.flops)


def byte_count(tensors: Iterator[Tensor] | Sequence[Tensor]) -> int:
    """Return the bytes of distinct tensors."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


@contextmanager
def truncated(stack: nn.Module, depth: int) -> Iterator[None]:
    """Leave a stack of blocks only its first ones for a while."""
    whole = dict(stack._modules)
    for name in list(whole)[depth:]:
        del stack._modules[name]
    try:
        yield
    finally:
        stack._modules.clear()
        stack._modules.update(whole)


class _Memory(TorchDispatchMode):
    """Adds up the bytes of the storages that operators make, until they are released, and FLOPs.

    torch's FlopCounterMode would do for FLOPs, but its hooks hold on to what checkpointing
    recomputes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.in_use = self.most = self.flops = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        answer = func(*args, **(kwargs or {}))
        if rule := _RULES.get(func) or _RULES.get(getattr(func, "_overloadpacket", None)):
            self.flops += rule(*args, **(kwargs or {}), out_val=answer)
        for tensor in tree_leaves(answer):
            if isinstance(tensor, Tensor) and _key(tensor) not in given:
                self._follow(tensor)
        return answer

    def _follow(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._known:
            return
        size = storage.nbytes()

        def released(_: object) -> None:
            self.in_use -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, released)
        self.in_use += size
        self.most = max(self.most, self.in_use)


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
