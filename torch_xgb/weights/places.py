"""Where a weight is kept: whole in every process, or shared out in pieces over several.

A merge adds a product L R to a weight, and any rectangle of it needs only L's rows and R's columns
there: whoever keeps a piece of W merges it alone, without communication. What differs between ways
of sharing out is small, and is all a ``Place`` knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from torch_xgb.formulas.entries import as_matrix, row_chunks
from torch_xgb.processes import everyone
from torch_xgb.weights.dtensors import whole

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Piece",
    "Place",
    "Whole",
    "chunks",
    "flat_pieces",
    "is_plain",
    "place_of",
    "register_place",
    "shard_group",
    "whole_piece",
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
    """A stored Parameter as one process keeps it.

    A bias counts as a matrix of one column, a stack of matrices as those below one another.
    """

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
        return [whole_piece(as_matrix(kept))]

    def store(self, kept: Tensor) -> Tensor:  # noqa: D102
        return kept

    def part(self, stored: Tensor) -> Tensor:  # noqa: D102
        return whole(stored)

    def changed(self) -> None:  # noqa: D102
        pass


def whole_piece(matrix: Tensor) -> Piece:
    """Return a matrix as the one piece it is."""
    return Piece(slice(0, matrix.shape[0]), slice(0, matrix.shape[1]), matrix)


def chunks(piece: Piece) -> Iterator[Piece]:
    """Cut a piece into some of few rows, which fit a small temporary."""
    for rows in row_chunks(piece.values):
        values = piece.values[rows]
        start = piece.rows.start + rows.start
        yield Piece(slice(start, start + len(values)), piece.columns, values)


def flat_pieces(kept: Tensor, shape: Sequence[int], start: int) -> list[Piece]:
    """Cut a run of a matrix's entries, in row-major order, into at most three rectangles.

    Args:
        kept: One-dimensional; entries beyond the matrix's end are padding.
        shape: Of the stored Parameter, one to three dimensions.
        start: The position of the first entry in the whole.
    """
    columns = shape[-1] if len(shape) > 1 else 1
    end = min(start + kept.numel(), math.prod(shape))
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
    """Return how a Parameter is kept: in a way that is registered, or else whole."""
    for applies, place in _PLACES:
        if applies(parameter):
            return place(parameter)
    return Whole(parameter)


def is_plain(parameter: Tensor) -> bool:
    """Tell a Parameter that is a tensor like any other, or kept in a way that is registered."""
    return type(parameter) is nn.Parameter or any(applies(parameter) for applies, _ in _PLACES)


def shard_group(parameters: Sequence[Tensor]) -> ProcessGroup | None:
    """Return the processes that share out any of the Parameters; None if this one keeps them.

    All of them, if some are shared out over others than the rest.
    """
    groups = {id(group): group for p in parameters if (group := place_of(p).group) is not None}
    return next(iter(groups.values()), None) if len(groups) < 2 else everyone()
