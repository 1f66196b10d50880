"""The factor Parameters and their place in the model: attach, bind, reset, detach.

A booster is new values, not new objects. ``Slots`` owns a fixed set of (A, B) pairs, as many of
each shape as a draw can need; binding a booster lends them to the drawn layers' ``Adapter``s, and
resetting it re-fills them. Everything that holds on to Parameters (param_groups, schedulers, DDP's
buckets, optimizer state) keeps the same ones from the first booster to the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.lowrank import add_low_rank, kaiming_bound
from torch_xgb.targets import Layer, Target

__all__ = ["Adapter", "Booster", "Slots"]


class Slots(nn.Module):
    """The factor Parameters, at home in the user's model but absent from every ``state_dict``.

    For each shape of target there are as many pairs as the L_s layers richest in it hold: L_s
    layers' worth where layers are alike, and never too few where they are not.

    Args:
        layers: All layers that may be drawn.
        num_layers: L_s, how many are drawn at a time.
        r: The rank.
    """

    def __init__(self, layers: Sequence[Layer], num_layers: int, r: int) -> None:
        super().__init__()
        weights = [target.weight for layer in layers for target in layer.targets]
        dtype = reduce(torch.promote_types, (w.dtype for w in weights), torch.float32)
        self.pairs: dict[tuple[int, int], list[tuple[str, str]]] = {}
        for number, (shape, count) in enumerate(_most_needed(layers, num_layers).items()):
            self.pairs[shape] = [(f"A{number}_{i}", f"B{number}_{i}") for i in range(count)]
            for A, B in self.pairs[shape]:
                rows, columns = shape
                for name, size in ((A, (r, columns)), (B, (rows, r))):
                    values = torch.zeros(size, dtype=dtype, device=weights[0].device)
                    self.register_parameter(name, nn.Parameter(values))

    def lend(self, targets: Iterable[Target]) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Return a pair (A, B) of each target's shape, no pair twice."""
        free = {shape: iter(names) for shape, names in self.pairs.items()}
        named = [next(free[target.shape]) for target in targets]
        return [(self.get_parameter(A), self.get_parameter(B)) for A, B in named]

    def _save_to_state_dict(self, *args: Any) -> None:
        """Save nothing: a checkpoint holds the plain model's keys."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Expect nothing."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Slots:
        """Follow the model to another device, but not to a lower precision."""
        own = next(self.parameters())
        moved = fn(torch.empty(0, dtype=own.dtype, device=own.device))
        if moved.dtype == own.dtype:
            return super()._apply(fn, recurse)  # type: ignore
        return super()._apply(lambda p: p.to(moved.device), recurse)  # type: ignore


def _most_needed(layers: Sequence[Layer], num_layers: int) -> dict[tuple[int, int], int]:
    """Return, for each shape of target, how many of them ``num_layers`` layers can hold at most."""
    per_layer = [Counter(target.shape for target in layer.targets) for layer in layers]
    shapes = dict.fromkeys(target.shape for layer in layers for target in layer.targets)
    counts = {shape: sorted((c[shape] for c in per_layer), reverse=True) for shape in shapes}
    return {shape: sum(count[:num_layers]) for shape, count in counts.items()}


@dataclass(eq=False)
class Tracing:
    """Whether a compiler has traced an adapter, shared by all of a model's adapters."""

    seen: bool = False


