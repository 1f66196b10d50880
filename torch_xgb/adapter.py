"""A target's place in the forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.forms import Form, Update
from torch_xgb.targets import Target, Weight

__all__ = ["Adapter", "Tracing"]


@dataclass(eq=False)
class Tracing:
    """Whether a compiler has traced an adapter, shared by all of a model's adapters."""

    seen: bool = False


class Adapter:
    """A target's place in the forward pass: a hook that adds a pair's share while one is bound.

    Attributes:
        bound: The factor Parameters lent to it, or None.
        resting: Those that a copy of the model holds merged into its weights, or None.
        r: The rank in use, at most the Parameters' own.
        s: The scaling.
    """

    def __init__(self, target: Target, form: Form, dropout: float, tracing: Tracing) -> None:
        self.target = target
        self.form = form
        self.dropout = dropout
        self.tracing = tracing
        self.bound: list[nn.Parameter] | None = None
        self.resting: list[nn.Parameter] | None = None
        self.r = 0
        self.s = 1.0
        self._handles: list[RemovableHandle] = []

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The bound pair at the rank in use: the Parameters themselves at full rank."""
        assert self.bound is not None
        return self.form.narrow(self.bound, self.r)

    @property
    def pending(self) -> bool:
        """Whether a pair is bound that changes the function."""
        return self.bound is not None and any(bool(f.count_nonzero()) for f in self.bound[1:])

    def updates(self, alpha: float) -> list[tuple[Weight, Update]]:
        """Return what a merge adds to each weight, α times the pair's product."""
        factors = tuple(factor.detach() for factor in self.factors)
        found = []
        for weight in self.form.weights(self.target):
            left, right, scale = self.form.update(weight, factors, self.s)
            # The layout of what a ledger replays, so that both merges round alike.
            found.append((weight, (left.contiguous(), right.contiguous(), alpha * scale)))
        return found

    def hook(self) -> None:
        """Enter the forward pass, ahead of the module's other hooks."""
        if not self._handles:
            modules = self.target.modules
            self._handles = [
                m.register_forward_hook(self, prepend=True, with_kwargs=True) for m in modules
            ]

    def unhook(self) -> None:
        """Leave it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __call__(
        self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor
    ) -> Tensor:
        """Return the module's output with the pair's share."""
        if torch.compiler.is_compiling():
            self.tracing.seen = True
        if self.bound is None:
            return y
        x = args[0] if args else next(iter(kwargs.values()))
        if self.dropout and module.training:
            x = nn.functional.dropout(x, self.dropout)
        return self.form.forward(y, x, self.factors, self.s)
