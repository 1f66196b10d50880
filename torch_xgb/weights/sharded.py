"""Weights kept as DTensors, each process a part, by FSDP2, tensor parallelism, or both.

Registered as a ``Place`` on import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor, distributed, nn

from torch_xgb.formulas.entries import as_matrix
from torch_xgb.processes import everyone
from torch_xgb.weights.dtensors import is_dtensor, local, whole
from torch_xgb.weights.places import Piece, register_place
from torch_xgb.weights.ranges import Range, Way, cut, taken

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

__all__ = ["Sharded", "is_cut", "is_parallel", "is_sharded", "settle", "shards", "training_group"]


@dataclass(frozen=True)
class Sharded:
    """A DTensor that is sharded or replicated along each dimension of its mesh.

    FSDP2 shards a dimension of a Parameter along one of the mesh's, hybrid sharding replicates
    along another one, and tensor parallelism shards or replicates along one of its own.

    Raises:
        ValueError: If it is shared out in another way.
    """

    parameter: DTensor

    def __post_init__(self) -> None:
        kept = tuple(sum(len(r) for r in ranges) for ranges in self.ranges)
        known = all(p.is_replicate() or shards(p) for p in self.parameter.placements)
        if not known or kept != tuple(self.local.shape):
            raise ValueError(
                f"a weight of shape {self.shape} is placed as {self.parameter.placements}, of "
                f"which {tuple(self.local.shape)} is here, and merges cannot follow that: FSDP2's "
                "fully_shard, parallelize_module, and both on a mesh of several dimensions are "
                "served, where each process keeps what torch.chunk would give it"
            )

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(self.parameter.shape)

    @property
    def local(self) -> Tensor:  # noqa: D102
        return local(self.parameter.detach())

    @property
    def group(self) -> ProcessGroup | None:  # noqa: D102
        mesh, placements = self.parameter.device_mesh, self.parameter.placements
        return _group_over(mesh, [i for i, p in enumerate(placements) if shards(p)])

    @property
    def ranges(self) -> tuple[Sequence[Range], ...]:
        """What is kept of each dimension, in the order it is kept in."""
        mesh, placements = self.parameter.device_mesh, self.parameter.placements
        ways: list[list[Way]] = [[] for _ in self.shape]
        for i, placement in enumerate(placements):
            if shards(placement):
                split = getattr(placement, "split_factor", 1)
                ways[placement.dim].append((mesh.size(i), mesh.get_local_rank(i), split))
        return tuple(cut(size, tuple(way)) for size, way in zip(self.shape, ways, strict=True))

    def pieces(self, kept: Tensor) -> list[Piece]:  # noqa: D102
        if not kept.numel():
            return []
        *above, rows, columns = self.ranges if kept.ndim > 1 else (*self.ranges, [range(1)])
        if above:  # a stack of matrices, those below one another
            height = self.shape[1]
            rows = _below(above[0], rows, height)
        matrix, found, top = as_matrix(kept), [], 0
        for of_rows in rows:
            left = 0
            for of_columns in columns:
                values = matrix[top : top + len(of_rows), left : left + len(of_columns)]
                found.append(Piece(_slice(of_rows), _slice(of_columns), values))
                left += len(of_columns)
            top += len(of_rows)
        return found

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
        for dim, ranges in enumerate(self.ranges):
            stored = taken(stored, dim, ranges)
        return stored

    def changed(self) -> None:  # noqa: D102
        pass


register_place(is_dtensor, Sharded)


def is_sharded(model: nn.Module) -> bool:
    """Tell a model that FSDP2's ``fully_shard`` has been applied to, whole or in part."""
    return any(True for _ in _fsdp_modules(model))


def is_parallel(model: nn.Module) -> bool:
    """Tell a model whose weights tensor parallelism cuts, FSDP2's cut of each not counted."""
    of_fsdp = int(is_sharded(model))
    return any(_cuts(p) > of_fsdp for p in model.parameters())


def is_cut(model: nn.Module, parameter: nn.Parameter) -> bool:
    """Tell a Parameter of a model that tensor parallelism cuts."""
    return _cuts(parameter) > int(is_sharded(model))


def training_group(model: nn.Module) -> ProcessGroup | None:
    """Return the processes that train a model together, whose gradients are averaged.

    Those it is shared out over by one mesh of one dimension, else all; None where there is only
    one. Where tensor parallelism has a dimension of a larger mesh, the others are for copies.
    """
    meshes = list(dict.fromkeys(p.device_mesh for p in model.parameters() if is_dtensor(p)))
    if len(meshes) != 1 or meshes[0].ndim > 1 or (is_parallel(model) and _is_slice(meshes[0])):
        return everyone()
    return meshes[0].get_group()


def settle(model: nn.Module) -> None:
    """Make every Parameter the one that is kept: FSDP2 may leave gathered ones in its place."""
    for module in _fsdp_modules(model):
        module.reshard()  # type: ignore[operator]


def _fsdp_modules(model: nn.Module) -> Iterator[nn.Module]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        yield from (m for m in model.modules() if isinstance(m, fsdp.FSDPModule))


def _cuts(parameter: nn.Parameter) -> int:
    return sum(map(shards, parameter.placements)) if is_dtensor(parameter) else 0


def shards(placement: object) -> TypeGuard[Shard]:
    """Tell a placement by which each process keeps a part."""
    return type(placement).__name__ in ("Shard", "_StridedShard")


def _is_slice(mesh: DeviceMesh) -> bool:
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh().ndim > mesh.ndim
    from torch.distributed.device_mesh import _mesh_resources  # before torch 2.10

    return bool(_mesh_resources.get_root_mesh(mesh).ndim > mesh.ndim)


def _group_over(mesh: DeviceMesh, dims: Sequence[int]) -> ProcessGroup | None:
    """Return the processes along some dimensions of a mesh."""
    if len(dims) < 2:
        return mesh.get_group(dims[0]) if dims else None
    if len(dims) == mesh.ndim and mesh.size() == distributed.get_world_size():
        return everyone()
    names = mesh.mesh_dim_names
    if len(dims) < mesh.ndim and names is not None:
        mesh = mesh[tuple(names[i] for i in dims)]
    return mesh._flatten().get_group()


def _slice(positions: Range) -> slice:
    return slice(positions.start, positions.stop)


def _below(members: Sequence[Range], rows: Sequence[Range], height: int) -> list[Range]:
    """Return the rows of a stack's matrix that are those of each of some members."""
    if sum(map(len, rows)) == height:
        return [range(m.start * height, m.stop * height) for m in members]
    each = ((m * height, r) for some in members for m in some for r in rows)
    return [range(first + r.start, first + r.stop) for first, r in each]
