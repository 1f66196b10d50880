"""Turns are taken here; the rest of an interrupted one before the model is called again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.report import Listeners
from torch_xgb.boosting.turn import Turn

__all__ = ["Later", "Taken"]


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


class Taken:
    """Takes turns, one at a time.

    Args:
        later: Has the rest of one done that cannot be done at once.
        listeners: Are told of merges.
    """

    def __init__(self, later: Later, listeners: Listeners) -> None:
        self.later, self.listeners = later, listeners
        self._open: Turn | None = None

    def take(self, make: Callable[[], Turn]) -> None:
        """Take a turn: whatever ends it, nothing is left half done, or it is done later.

        Args:
            make: Returns it, changing nothing.
        """
        try:
            turn = make()
        except BaseException:
            self.later.wait()
            raise
        self._go_on(turn)

    def complete(self) -> bool:
        """Do the rest of a turn that was interrupted; return whether there was any."""
        if self._open is None:
            return False
        self._go_on(self._open)
        return True

    def _go_on(self, turn: Turn) -> None:
        try:
            turn.go_on()
        except BaseException:
            self._open = turn if turn.has_begun else None
            self.later.wait()
            if turn.has_begun:
                with suppress(BaseException):  # an interrupt is answered when nothing is half done
                    turn.go_on()
                    self._over()
            raise
        self._over()
        self.listeners.tell(turn.report)

    def _over(self) -> None:
        self._open = None
        self.later.stop()


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
