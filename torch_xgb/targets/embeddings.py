"""A model's embeddings, and the linear maps that put tokens out again."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Embeddings"]

# So few rows are of segments, or a handful of classes, and no vocabulary.
_FEWEST_TOKENS = 8


class Embeddings:
    """The tables of a model: trained with it, never by a run that adapts it.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
        self._held = {id(table) for table in tables}
        self._shapes = {tuple(t.shape) for t in tables if len(t) >= _FEWEST_TOKENS}

    def hold(self, parameter: Tensor) -> bool:
        """Tell a table of an embedding."""
        return id(parameter) in self._held

    def bias(self, parameter: Tensor) -> bool:
        """Tell a vector with an entry for each row of a table, as what puts tokens out adds."""
        return any(tuple(parameter.shape) == shape[:1] for shape in self._shapes)

    def within(self, module: nn.Module) -> bool:
        """Tell a module with an embedding in it."""
        return any(isinstance(m, nn.Embedding) for m in module.modules())

    def are_put_out_by(self, module: nn.Module) -> bool:
        """Tell an output embedding: tied to a table, or of the shape of one."""
        weight = module._parameters.get("weight")
        if weight is None or isinstance(module, nn.Embedding):
            return False
        return self.hold(weight) or tuple(weight.shape) in self._shapes
