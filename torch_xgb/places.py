"""Where a weight is kept: whole in every process, or shared out in pieces over several.

A merge adds a product L R to a weight, and any rectangle of it needs only L's rows and R's columns
there: whoever keeps a piece of W merges it alone, without communication. What differs between ways
of sharing out is small, and is all a ``Place`` knows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

__all__ = [
    "Piece",
    "Place",
    "Sharded",
    "Whole",
    "flat_pieces",
    "gather",
    "is_dtensor",
    "is_plain",
    "is_sharded",
    "local",
    "place_of",
    "register_place",
    "settle",
    "sharing_group",
    "sharing_processes",
    "total",
]


@dataclass(frozen=True)
class Piece:
    """A rectangle of a matrix.

    Attributes:
        rows: Which rows of the matrix.
        columns: Which columns.
        values: Its entries ``(rows, columns)``, sharing the memory they are kept in.
    """

    rows: slice
    columns: slice
    values: Tensor

    @property
    def T(self) -> Piece:  # noqa: N802
        """The same entries of the transposed matrix."""
        return Piece(self.columns, self.rows, self.values.T)


class Place(Protocol):
    """A stored Parameter as one process keeps it. A bias counts as a matrix of one column."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole Parameter, as stored."""

    @property
    def local(self) -> Tensor:
        """What this process keeps of it."""

    @property
    def group(self) -> ProcessGroup | None:
        """The processes it is shared out over; None if each keeps it whole."""

    def pieces(self, kept: Tensor) -> list[Piece]:
        """Cut a tensor laid out like ``local`` into rectangles of the stored matrix."""

    def store(self, kept: Tensor) -> Tensor:
        """Return a tensor laid out like ``local`` as a checkpoint holds such a Parameter."""

    def part(self, stored: Tensor) -> Tensor:
        """Return what this process keeps of a stored tensor, or of a whole one."""

    def changed(self) -> None:
        """Take note that ``local`` was written to."""


@dataclass(frozen=True)
class Whole:
    """A plain tensor."""

    parameter: Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(self.parameter.shape)

    @property
    def local(self) -> Tensor:  # noqa: D102
        return self.parameter.detach()

    @property
    def group(self) -> ProcessGroup | None:  # noqa: D102
        return None

    def pieces(self, kept: Tensor) -> list[Piece]:  # noqa: D102
        matrix = _matrix(kept)
        return [Piece(slice(0, matrix.shape[0]), slice(0, matrix.shape[1]), matrix)]

    def store(self, kept: Tensor) -> Tensor:  # noqa: D102
        return kept

    def part(self, stored: Tensor) -> Tensor:  # noqa: D102
        return stored.full_tensor() if is_dtensor(stored) else stored

    def changed(self) -> None:  # noqa: D102
        pass


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
        matrix, start = _matrix(kept), self._start
        rows, columns = matrix.shape
        if self._dim == 0:
            return [Piece(slice(start, start + rows), slice(0, columns), matrix)]
        return [Piece(slice(0, rows), slice(start, start + columns), matrix)]

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
            stored = stored.full_tensor()
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


def flat_pieces(kept: Tensor, shape: Sequence[int], start: int) -> list[Piece]:
    """Cut a run of a matrix's entries, in row-major order, into at most three rectangles.

    Args:
        kept: One-dimensional; entries beyond the matrix's end are padding.
        shape: Of the stored Parameter, one or two dimensions.
        start: The position of the first entry in the whole.
    """
    columns = shape[1] if len(shape) > 1 else 1
    end = min(start + kept.numel(), shape[0] * columns)
    pieces, position = [], start
    while position < end:
        row, column = divmod(position, columns)
        whole_rows = (end - position) // columns if column == 0 else 0
        height, width = (
            (whole_rows, columns) if whole_rows else (1, min(columns - column, end - position))
        )
        values = kept[position - start : position - start + height * width].view(height, width)
        pieces.append(Piece(slice(row, row + height), slice(column, column + width), values))
        position += height * width
    return pieces


_PLACES: list[tuple[Callable[[Tensor], bool], Callable[[Any], Place]]] = []


def register_place(applies: Callable[[Tensor], bool], place: Callable[[Any], Place]) -> None:
    """Make another way of keeping Parameters known.

    Args:
        applies: Tells such Parameters.
        place: Makes a Place of one.
    """
    _PLACES.append((applies, place))


def place_of(parameter: Tensor) -> Place:
    """Return how a Parameter is kept."""
    for applies, place in _PLACES:
        if applies(parameter):
            return place(parameter)
    return Sharded(parameter) if is_dtensor(parameter) else Whole(parameter)


def is_plain(parameter: Tensor) -> bool:
    """Tell a Parameter that is a tensor like any other, or kept in a way that is registered."""
    return type(parameter) is nn.Parameter or any(applies(parameter) for applies, _ in _PLACES)


def is_dtensor(tensor: object) -> TypeGuard[DTensor]:
    """Tell a DTensor; none can exist unless somebody has imported the class."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return what this process keeps of a tensor, plain or DTensor."""
    if is_dtensor(tensor):
        kept: Tensor = tensor.to_local()
        return kept
    return tensor


def sharing_group(parameters: Sequence[Tensor]) -> ProcessGroup | None:
    """Return the processes that share out any of the Parameters, or None."""
    return next((g for p in parameters if (g := place_of(p).group) is not None), None)


def total(values: Sequence[tuple[Tensor, ProcessGroup | None]]) -> list[Tensor]:
    """Sum tensors over the processes of their groups, with one all-reduce a group and dtype."""
    result = [value for value, _ in values]
    for group in dict.fromkeys(group for _, group in values if group is not None):
        for dtype in dict.fromkeys(value.dtype for value in result):
            mine = [
                i for i, (value, of) in enumerate(values) if of is group and value.dtype == dtype
            ]
            if not mine:
                continue
            flat = torch.cat([result[i].reshape(-1) for i in mine])
            distributed.all_reduce(flat, group=group)
            parts = flat.split([result[i].numel() for i in mine])
            for i, part in zip(mine, parts, strict=True):
                result[i] = part.view_as(result[i])
    return result


def gather(values: Any, group: ProcessGroup | None) -> list[Any]:  # noqa: ANN401
    """Return what each process of a group holds, in the order of ranks."""
    if group is None:
        return [values]
    everyone: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(everyone, values, group=group)
    return everyone


def is_sharded(model: nn.Module) -> bool:
    """Tell a model that FSDP2's ``fully_shard`` has been applied to, whole or in part."""
    return any(True for _ in _fsdp_modules(model))


def sharing_processes(model: nn.Module) -> ProcessGroup | None:
    """Return the processes whose gradients a sharded model averages; None if that is all."""
    meshes = [p.device_mesh for p in model.parameters() if is_dtensor(p)]
    return meshes[0].get_group() if meshes and meshes[0].ndim == 1 else None


def settle(model: nn.Module) -> None:
    """Make every Parameter the one that is kept: FSDP2 may leave gathered ones in its place."""
    for module in _fsdp_modules(model):
        module.reshard()  # type: ignore[operator]


def _fsdp_modules(model: nn.Module) -> Iterator[nn.Module]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        yield from (m for m in model.modules() if isinstance(m, fsdp.FSDPModule))


def _matrix(stored: Tensor) -> Tensor:
    return stored.unsqueeze(1) if stored.ndim == 1 else stored
