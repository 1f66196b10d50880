"""The factor Parameters and their place in the model: attach, bind, reset, detach.

A booster is new values, not new objects. ``Slots`` owns a fixed set of factor Parameters, L_s slots
of one (A, B) pair per target of a layer; binding a booster lends the slots to the drawn layers'
``Adapter``s, and resetting it re-fills them. Everything that holds on to Parameters (param_groups,
schedulers, DDP's buckets, optimizer state) keeps the same ones from the first booster to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.lowrank import add_low_rank, kaiming_bound
from torch_xgb.targets import Layer, Target

__all__ = ["Adapter", "Booster", "Slots"]

Pair = tuple[Tensor, Tensor]


class Slots(nn.Module):
    """The factor Parameters, at home in the user's model but absent from every ``state_dict``.

    Layers of unequal shape share a slot: pair j of every slot is as large as the largest j-th
    target (targets ordered by shape), and a smaller target uses a corner of it.

    Args:
        layers: All layers that may be drawn.
        num_slots: L_s, how many are drawn at a time.
        r: The rank.
    """

    def __init__(self, layers: Sequence[Layer], num_slots: int, r: int) -> None:
        super().__init__()
        weights = [target.weight for layer in layers for target in layer.targets]
        dtype = torch.float32
        for weight in weights:
            dtype = torch.promote_types(dtype, weight.dtype)
        self.shapes = _pair_shapes(layers)
        self.num_slots = num_slots
        for slot in range(num_slots):
            for pair, (rows, columns) in enumerate(self.shapes):
                A = torch.zeros(r, columns, dtype=dtype, device=weights[0].device)
                B = torch.zeros(rows, r, dtype=dtype, device=weights[0].device)
                self.register_parameter(f"A{slot}_{pair}", nn.Parameter(A))
                self.register_parameter(f"B{slot}_{pair}", nn.Parameter(B))

    def pair(self, slot: int, pair: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the Parameters (A, B) of one pair."""
        A, B = self._parameters[f"A{slot}_{pair}"], self._parameters[f"B{slot}_{pair}"]
        assert A is not None and B is not None
        return A, B

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


def _pair_shapes(layers: Sequence[Layer]) -> list[tuple[int, int]]:
    ordered = [[target.shape for target in _by_shape(layer.targets)] for layer in layers]
    longest = max(len(shapes) for shapes in ordered)
    columns = [[shapes[j] for shapes in ordered if j < len(shapes)] for j in range(longest)]
    return [
        (max(rows for rows, _ in shapes), max(cols for _, cols in shapes)) for shapes in columns
    ]


def _by_shape(targets: Iterable[Target]) -> list[Target]:
    return sorted(targets, key=lambda target: target.shape, reverse=True)


@dataclass(eq=False)
class Tracing:
    """Whether a compiler has traced an adapter, shared by all of a model's adapters."""

    seen: bool = False


class Adapter:
    """A target's place in the forward pass: a hook that adds s·(x Aᵀ)Bᵀ while a pair is bound."""

    def __init__(self, target: Target, r: int, s: float, dropout: float, tracing: Tracing) -> None:
        self.target = target
        self.r = r
        self.s = s
        self.dropout = dropout
        self.tracing = tracing
        self.bound: tuple[nn.Parameter, nn.Parameter] | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The bound Parameters (A, B)."""
        assert self.bound is not None
        return self.bound

    @property
    def factors(self) -> Pair:
        """The bound pair in the target's own shape: A (r, in), B (out, r)."""
        A, B = self.parameters
        rows, columns = self.target.shape
        fits = A.shape == (self.r, columns) and B.shape == (rows, self.r)
        return (A, B) if fits else (A[: self.r, :columns], B[:rows, : self.r])

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
        num_slots: L_s.
        r: The rank.
        s: The scaling.
        dropout: Probability of dropping an input of A in training.
    """

    layers: Sequence[Layer]
    num_slots: int
    r: int
    s: float
    dropout: float
    drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = Slots(self.layers, self.num_slots, self.r)
        self.tracing = Tracing()
        self.adapters = [
            [
                Adapter(target, self.r, self.s, self.dropout, self.tracing)
                for target in _by_shape(layer.targets)
            ]
            for layer in self.layers
        ]
        self._restore: list[tuple[nn.Parameter, bool]] = []
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
        self._restore = [(p, p.requires_grad) for p in model.parameters()]
        for parameter, _ in self._restore:
            parameter.requires_grad_(False)
            parameter.grad = None
        for module in saved:
            module.requires_grad_(True)
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
        for parameter, requires_grad in self._restore:
            parameter.requires_grad_(requires_grad)
        self._restore = []
        if self.tracing.seen or self._static:
            torch.compiler.reset()

    def bind(self, drawn: list[int]) -> None:
        """Lend the slots to the drawn layers, in order."""
        self._look_for_compilers()
        for adapter in self.active:
            adapter.bound = None
        for adapter in self.active if not self._static else ():
            adapter.unhook()
        self.drawn = drawn
        for slot, layer in enumerate(drawn):
            for pair, adapter in enumerate(self.adapters[layer]):
                adapter.bound = self.slots.pair(slot, pair)
                adapter.hook()

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Make every A fresh, Kaiming-uniform as LoRA's, and every B zero."""
        factors = self.factors
        for factor in factors:
            factor.zero_()
        views = [adapter.factors[0] for adapter in self.active]
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
