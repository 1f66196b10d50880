"""Whether others stand in for a module's Parameters, as ``torch.func.functional_call`` has them.

Tensors are told from Parameters by their type. Another model's Parameters are not, and nothing but
the stack says that they are there for one call.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import stateless

from torch_xgb.callers import callers

__all__ = ["Own", "in_functional_call"]


class Own:
    """Which Parameters a module has for good, by what was seen in it last."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, ...]] = {}

    def __reduce__(self) -> tuple[type[Own], tuple[()]]:
        """Begin anew in a copy, which has others."""
        return Own, ()

    def see(self, module: nn.Module, held: Iterable[Tensor | None]) -> bool:
        """Tell whether a module holds its own, which may be others than before for good."""
        now = tuple(map(id, held))
        if self._seen.get(id(module)) != now:
            if id(module) in self._seen and in_functional_call():
                return False
            self._seen[id(module)] = now
        return True


def in_functional_call() -> bool:
    """Tell whether ``torch.func.functional_call`` is at work.

    Walks the stack, so it is asked only where something in a model has changed.
    """
    if torch.compiler.is_compiling():
        return False
    return any(frame.f_code is _AT_WORK for frame in callers())


_AT_WORK = stateless._functional_call.__code__
