"""From step to step and booster to booster: what an interruption leaves undone is done later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from torch_xgb.base.wrapped import Wrapped
from torch_xgb.boosting.later import Later
from torch_xgb.boosting.slight import tell_if_still
from torch_xgb.boosting.turn import Turn
from torch_xgb.boosting.turns import Turns
from torch_xgb.ledger.writer import Writer
from torch_xgb.saving.pending import Pending

__all__ = ["Pace"]


class Pace:
    """Counts steps and takes turns, one at a time; catches up on what was interrupted.

    Args:
        model: What is left to do is done before it is called again.
        turns: Makes the turns.
        pending: Takes note of steps.
        wrapped: The base.
        writer: Writes the ledger, if one is kept here.
        settle: Makes every Parameter the one that is kept, before a turn.
    """

    def __init__(
        self,
        model: nn.Module,
        turns: Turns,
        pending: Pending,
        wrapped: Wrapped,
        writer: Writer | None,
        settle: Callable[[Optimizer], object],
    ) -> None:
        self._model, self._turns, self._course, self._pending = model, turns, turns.course, pending
        self._wrapped, self._writer, self._settle = wrapped, writer, settle
        self._later = Later(model, self)
        self._open: Turn | None = None  # one that was interrupted

    def stepped(self) -> None:
        """Count a step; merge the active booster if it ends with it."""
        self._pending.stepped()
        try:
            if self._course.stepped(self._wrapped.lr):
                self.merge()
        except BaseException:
            self.catch_up_later()
            raise

    def merge(self) -> None:
        """Merge the active booster (Eq. 8), forget it, draw the next and begin it.

        Whatever interrupts that, the model computes what it did, and the rest is done later.
        """
        t = self._course.progress.booster_index
        if not self.complete() and t == self._course.progress.booster_index:
            turn = self._take(partial(self._turns.next, self._wrapped, self._writer))
            tell_if_still(turn.merged, self._wrapped.optimizer)

    def finish(self, leave: Callable[[], object], *, merged: bool, dropped: bool) -> None:
        """Take the last turn: see ``Turns.last``."""
        last = partial(self._turns.last, self._wrapped, self._writer, leave)
        self._take(partial(last, merged=merged, dropped=dropped))

    def complete(self) -> bool:
        """Do the rest of what an exception has interrupted; return whether it was a turn's."""
        if self._course.owes_a_step():  # taken by the base, and not counted
            self.stepped()
        if self._open is None:
            return False
        self._go_on(self._open)
        return True

    def catch_up(self, always: bool = True) -> bool:
        """Do the rest of a turn, or one that is due, the latter ``always`` or just in training."""
        t = self._course.progress.booster_index
        if self.complete() or t != self._course.progress.booster_index:
            return True
        if self._course.due and (always or (self._model.training and torch.is_grad_enabled())):
            self.merge()
            return True
        return False

    def catch_up_later(self) -> None:
        """Catch up before the model is called again."""
        if self._course.due or self._course.owes_a_step():
            self._later.wait()

    def stop(self) -> None:
        """Have nothing done later."""
        self._later.stop()

    def _take(self, make: Callable[[], Turn]) -> Turn:
        """Take and return a turn: whatever ends it, nothing is left half done, or it is done later.

        Args:
            make: Returns it, changing nothing.
        """
        self._settle(self._wrapped.optimizer)
        try:
            turn = make()
        except BaseException:
            self._later.wait()
            raise
        self._go_on(turn)
        return turn

    def _go_on(self, turn: Turn) -> None:
        try:
            turn.go_on()
        except BaseException:
            self._open = turn if turn.has_begun else None
            self._later.wait()
            if turn.has_begun:
                with suppress(BaseException):  # an interrupt is answered when nothing is half done
                    turn.go_on()
                    self._over()
            raise
        self._over()
        self._turns.listeners.tell(turn.report)

    def _over(self) -> None:
        self._open = None
        self._later.stop()
