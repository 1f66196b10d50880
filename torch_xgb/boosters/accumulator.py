"""What is merged beside a weight that cannot be written to, as a quantised one.

A merge adds s·B A to a low-rank sum L R of bounded rank, and the target computes

    y  →  y + L (R x),

without a gradient of L and R and without keeping x. When the sum has no room left for a pair, it is
recompressed: the best approximation of a lower rank, by QR and SVD, which leaves room for more than
the next pair. Pairs that point the same way add up there before the next one, while a sum cut to
its full rank at every merge would drop each small pair that is new to it.

References:
    Eckart and Young (1936): the truncated SVD is optimal; its error is the norm of the rest.
    Liberty (2013), Simple and deterministic matrix sketching: shrinking when full, by a share.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_xgb.boosters.hooks import calls, unhook
from torch_xgb.boosters.owner import Owner
from torch_xgb.formulas.entries import widest
from torch_xgb.formulas.lowrank import add_low_rank
from torch_xgb.formulas.spectrum import compress
from torch_xgb.weights.product import Product

__all__ = ["Accumulation", "Accumulator", "Custody", "accumulator_of", "require_passing"]

_NAME = "accumulator"  # of the child that a target gets


class Custody:
    """Who else holds what a model's accumulators hold: said when its ``state_dict()`` is taken.

    Args:
        owner: Of the boosters, whose ``state_dict()`` has all of it.

    Attributes:
        saved: Whether it has been written to an adapter's folder since the boosters left.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.saved = False
        self._said = False

    def leave(self) -> None:
        """Be nobody's from now on."""
        self.owner, self.saved = Owner(), False

    def asked(self) -> None:
        """Answer somebody who takes the base for all there is.

        Raises:
            RuntimeError: If nobody else holds what was trained.
        """
        if not self.owner.alive:
            if self.saved:
                return
            raise RuntimeError(
                "state_dict() of a quantised model holds its base alone, and what was trained "
                "beside it would be lost: write it with optimizer.save_adapter(folder), which PEFT "
                "loads onto the base; or have finalize(dequantize=True) make the model one of "
                "plain weights that hold it"
            )
        if not self._said:
            self._said = True
            warnings.warn(
                "state_dict() of a quantised model holds its base alone (and modules trained in "
                "full): what is trained beside it is in optimizer.state_dict(), to resume from, "
                "and in the adapter that optimizer.save_adapter(folder) writes",
                stacklevel=3,
            )