class Adapter:
    """A target's place in the forward pass: a hook that adds s·(x Aᵀ)Bᵀ while a pair is bound."""

    def __init__(self, target: Target, s: float, dropout: float, tracing: Tracing) -> None:
        self.target = target
        self.s = s
        self.dropout = dropout
        self.tracing = tracing
        self.bound: tuple[nn.Parameter, nn.Parameter] | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The bound pair: A (r, in), B (out, r)."""
        assert self.bound is not None
        return self.bound

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
        """Return the module's output with the pair's share added."""
        if torch.compiler.is_compiling():
            self.tracing.seen = True
        if self.bound is None:
            return y
        x = args[0] if args else next(iter(kwargs.values()))
        if self.dropout and module.training:
            x = nn.functional.dropout(x, self.dropout)
        A, B = self.factors
        return add_low_rank(y, x, A, B, self.s)


@dataclass(eq=False)
class Booster:
    """The slots, the adapters of every layer, and which of them the active booster holds.

    Args:
        layers: All layers that may be drawn.
        num_layers: L_s, how many are drawn at a time.
        r: The rank.
        s: The scaling.
        dropout: Probability of dropping an input of A in training.
    """

    layers: Sequence[Layer]
    num_layers: int
    r: int
    s: float
    dropout: float
    drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = Slots(self.layers, self.num_layers, self.r)
        self.tracing = Tracing()
        self.adapters = [
            [Adapter(target, self.s, self.dropout, self.tracing) for target in layer.targets]
            for layer in self.layers
        ]
        self._restore: list[tuple[nn.Module, str, bool]] = []
        self._nesting: list[nn.TransformerEncoder] = []
        self._static = False

    @property
    def factors(self) -> list[nn.Parameter]:
        """Every factor Parameter, the same objects for the whole run."""
        return list(self.slots.parameters())

    @property
    def active(self) -> list[Adapter]:
        """The adapters of the drawn layers."""
        return [adapter for layer in self.drawn for adapter in self.adapters[layer]]

    def attach(self, model: nn.Module, saved: Iterable[nn.Module]) -> None:
        """Freeze the model but for the ``saved`` modules, and move the slots in.

        Their home is a target: a linear map has no other children, and unlike an ``nn.Sequential``,
        or any root that walks through its children, it never calls one.
        """
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._restore.append((module, name, parameter.requires_grad))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for module in saved:
            module.requires_grad_(True)
        # In evaluation torch's encoder nests its input, which layers with hooks cannot take.
        encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]
        self._nesting = [encoder for encoder in encoders if encoder.use_nested_tensor]
        for encoder in self._nesting:
            encoder.use_nested_tensor = False
        self._home.add_module("boosters", self.slots)
        self._model = model
        self._look_for_compilers()
        # Blocks may be compiled between here and the first forward pass.
        self._first_call = model.register_forward_pre_hook(self._look_before_first_call)

    def detach(self) -> None:
        """Take everything off the model and give ``requires_grad`` back."""
        for adapter in (adapter for layer in self.adapters for adapter in layer):
            adapter.unhook()
            adapter.bound = None
        self.drawn = []
        self._home._modules.pop("boosters", None)
        self._first_call.remove()
        for module, name, requires_grad in self._restore:
            module.get_parameter(name).requires_grad_(requires_grad)
        for encoder in self._nesting:
            encoder.use_nested_tensor = True
        self._restore, self._nesting = [], []
        if self.tracing.seen or self._static:
            torch.compiler.reset()

    def bind(self, drawn: list[int]) -> None:
        """Lend the slots to the drawn layers, in order."""
        self._look_for_compilers()
        for adapter in self.active:
            adapter.bound = None
            if not self._static:
                adapter.unhook()
        self.drawn = drawn
        pairs = self.slots.lend(adapter.target for adapter in self.active)
        for adapter, pair in zip(self.active, pairs, strict=True):
            adapter.bound = pair
            adapter.hook()
        lent = {id(factor) for pair in pairs for factor in pair}
        for factor in self.factors:
            if id(factor) not in lent:
                factor.grad = None

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Make every A fresh, Kaiming-uniform as LoRA's, and every B zero."""
        factors = self.factors
        for factor in factors:
            factor.zero_()
        views: list[Tensor] = [adapter.factors[0] for adapter in self.active]
        noise = torch.rand(
            sum(A.numel() for A in views), generator=generator, dtype=factors[0].dtype
        )
        noise.mul_(2).sub_(1)
        for A, values in zip(views, noise.split([A.numel() for A in views]), strict=True):
            values.mul_(kaiming_bound(A.shape[1]))
        filled = noise.to(factors[0].device).split([A.numel() for A in views])
        torch._foreach_copy_(views, [v.view_as(A) for v, A in zip(filled, views, strict=True)])

    @property
    def _home(self) -> nn.Module:
        return self.layers[0].targets[0].modules[0]

    def _look_before_first_call(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.compiler.is_compiling():
            self._first_call.remove()
            self._look_for_compilers()

    def _look_for_compilers(self) -> None:
        """Hook every adapter for good, bound or not, once a compiler is at work.

        Dynamo ignores hooks registered after it has traced a module, and shares what it traced
        among blocks of one class (skip_nnmodule_hook_guards); but it guards on what a traced hook
        reads, here ``bound``.
        """
        if self._static or not (self.tracing.seen or _is_compiled(self._model)):
            return
        self._static = True
        for adapter in (adapter for layer in self.adapters for adapter in layer):
            adapter.hook()
        torch.compiler.reset()


def _is_compiled(model: nn.Module) -> bool:
    return any(
        m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in model.modules()
    )
