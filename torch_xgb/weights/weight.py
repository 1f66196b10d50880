"""A Parameter that is merged into, as the matrix W (out, in) it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from torch_xgb.formulas.entries import widest
from torch_xgb.processes import total
from torch_xgb.weights.places import Piece, Place, chunks, place_of

__all__ = ["Weight"]


@dataclass(frozen=True, eq=False)
class Weight:
    """A Parameter that is merged into: a linear map's weight or bias, or one that was named.

    Attributes:
        name: Its dotted name in the model, e.g. ``"encoder.layer.3.output.dense.weight"``.
        modules: The modules holding it: one, or several when it is tied among linear maps.
        attribute: Its name in them: "weight" or "bias", or that of a bare Parameter.
        transposed: Whether it is stored (in, out), as in transformers' ``Conv1D``.
        bare: Whether its modules are no linear maps, and read it in a way of their own. It may be a
            stack of E matrices then, as mixtures of experts have them.
    """

    name: str
    modules: tuple[nn.Module, ...]
    attribute: str
    transposed: bool = False
    bare: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """The stored Parameter, looked up anew: ``load_state_dict(assign=True)`` replaces it.

        Raises:
            RuntimeError: If its module computes with something else, as under a parametrisation.
        """
        parameter = self.modules[0]._parameters.get(self.attribute)
        if parameter is None:
            raise RuntimeError(
                f"{self.name} is no Parameter of its module any more, but computed from other "
                "tensors (pruning, weight_norm, spectral_norm, or another parametrisation): take "
                "that off first, or build the optimizer after it and leave the module out with "
                "exclude_modules"
            )
        return parameter

    @property
    def place(self) -> Place:
        """How the Parameter is kept here: whole, or in pieces over several processes."""
        return place_of(self.parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) of the whole weight; of a bias (out, 1), of a stack (E, out, in)."""
        shape = self.place.shape
        if len(shape) == 1:
            return (*shape, 1)
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Of the whole matrix that ``pieces`` are of."""
        *above, rows, columns = self.shape if self.turned or self.is_bias else self.place.shape
        return math.prod(above) * rows, columns

    @property
    def is_bias(self) -> bool:
        """Whether it is a vector, added to an output."""
        return len(self.place.shape) == 1

    @property
    def turned(self) -> bool:
        """Whether pieces are of W and not of the Parameter as stored, which is Wᵀ.

        A stack's are as stored: rows of its members transposed are no rows of memory.
        """
        return self.transposed and len(self.place.shape) == 2

    def pieces(self, kept: Tensor | None = None) -> list[Piece]:
        """Return what this process keeps, as rectangles of W (out, in) in the Parameter's memory.

        Those of a stack are of its members below one another, each as it is stored.

        Args:
            kept: Another tensor laid out like what is kept, to be cut alike.
        """
        place = self.place
        pieces = place.pieces(place.local if kept is None else kept)
        return [piece.T for piece in pieces] if self.turned else pieces

    @property
    def matrix(self) -> Tensor:
        """All that ``pieces`` are of, where it is kept whole; a bias as a column (out, 1)."""
        (piece,) = self.pieces()
        return piece.values

    def project(self, A: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return A W of shape (r, in): of a sharded weight by one small all-reduce.

        Args:
            A: Shape ``(r, out)``.
            kept: As of ``pieces``.
        """
        place = self.place
        wide = A.to(widest(A.device))  # whose products no setting rounds
        u = wide.new_zeros(len(A), self.shape[-1])
        for piece in self.pieces(kept):
            for part in chunks(piece):
                u[:, part.columns] += wide[:, part.rows] @ part.values.to(wide)
        return total([(u, place.group)])[0].to(A)
