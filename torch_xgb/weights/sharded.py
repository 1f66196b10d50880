"""FSDP2: weights kept as DTensors, each process a part; registered as a ``Place`` on import."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from torch_xgb.formulas.entries import as_matrix
from torch_xgb.processes import everyone
from torch_xgb.weights.dtensors import is_dtensor, local, whole
from torch_xgb.weights.places import Piece, register_place

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

__all__ = ["Sharded", "is_sharded", "settle", "training_group"]


@dataclass(frozen=True)
class Sharded:
    """A DTensor sharded along one of its dimensions, as FSDP2 keeps Parameters.

    On a mesh of two dimensions (hybrid sharding) the other one replicates.

    Raises:
        ValueError: If it is shared out in another way.
    """

    parameter: DTensor

    def __post_init__(self) -> None:
        kinds = [type(placement).__name__ for placement in self.parameter.placements]
        if kinds.count("Shard") != 1 or set(kinds) - {"Shard", "Replicate"}:
            raise ValueError(
                f"a weight is placed as {self.parameter.placements}; FSDP2's fully_shard, with or "
                "without replication over a second mesh dimension, is supported, tensor "
                "parallelism is not"
            )

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(self.parameter.shape)

    @property
    def local(self) -> Tensor:  # noqa: D102
        return local(self.parameter.detach())

    @property
    def group(self) -> ProcessGroup | None:  # noqa: D102
        return self.parameter.device_mesh.get_group(self._sharding)

    def pieces(self, kept: Tensor) -> list[Piece]:  # noqa: D102
        if not kept.numel():
            return []
        matrix, start, dim = as_matrix(kept), self._start, self._dim
        rows, columns = matrix.shape
        if dim and dim == kept.ndim - 1:
            return [Piece(slice(0, rows), slice(start, start + columns), matrix)]
        below = math.prod(self.shape[dim + 1 : -1])  # rows of the matrix in one of the dimension
        run, apart = kept.shape[dim] * below, self.shape[dim] * below
        begins = (i * apart + start * below for i in range(rows // run))
        return [
            Piece(slice(begin, begin + run), slice(0, columns), values)
            for begin, values in zip(begins, matrix.split(run), strict=True)
        ]

    def store(self, kept: Tensor) -> Tensor:  # noqa: D102
        own = self.parameter
        stored: Tensor = type(own).from_local(
            kept, own.device_mesh, own.placements, shape=own.shape, stride=own.stride()
        )
        return stored

    def part(self, stored: Tensor) -> Tensor:  # noqa: D102
        if is_dtensor(stored):
            if stored.placements == self.parameter.placements:
                return stored.to_local()
            stored = whole(stored)
        length = self.local.shape[self._dim]
        return stored.narrow(self._dim, self._start if length else 0, length)

    def changed(self) -> None:  # noqa: D102
        pass

    @property
    def _sharding(self) -> int:
        """Which dimension of the mesh shards."""
        return [type(p).__name__ for p in self.parameter.placements].index("Shard")

    @property
    def _dim(self) -> int:
        """Which dimension of the Parameter is sharded."""
        dim: int = getattr(self.parameter.placements[self._sharding], "dim")  # noqa: B009
        return dim

    @property
    def _start(self) -> int:
        """Where the local part begins: DTensor cuts like ``torch.chunk``."""
        size = self.parameter.shape[self._dim]
        processes = self.parameter.device_mesh.size(self._sharding)
        rank = self.parameter.device_mesh.get_local_rank(self._sharding)
        return min(size, rank * -(-size // processes))


register_place(is_dtensor, Sharded)


def is_sharded(model: nn.Module) -> bool:
    """Tell a model that FSDP2's ``fully_shard`` has been applied to, whole or in part."""
    return any(True for _ in _fsdp_modules(model))


def training_group(model: nn.Module) -> ProcessGroup | None:
    """Return the processes that train a model together, whose gradients are averaged.

    Those it is sharded over by a mesh of one dimension, else all; None where there is only one.
    """
    meshes = [p.device_mesh for p in model.parameters() if is_dtensor(p)]
    return meshes[0].get_group() if meshes and meshes[0].ndim == 1 else everyone()


def settle(model: nn.Module) -> None:
    """Make every Parameter the one that is kept: FSDP2 may leave gathered ones in its place."""
    for module in _fsdp_modules(model):
        module.reshard()  # type: ignore[operator]


def _fsdp_modules(model: nn.Module) -> Iterator[nn.Module]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        yield from (m for m in model.modules() if isinstance(m, fsdp.FSDPModule))
