"""A linear map whose weight tensor parallelism cuts: each process adds a part of the pair's share.

Column-wise (W cut by rows) y is cut as W is, and so is B: y_k + s·B_k A x. Row-wise (W cut by
columns) x is cut, and so is A: each process has one addend s·B A_k x_k of the sum that the map's
own all-reduce makes of y. So the pair's share costs none of its own, where the hook comes before
that: under ``parallelize_module``. Where the map's forward makes it, as in transformers, r numbers
a token are summed.

The factors are whole in every process, and so are their gradients, once averaged: what a process
has found is zero beyond its part, or an addend, and counts as often as there are processes.

References:
    Megatron-LM (Shoeybi et al., 2019), section 3: column-wise, then row-wise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_xgb.boosters.pair import Pair
from torch_xgb.formulas.lowrank import add_low_rank
from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.ranges import Range, taken
from torch_xgb.weights.sharded import Sharded, shards

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

__all__ = ["Cut", "cut_of"]


def cut_of(module: nn.Module, attribute: str, transposed: bool) -> Cut | None:
    """Return how a module's weight is cut while it is computed with; None of a plain one.

    Raises:
        RuntimeError: If it is over a mesh of several dimensions.
    """
    W = module._parameters.get(attribute)
    if W is None or not is_dtensor(W):
        return None
    if W.device_mesh.ndim > 1:
        raise RuntimeError(
            f"tensor parallelism cuts a weight over a mesh of {W.device_mesh.ndim} dimensions "
            f"({W.placements}), and boosters follow one: give parallelize_module a mesh of one "
            "dimension, as mesh['tp']; FSDP2 may have another one"
        )
    rows, columns = Sharded(W).ranges
    (laid,) = W.placements
    dim = laid.dim % 2 if shards(laid) else -1
    if transposed:
        rows, columns, dim = columns, rows, 1 - dim if dim >= 0 else dim
    return Cut(W.device_mesh, rows, columns, dim == 0, dim == 1)


@dataclass(frozen=True, eq=False)
class Cut:
    """What of a weight W (out, in) a process keeps.

    Attributes:
        mesh: The processes.
        rows: Of W.
        columns: Of W.
        by_rows: Whether it is cut so.
        by_columns: Whether it is cut so.
    """

    mesh: DeviceMesh
    rows: Sequence[Range]
    columns: Sequence[Range]
    by_rows: bool
    by_columns: bool

    def forward(self, y: Tensor, x: Tensor, pair: Pair[Tensor], s: float) -> Tensor:
        """Return the output with the pair's share.

        Args:
            y: The map's output, as a DTensor, or what a process keeps of it.
            x: Its input, likewise.
            pair: The pair, whole.
            s: The scaling.
        """
        return self._within(y, x, pair, s) if is_dtensor(y) else self._outside(y, x, pair, s)

    def _within(self, y: DTensor, x: Tensor, pair: Pair[Tensor], s: float) -> Tensor:
        """Add to an output that nobody has summed yet."""
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        by_rows, by_columns = self.by_rows, self.by_columns
        given = x if is_dtensor(x) else DTensor.from_local(x, self.mesh, (Replicate(),))
        last = x.ndim - 1
        (laid,) = given.placements
        tokens = type(laid) is Shard and laid.dim != last and not (by_rows or by_columns)
        wanted: Placement = Shard(last) if by_columns else (laid if tokens else Replicate())
        made: Placement = Partial() if by_columns else (Shard(y.ndim - 1) if by_rows else wanted)
        given = given.redistribute(placements=(wanted,))
        x_k = given.to_local(grad_placements=(Partial() if by_rows else wanted,))
        apart = by_rows or by_columns or tokens
        part = Pair(
            self._summed(taken(pair.A, 1, self.columns), apart),
            self._summed(taken(pair.B, 0, self.rows), apart),
        )
        b = pair.b if pair.b is None else self._summed(taken(pair.b, 0, self.rows), apart)
        b = b / self.mesh.size() if b is not None and by_columns else b
        if y.placements == (made,):
            y_k = y.to_local(grad_placements=(Replicate() if by_columns else made,))
        else:  # laid out otherwise: added as DTensors
            y_k = x_k.new_zeros(*x_k.shape[:-1], len(part.B), dtype=y.dtype)
        y_k = add_low_rank(y_k, x_k, part.A, part.B, s)
        y_k = y_k if b is None else y_k + b.to(y_k.dtype)
        share = DTensor.from_local(
            y_k, self.mesh, (made,), run_check=False, shape=y.shape, stride=y.stride()
        )
        return share if y.placements == (made,) else y + share

    def _outside(self, y: Tensor, x: Tensor, pair: Pair[Tensor], s: float) -> Tensor:
        """Add to an output that its module's own forward has laid out: parts show by their width.

        Raises:
            RuntimeError: If it has not as many rows as the input.
        """
        from torch.distributed.tensor import Partial, Replicate

        x = x.full_tensor() if is_dtensor(x) else x
        x_is_part, y_is_part = x.shape[-1] != pair.A.shape[1], y.shape[-1] != len(pair.B)
        if x.shape[:-1] != y.shape[:-1]:
            raise RuntimeError(
                f"the input of a parallel linear map is of shape {tuple(x.shape)} and its output "
                f"of {tuple(y.shape)}: its forward gathers or scatters tokens, and a booster "
                "cannot see which. Leave such modules out with exclude_modules; nothing was trained"
            )
        A = self._summed(taken(pair.A, 1, self.columns), True) if x_is_part else pair.A
        B = self._summed(taken(pair.B, 0, self.rows), True) if y_is_part else pair.B
        h = torch.nn.functional.linear(x, A.to(x.dtype))
        if x_is_part:
            h = self._passed(h, Partial(), Replicate())
        if y_is_part:
            h = self._passed(h, Replicate(), Partial())
        y = y + s * torch.nn.functional.linear(h.to(y.dtype), B.to(y.dtype))
        if pair.b is None:
            return y
        b = self._summed(taken(pair.b, 0, self.rows), True) if y_is_part else pair.b
        return y + b.to(y.dtype)

    def _passed(self, h: Tensor, forward: Placement, backward: Placement) -> Tensor:
        """Sum over the processes in the forward pass, or in the backward pass."""
        from torch.distributed.tensor import DTensor, Replicate

        laid = DTensor.from_local(h, self.mesh, (forward,), run_check=False)
        laid = laid.redistribute(placements=(Replicate(),))
        return laid.to_local(grad_placements=(backward,))

    def _summed(self, factor: Tensor, apart: bool) -> Tensor:
        """Return a factor whose gradient, averaged over the processes, is their sum."""
        size = self.mesh.size()
        if not apart or size == 1:
            return factor
        summed: Tensor = _Times.apply(factor, size)  # type: ignore[no-untyped-call]
        return summed


class _Times(torch.autograd.Function):
    """The same values, with so many times the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, times: int) -> Tensor:  # noqa: ANN401
        ctx.times = times
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return g * ctx.times, None
