"""Something left to do is done before a model is called again."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Later"]


class CatchesUp(Protocol):
    """Who has something left to do."""

    def catch_up(self, always: bool = True) -> bool:
        """Do it."""


class Later:
    """A hook on the model that has somebody catch up, while it is there.

    Args:
        model: The model.
        who: Catches up; the model does not keep it alive.
    """

    def __init__(self, model: nn.Module, who: CatchesUp) -> None:
        self._model = model
        self._who = who
        self._handle: RemovableHandle | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copy without the hook, which stays behind too."""
        return {**self.__dict__, "_handle": None}

    def wait(self) -> None:
        """Begin to wait for a call."""
        if self._handle is None:
            self._handle = self._model.register_forward_pre_hook(_Hook(weakref.ref(self._who)))

    def stop(self) -> None:
        """End that."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


class _Hook:
    """Stays behind when a model is copied or pickled."""

    def __init__(self, who: weakref.ref[CatchesUp] | None) -> None:
        self._who = who

    def __reduce__(self) -> tuple[type[_Hook], tuple[None]]:
        return _Hook, (None,)

    def __call__(self, *_: Any) -> None:  # noqa: ANN401
        who = None if self._who is None else self._who()
        if who is not None:
            who.catch_up(always=False)
