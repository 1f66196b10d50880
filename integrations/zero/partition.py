"""A Parameter under ZeRO-3: each process keeps one run of its entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, distributed

from torch_xgb.formulas.entries import as_matrix
from torch_xgb.weights.places import Piece, flat_pieces, register_place, whole_piece

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Partition", "is_partitioned"]


def is_partitioned(parameter: Tensor) -> bool:
    """Tell a Parameter that ZeRO-3 has shared out."""
    return getattr(parameter, "ds_tensor", None) is not None


@dataclass(frozen=True)
class Partition:
    """A Parameter that ZeRO-3 has shared out: flat, in row-major order, padded at the end.

    Process k of n keeps the entries from k·⌈numel / n⌉ on, in ``ds_tensor``; the Parameter itself
    is empty but while its module computes. Small ones stay gathered between steps
    (``stage3_param_persistence_threshold``).

    Attributes:
        parameter: With the ``ds_`` attributes that DeepSpeed gives it.
    """

    parameter: Any

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(self.parameter.ds_shape)

    @property
    def local(self) -> Tensor:  # noqa: D102
        kept: Tensor = self.parameter.ds_tensor.data
        return kept

    @property
    def group(self) -> ProcessGroup | None:  # noqa: D102
        group: ProcessGroup = self.parameter.ds_process_group
        return group

    def pieces(self, kept: Tensor) -> list[Piece]:
        """Cut a tensor laid out like ``local``, or a gathered one, into rectangles."""
        if tuple(kept.shape) != self.shape:
            return flat_pieces(kept, self.shape, self._start)
        return [whole_piece(as_matrix(kept))]

    def store(self, kept: Tensor) -> Tensor:  # noqa: D102
        return kept  # a file a process, as DeepSpeed writes them

    def part(self, stored: Tensor) -> Tensor:  # noqa: D102
        if tuple(stored.shape) != self.shape:
            return stored
        own = stored.reshape(-1)[self._start : self._start + self.local.numel()]
        part = self.local.new_zeros(self.local.shape, dtype=stored.dtype, device=stored.device)
        part[: own.numel()] = own
        return part

    def changed(self) -> None:
        """Drop the gathered copy of a small Parameter; its next use gathers it anew."""
        if self.parameter.ds_status == ZeroParamStatus.AVAILABLE:
            self.parameter.partition()

    @property
    def _start(self) -> int:
        """Where the own entries begin."""
        return distributed.get_rank(self.group) * self.local.numel()


register_place(is_partitioned, Partition)