class Accumulator(nn.Module):
    """The sum of the products merged beside a weight W (out, in).

    Args:
        shape: (out, in).
        rank: k, how many columns there is room for; at most min(out, in).
        like: A factor, whose dtype and device it has.
        custody: Who else holds what it holds; one for all of a model's.

    Attributes:
        left: L of shape ``(out, k)``, of which the first ``used`` columns count.
        right: R of shape ``(k, in)``.
        used: How many of them hold something.
    """

    left: Tensor
    right: Tensor

    def __init__(self, shape: tuple[int, ...], rank: int, like: Tensor, custody: Custody) -> None:
        super().__init__()
        rank = min(rank, *shape)
        self.register_buffer("left", like.new_zeros(shape[0], rank), persistent=False)
        self.register_buffer("right", like.new_zeros(rank, shape[1]), persistent=False)
        self.used = 0
        self.custody = custody

    @property
    def rank(self) -> int:
        """How many columns there is room for."""
        return len(self.right)

    @property
    def product(self) -> tuple[Tensor, Tensor]:
        """L and R as far as they are used, sharing their memory."""
        return self.left[:, : self.used], self.right[: self.used]

    def attach(self, modules: Sequence[nn.Module]) -> None:
        """Enter the forward pass of a target's modules, at home in the first."""
        modules[0].add_module(_NAME, self)
        for module in (module for module in modules if not calls(module, self)):
            module.register_forward_hook(self.share, prepend=True, with_kwargs=True)

    def detach(self, modules: Sequence[nn.Module]) -> None:
        """Leave it."""
        modules[0]._modules.pop(_NAME, None)
        for module in modules:
            unhook(module, self)

    def share(
        self,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: Any,  # noqa: ANN401
        y: Tensor | None = None,
    ) -> Tensor:
        """Return a target's output with the sum's share: the hook on its modules."""
        if y is None:  # copied to a module that calls hooks without kwargs
            kwargs, y = {}, kwargs
        assert y is not None
        x = args[0] if args else next(iter(kwargs.values()))
        require_passing(x, y)
        # A compiler gets all columns, the rest being zeros: shapes that grow would be traced anew.
        n = self.rank if torch.compiler.is_compiling() else self.used
        if not n:
            return y
        return add_low_rank(y, x, self.right[:n], self.left[:, :n], 1.0)

    def addition(self, product: Product) -> Accumulation:
        """Return what adds a product once it is told to."""
        return Accumulation(self, product)

    @torch.no_grad()
    def put(self, left: Tensor, right: Tensor) -> None:
        """Hold another sum, by copy; done again, it does the same."""
        used = right.shape[0]
        self.left[:, :used].copy_(left)
        self.right[:used].copy_(right)
        self.left[:, used:].zero_()
        self.right[used:].zero_()
        self.used = used

    def _save_to_state_dict(self, *args: Any) -> None:
        """Save nothing: the keys are the base's; say so if that is not all there is."""
        if self.used:
            self.custody.asked()

    def _load_from_state_dict(self, *args: Any) -> None:
        """Expect nothing."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Accumulator:
        """Follow the model to another device, but not to a lower precision."""
        moved = fn(self.left.new_empty(0))
        fits = moved.dtype == self.left.dtype
        return super()._apply(fn if fits else lambda t: t.to(moved.device), recurse)  # type: ignore


class _State(NamedTuple):
    """What an accumulator is about to hold, and what of it had no room."""

    left: Tensor
    right: Tensor
    dropped: Tensor | None


class Accumulation:
    """Adds a product to an accumulator; an interrupted one goes on, and adds nothing twice.

    Args:
        accumulator: L R.
        product: ΔW.
    """

    def __init__(self, accumulator: Accumulator, product: Product) -> None:
        self._accumulator, self._product = accumulator, product
        self._state: _State | None = None

    @property
    def dropped(self) -> Tensor | None:
        """‖what had no room‖_F / ‖L R + ΔW‖_F; None if everything had."""
        return None if self._state is None else self._state.dropped

    @torch.no_grad()
    def go_on(self) -> None:
        """Begin, or go on where an exception has ended it; done again, it does the same."""
        if self._state is None:
            self._state = self._computed()
        self._accumulator.put(self._state.left, self._state.right)

    def _computed(self) -> _State:
        held, L = self._accumulator, self._accumulator.left
        new = self._product.to(L.device, L.dtype)
        left, right = held.product
        left = torch.cat([left, new.left * new.scale], 1)
        right = torch.cat([right, new.right])
        if len(right) <= held.rank:
            return _State(left, right, None)
        wide = widest(L.device)
        most = min(left.shape[0], right.shape[1])  # a sum of this rank loses nothing
        kept = held.rank if held.rank == most else held.rank - held.rank // 4
        left, right, sigma = compress(left.to(wide), right.to(wide), kept)
        dropped = sigma[kept:].norm() / sigma.norm().clamp(min=torch.finfo(wide).tiny)
        return _State(left.to(L.dtype), right.to(L.dtype), dropped)


def require_passing(x: Tensor, y: Tensor) -> None:
    """Refuse a quantised map that passes no gradient back: what is below would be trained wrongly.

    Raises:
        RuntimeError: If it does not.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    if x.requires_grad and not y.requires_grad:
        raise RuntimeError(
            "a quantised linear map passes no gradient back to its input. bitsandbytes' Linear4bit "
            "does so on CPUs once it was called for an evaluation, which packs its weight for "
            "inference: evaluate a copy (copy.deepcopy(model).eval()), or load the base anew and "
            "resume from optimizer.state_dict()"
        )


def accumulator_of(
    modules: Sequence[nn.Module], shape: tuple[int, ...], rank: int, like: Tensor, custody: Custody
) -> Accumulator:
    """Return a target's accumulator: one that an earlier run has left in the model, or a new one.

    Args:
        modules: The target's.
        shape: As of ``Accumulator``, like those after it.
        rank: The same.
        like: The same.
        custody: The same.

    Raises:
        ValueError: If the earlier one is of another rank.
    """
    found = modules[0]._modules.get(_NAME)
    if not isinstance(found, Accumulator):
        return Accumulator(shape, rank, like, custody)
    if found.rank != min(rank, *shape):
        raise ValueError(
            f"accumulator_rank is {rank}, and an earlier run has left sums of rank {found.rank} "
            f"beside the model's weights: go on with accumulator_rank={found.rank}, or load the "
            "base anew"
        )
    found.custody = custody
    return found
