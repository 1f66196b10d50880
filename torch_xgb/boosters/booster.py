"""The factor Parameters and their place in the model: attach, bind, reset, detach.

A booster is new values, not new objects. ``Slots`` owns a fixed set of pairs, as many of
each shape as a draw can need; binding a booster lends them to the drawn layers' ``Adapter``s, and
resetting it re-fills them. Everything that holds on to Parameters (param_groups, schedulers, DDP's
buckets, optimizer state) keeps the same ones from the first booster to the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_xgb.boosters.accumulator import Custody, accumulator_of
from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.compilers import Compilers, Tracing
from torch_xgb.boosters.forms import Form
from torch_xgb.boosters.freeze import Freeze
from torch_xgb.boosters.owner import Owner, claimed
from torch_xgb.boosters.pair import Pair
from torch_xgb.boosters.reach import Reach
from torch_xgb.boosters.readers import Readers
from torch_xgb.boosters.slots import Lent, Slots
from torch_xgb.checks import positive_integer, probability
from torch_xgb.formulas.lowrank import kaiming_bound
from torch_xgb.formulas.streams import by
from torch_xgb.targets.layers import Layer
from torch_xgb.weights.own import require_own
from torch_xgb.weights.transfers import sent

__all__ = ["Booster"]


@dataclass(eq=False)
class Booster:
    """The slots, the adapters of every layer, and which of them the active booster holds.

    Args:
        model: What they are attached to.
        layers: All layers that may be drawn.
        num_layers: L_s, how many are drawn at a time, at most.
        r: The highest rank.
        form: What a pair does.
        dropout: Probability of dropping an input of A in training.
        partial: Whether a call of the model may reach none of what is drawn.
        accumulator_rank: Of what is merged beside quantised weights.

    Attributes:
        drawn: Which layers the active booster holds.
        named: The factors lent to them, each under its target's name.
    """

    model: nn.Module
    layers: Sequence[Layer]
    num_layers: int
    r: int
    form: Form
    dropout: float
    partial: bool = False
    accumulator_rank: int = 32
    drawn: list[int] = field(default_factory=list)
    named: list[tuple[str, nn.Parameter]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dropout = probability("lora_dropout", self.dropout)
        self.slots = Slots(self.layers, self.num_layers, partial(self.form.shapes, r=self.r))
        # Held here as well: whoever wraps the model may register something else in their places.
        self.factors: list[nn.Parameter] = list(self.slots.parameters())
        tracing = Tracing()
        self.adapters = [
            [Adapter(target, self.form, self.dropout, tracing) for target in layer.targets]
            for layer in self.layers
        ]
        self.compilers = Compilers(tracing, self.every_adapter)
        self.owner = Owner()
        self.custody = Custody(self.owner)
        self._accumulate()
        self.freeze = Freeze(self.owner, self.factors)
        self.readers = Readers(self.every_adapter)
        self._reach = Reach(self.factors)
        self._ties = False

    @property
    def lent(self) -> list[nn.Parameter]:
        """The factor Parameters that the active booster uses."""
        return [factor for _, factor in self.named]

    @property
    def idle(self) -> list[nn.Parameter]:
        """Those that it does not use, having fewer layers or others than there is room for."""
        lent = {id(factor) for factor in self.lent}
        return [factor for factor in self.factors if id(factor) not in lent]

    @property
    def active(self) -> list[Adapter]:
        """The adapters of the drawn layers."""
        return self.of(self.drawn)

    def of(self, layers: Iterable[int]) -> list[Adapter]:
        """The adapters of some layers."""
        return [adapter for layer in layers for adapter in self.adapters[layer]]

    @property
    def active_layers(self) -> tuple[str, ...]:
        """Names of the drawn layers."""
        return tuple(self.layers[i].name for i in self.drawn)

    @property
    def active_pairs(self) -> dict[str, Pair[Tensor]]:
        """The pairs lent to them by target, at the rank in use."""
        return {adapter.target.name: adapter.pair for adapter in self.active}

    @property
    def every_adapter(self) -> list[Adapter]:
        """The adapters of all layers."""
        return [adapter for layer in self.adapters for adapter in layer]

    @property
    def beside(self) -> dict[str, Adapter]:
        """The adapters of targets beside whose weights merges go, by their names."""
        return {a.target.name: a for a in self.every_adapter if a.target.beside}

    def attach(self, saved: Iterable[nn.Module]) -> None:
        """Freeze the model but for the ``saved`` modules, and move the slots in.

        Their home is a target: a linear map has no other children, and unlike an ``nn.Sequential``,
        or any root that walks through its children, it never calls one.
        """
        weights = [weight for adapter in self.every_adapter for weight in adapter.weights]
        merged = [(module, weight.attribute) for weight in weights for module in weight.modules]
        self.freeze.attach(self.model, saved, merged)
        self._home.add_module("boosters", self.slots)
        for adapter in self.beside.values():
            adapter.accumulator.attach(adapter.target.modules)  # type: ignore[union-attr]
        claimed()[self.model] = self.owner
        self.readers.attach(self.model)
        if self.partial:
            self._reach.attach(self.model)
        self.compilers.attach(self.model, guarded=self.freeze.tells)

    def reclaim(self) -> None:
        """Move the factors in again, if sharding the model has put others in their places.

        ``fully_shard`` takes every Parameter it finds. What it took stays with the slots it found
        it in, which leave the model: nothing reads them any more.
        """
        if all(a is b for a, b in zip(self.slots.parameters(), self.factors, strict=True)):
            return
        self.slots = self.slots.with_parameters(self.factors)
        self._home.add_module("boosters", self.slots)

    def before_step(self, others: Iterable[dict[str, Any]], *, whole: bool) -> None:
        """Look whether anybody has a hand in what is trained.

        Args:
            others: The base's groups beside the factors'.
            whole: Whether in all of the model, and not just in what is drawn.

        Raises:
            RuntimeError: As ``require_own``, ``Readers`` and ``Freeze`` do. Nothing is changed.
        """
        self.readers.before_step()
        self.freeze.before_step(self.model, others)
        if not self.partial and any(factor.grad is None for factor in self.lent):
            whole = True  # there may be a cause that can be named
        adapters = self.every_adapter if whole else self.active
        weights = [weight for adapter in adapters for weight in adapter.weights]
        require_own(weights, self.model if whole else None)

    def set_apart(self) -> None:
        """Move the slots out of the model, where somebody would take or shard what he finds in it.

        The adapters go on computing with them.
        """
        self._home._modules.pop("boosters", None)
        self.freeze.set_apart()

    def detach(self) -> None:
        """Take everything off the model and give ``requires_grad`` back.

        What was merged beside a weight stays, as the model computes with it.
        """
        for adapter in self.every_adapter:
            adapter.unhook()
            adapter.give_back()
            if adapter.accumulator is not None and not adapter.accumulator.used:
                adapter.accumulator.detach(adapter.target.modules)
        self.custody.leave()
        self.drawn, self.named = [], []
        self._home._modules.pop("boosters", None)
        self.freeze.detach()
        self.readers.detach()
        self._reach.detach()
        claimed().pop(self.model, None)
        self.compilers.detach()

    def lots(
        self, drawn: Iterable[int], values: Sequence[Tensor] | None = None
    ) -> list[tuple[Adapter, Lent]]:
        """Return the adapters of some layers with the pairs that binding them would lend.

        Args:
            drawn: Which layers.
            values: Pairs made of these instead, in the order of ``factors``.
        """
        slots = self.slots
        if values is not None:
            slots = slots.with_parameters(nn.Parameter(v, requires_grad=False) for v in values)
        adapters = self.of(drawn)
        return list(zip(adapters, slots.lend(a.target for a in adapters), strict=True))

    def bind(self, drawn: list[int], r: int, s: float) -> None:
        """Lend the slots to the drawn layers, in order, for boosters of rank r and scaling s."""
        self.compilers.before_bind()
        for adapter in self.active:
            adapter.give_back()
            if not self.compilers.served:
                adapter.unhook()
        self.drawn = drawn
        self.named = []
        for adapter, lent in self.lots(drawn):
            adapter.take(lent, r, s)
            self.named += [(adapter.target.name, factor) for factor in lent.parameters]
        for factor in self.factors:
            factor.grad = None  # what it was lent to before is no reason to step
        self.tie_idle(self._ties)

    def tie_idle(self, ties: bool) -> None:
        """Have the idle factors take part in every backward pass, or not.

        Whoever averages gradients of all Parameters waits for each of them in every process.
        """
        self._ties = ties
        for adapter in self.active:
            adapter.idle = ()
        if ties and self.active:
            self.active[0].idle = tuple(self.idle)

    def drop_idle_gradients(self) -> None:
        """Leave none to the base: a factor that nobody uses is not stepped."""
        for factor in self.idle:
            factor.grad = None

    @torch.no_grad()
    def reset(self, generator: torch.Generator, left: Iterable[Adapter] = ()) -> None:
        """Make every A fresh, Kaiming-uniform as LoRA's, and every B and b zero.

        Args:
            generator: Draws, for each of the active booster's pairs.
            left: Whose pairs are left as they are; not all of them.
        """
        spared = {id(factor) for adapter in left for factor in adapter.parameters}
        factors: list[Tensor] = [factor for factor in self.factors if id(factor) not in spared]
        torch._foreach_zero_(factors)
        views: list[Tensor] = [adapter.pair.A for adapter in self.active]
        size = sum(A.numel() for A in views)
        noise = torch.rand(size, dtype=self.factors[0].dtype, **by(generator))
        noise.mul_(2).sub_(1)
        for A, drawn in zip(views, noise.split([A.numel() for A in views]), strict=True):
            drawn.mul_(kaiming_bound(A.shape[-1]))
        filled = sent(noise, self.factors[0].device).split([A.numel() for A in views])
        fresh = [i for i, a in enumerate(self.active) if id(a.parameters.A) not in spared]
        values = [filled[i].view_as(views[i]) for i in fresh]
        torch._foreach_copy_([views[i] for i in fresh], values)

    def _accumulate(self) -> None:
        """Give each target beside whose weight merges go what they go into."""
        rank = positive_integer("accumulator_rank", self.accumulator_rank)
        if self.beside and rank < self.r:
            raise ValueError(
                f"accumulator_rank must be at least r, as a sum of boosters has no room for one "
                f"otherwise, got {rank} and r={self.r}"
            )
        for adapter in self.beside.values():
            target, like = adapter.target, self.factors[0]
            adapter.accumulator = accumulator_of(
                target.modules, target.shape, rank, like.detach(), self.custody
            )

    @property
    def _home(self) -> nn.Module:
        targets = [target for layer in self.layers for target in layer.targets]
        return next((t for t in targets if not t.weight.bare), targets[0]).modules[0]
