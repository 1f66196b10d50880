"""A Parameter that is merged into, as the matrix W (out, in) it stands for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from torch_xgb.formulas.entries import widest
from torch_xgb.processes import total
from torch_xgb.weights.places import Piece, Place, chunks, place_of

__all__ = ["Weight"]


@dataclass(frozen=True, eq=False)
class Weight:
    """A Parameter that is merged into: a linear map's weight, or its bias.

    Attributes:
        name: Its dotted name in the model, e.g. ``"encoder.layer.3.output.dense.weight"``.
        modules: The modules holding it: one, or several when it is tied among linear maps.
        attribute: "weight" or "bias".
        transposed: Whether it is stored (in, out), as in transformers' ``Conv1D``.
    """

    name: str
    modules: tuple[nn.Module, ...]
    attribute: str
    transposed: bool = False

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
    def shape(self) -> tuple[int, int]:
        """(out, in) of the whole weight; of a bias (out, 1)."""
        rows, *columns = self.place.shape
        shape = (rows, columns[0] if columns else 1)
        return shape[::-1] if self.transposed else shape

    def pieces(self, kept: Tensor | None = None) -> list[Piece]:
        """Return what this process keeps, as rectangles of W (out, in) in the Parameter's memory.

        Args:
            kept: Another tensor laid out like what is kept, to be cut alike.
        """
        place = self.place
        pieces = place.pieces(place.local if kept is None else kept)
        return [piece.T for piece in pieces] if self.transposed else pieces

    @property
    def matrix(self) -> Tensor:
        """W of shape (out, in), or a bias as a column (out, 1), where it is kept whole."""
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
        u = wide.new_zeros(len(A), self.shape[1])
        for piece in self.pieces(kept):
            for part in chunks(piece):
                u[:, part.columns] += wide[:, part.rows] @ part.values.to(wide)
        return total([(u, place.group)])[0].to(A)
