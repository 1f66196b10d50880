"""Operations of torch: how many there are, which each are a launch, and over how many entries."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Operations"]


_NONE = {"aten::empty", "aten::detach", "aten::_unsafe_view"}


class Operations(TorchDispatchMode):
    """Counts what is computed inside; views and fresh memory are no operations.

    Attributes:
        number: How many there were.
        entries: What they went over, each as many as its largest tensor has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Count an operation, and do it."""
        found = func(*args, **(kwargs or {}))
        if not (func.is_view or func._schema.name in _NONE):
            leaves = tree_leaves((args, kwargs, found))
            self.number += 1
            self.entries += max((t.numel() for t in leaves if isinstance(t, Tensor)), default=0)
        return found
