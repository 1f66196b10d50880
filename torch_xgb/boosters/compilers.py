"""Compilers at work in a model: whether one has been, and hooks that it can rely on."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from torch_xgb.targets.compiled import is_compiled

__all__ = ["Compilers", "Tracing", "hook_all", "take_note"]

_traced = [0]
_present: weakref.WeakSet[Compilers] = weakref.WeakSet()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def hook_all() -> int:
    """Hook every adapter there is, called while a model's call is traced, before its blocks are.

    A compiler that cannot trace a call as a whole, as where FSDP2 shards the model, goes on with
    one block after the other, and shares what it made of the first with those of the same class.
    """
    for compilers in list(_present):
        compilers.hook()
    return 0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def take_note() -> int:
    """Take note of being traced: called then and there, and no part of what is traced."""
    _traced[0] += 1
    return 0


class Tracing:
    """Whether a compiler has traced an adapter, shared by all of a model's adapters."""

    def __init__(self) -> None:
        self._before = _traced[0]

    def __reduce__(self) -> tuple[type[Tracing], tuple[()]]:
        """Begin anew in a copy, which nobody has traced."""
        return Tracing, ()

    @property
    def seen(self) -> bool:
        """Whether one was traced since this was made: of this model, or of another one."""
        return _traced[0] != self._before


class Hooked(Protocol):
    """Who has a hook in the forward pass."""

    def hook(self) -> None:
        """Put it there."""


class Compilers:
    """Hooks every adapter for good, bound or not, once a compiler has been seen at work.

    Dynamo ignores hooks registered after it has traced a module, and shares what it traced among
    blocks of one class (skip_nnmodule_hook_guards); but it guards on what a traced hook reads, of
    an adapter ``bound``.

    Args:
        tracing: Of the adapters.
        adapters: All of them.

    Attributes:
        served: Whether the hooks are there for good.
    """

    def __init__(self, tracing: Tracing, adapters: Sequence[Hooked]) -> None:
        self._tracing, self._adapters = tracing, adapters
        self.served = False

    def attach(self, model: nn.Module, *, guarded: bool) -> None:
        """Have what they traced of a model without hooks traced anew, unless their guards tell."""
        if "torch._dynamo" in sys.modules and not guarded:
            torch.compiler.reset()
        _present.add(self)
        self.look(model)

    def look(self, model: nn.Module) -> None:
        """Look for one that is at work somewhere in a model, or has been."""
        if not self.served and (self._tracing.seen or is_compiled(model)):
            self._serve()

    def before_bind(self) -> None:
        """Look for one that has been at work."""
        if not self.served and self._tracing.seen:
            self._serve()

    def detach(self) -> None:
        """Have what was traced with the hooks traced anew."""
        _present.discard(self)
        if self.served or self._tracing.seen:
            torch.compiler.reset()

    def hook(self) -> None:
        """Put every hook there, bound or not."""
        for adapter in self._adapters:
            adapter.hook()

    def _serve(self) -> None:
        self.hook()
        torch.compiler.reset()
        self.served = True
