"""The boosting of one model: what the optimizer drives, and what frameworks talk to.

Everything that is put into a model, and every weight that is changed, goes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_xgb.base.followed import Followed
from torch_xgb.base.gradients import GradientPolicy
from torch_xgb.base.others import Others
from torch_xgb.base.wrapped import Wrapped
from torch_xgb.boosters.booster import Booster
from torch_xgb.boosters.carry import Carry
from torch_xgb.boosters.forms import form
from torch_xgb.boosters.owner import Hold
from torch_xgb.boosters.recompute import Recompute
from torch_xgb.boosters.starts import Start
from torch_xgb.boosting.alone import Alone, alone
from torch_xgb.boosting.outcome import Outcome
from torch_xgb.boosting.pace import Pace
from torch_xgb.boosting.release import vacate
from torch_xgb.boosting.slight import tell_if_slight
from torch_xgb.boosting.told import told, told_alike
from torch_xgb.boosting.turn import Turn
from torch_xgb.boosting.turns import Turns
from torch_xgb.ledger.opening import writer
from torch_xgb.ledger.writer import Writer
from torch_xgb.parallel.agreement import agree
from torch_xgb.parallel.sharding import Sharding
from torch_xgb.saving.accumulated import Accumulated
from torch_xgb.saving.entry import Entry
from torch_xgb.saving.memory import Memory
from torch_xgb.saving.pending import Pending
from torch_xgb.schedule.boundaries import Progress
from torch_xgb.schedule.course import Course
from torch_xgb.schedule.draws import Draw
from torch_xgb.settings import Contract, Settings
from torch_xgb.targets.admission import admit
from torch_xgb.targets.compiled import uncompiled
from torch_xgb.targets.designated import check_rank
from torch_xgb.targets.selection import select
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.weight import Weight

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Boosting"]


class Boosting:
    """Begins boosters in a model, merges them, and leaves the model.

    Args:
        model: The model; nothing of it is changed before ``enter``.
        settings: What the run was told.

    Attributes:
        settings: What the run was told.
        selection: What of the model it is about.
        course: What the active booster is, when it ends, and what follows.
        booster: The factors, and where in the model they are.
        followed: The Parameters trained in full, as the base has them.
        entry: What of it is in a checkpoint.
        outcome: What is given out of a run beside quantised weights.
        listeners: Those who are told of merges.
        writer: Writes the ledger, if one is kept here.
        pace: Counts steps and takes turns, from ``enter`` on.
        alone: Held by the thread that is at work.
        attached: Whether anything is in the model.

    Raises:
        TypeError: For a setting of the wrong type.
        ValueError: For one out of range, or a model that cannot be adapted.
        RuntimeError: If the model belongs to another optimizer.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.settings, self.model = settings, uncompiled(model)
        admit(self.model)
        vacate(self.model)
        self.selection = select(self.model, settings)
        layers = self.selection.layers
        self.course = Course(settings, len(layers))
        check_rank(self.course.most_r, layers)
        self._form = form(settings.adapter, settings.bias)
        self._gradients = GradientPolicy(settings.nonfinite, settings.unused, settings.factor_l2)
        merger = Merger(settings.merge_precision, settings.seed, settings.residual_device)
        self._recompute = Recompute(self.model, settings.checkpointing)
        self._carry = None if settings.carry is None else Carry()
        room = self.course.most_L_s, self.course.most_r
        recorded, partial = settings.record is not None, settings.unused == "skip"
        dropout, rank = settings.lora_dropout, settings.accumulator_rank
        self.booster = Booster(self.model, layers, *room, self._form, dropout, partial, rank)
        memory, start = Memory(merger, self._carry), Start(settings.init, settings.seed)
        self._pending = Pending(self.booster.every_adapter, merger, memory)
        self.selection.check_untied(self._pending.weights)
        self._turns = Turns(self.booster, start, merger, memory, self._carry, self.course)
        self.listeners = self._turns.listeners
        saved = self._pending, self.selection, Accumulated(self.booster, self.selection)
        self.entry = Entry(self.course, self.booster, self._carry, *saved)
        self.outcome = Outcome(self.booster, self.selection, settings, self.course)
        self.followed = Followed(self.selection)
        self._sharding = Sharding(self.model, self.booster, self.selection, recorded, partial)
        self.writer: Writer | None = None
        self.alone = Alone()
        self.attached = False

    @property
    def factors(self) -> list[nn.Parameter]:
        """Every factor Parameter, the same ones from the first booster to the last."""
        return self.booster.factors

    @property
    def lent(self) -> list[nn.Parameter]:
        """The factors that the active booster uses."""
        return self.booster.lent

    @property
    def trained(self) -> list[nn.Parameter]:
        """The Parameters of the modules trained in full, each once."""
        return self.selection.trained

    @property
    def weights(self) -> list[Weight]:
        """Every weight that may be merged into."""
        return self._pending.weights

    @property
    def taken_up(self) -> bool:
        """Whether the active booster holds what ``carry`` took out of the weights."""
        return self._carry is not None and self._carry.pending

    def require_attached(self, call: str) -> None:
        """Raise a RuntimeError if the boosters have left the model."""
        if not self.attached:
            plain = "the model is plain again; build a new optimizer"
            raise RuntimeError(f"{call} after finalize(): {plain}")

    def agree(self, base: Optimizer) -> None:
        """Raise a ValueError in every process if settings, the first draw or weights differ."""
        group = self._sharding.group
        if group is not None and group.size() > 1:
            merged = [(weight.name, weight.parameter) for weight in self.weights]
            alike = told_alike(self.selection, self.settings, self.course, base)
            held = {**self.selection.named, **self.selection.bases}
            agree(alike, [*merged, *held.items()], group)

    def enter(self, wrapped: Wrapped) -> None:
        """Put everything into the model and begin the first booster; or leave it as it was."""
        self._wrapped, self._others = wrapped, Others(self.model, wrapped)
        self.writer = writer(self.model, self.settings, self.selection, self._form)
        of_run = wrapped, self.writer, self.settle
        self.pace = Pace(self.model, self._turns, self._pending, *of_run)
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        try:
            self.attached = True
            self._hold = Hold(self.booster.owner)
            self.booster.attach(self.selection.heads.values())
            self._pending.attach(self.model)
            self.followed.attach()
            self._recompute.attach(self.booster.every_adapter)
            self._sharding.attach()
            self.begin(self.course.progress, self.course.draw)
            tell_if_slight(self.listeners, self.weights, wrapped.optimizer)
        except BaseException:
            self.leave()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            raise

    def begin(self, progress: Progress, draw: Draw) -> None:
        """Begin a booster: the layers drawn, with fresh pairs, or those they had last."""
        Turn(self._turns.beginning(progress, draw, self._wrapped)).go_on()

    def before_step(self, base: Optimizer) -> None:
        """Make sure, before anything of a booster is trained, that a step may be taken."""
        self._others.watch()
        self.followed.look(base)
        if self._sharding.before_step(base):
            self.agree(base)
        progress = self.course.progress
        t, begins = progress.booster_index, not progress.booster_step
        self.booster.before_step(base.param_groups[1:], whole=begins and not t % 64)
        if self.writer is not None and (begins or not self.writer.ready):
            self.writer.check_next(t)

    def prepare_gradients(self, others: Sequence[tuple[str, nn.Parameter]]) -> bool:
        """Check every gradient before the base uses it, and add λ's to the factors'.

        Args:
            others: The parameters trained in full.

        Returns:
            Whether the step may be taken; raises as ``nonfinite`` and ``unused`` ask for.
        """
        self.course.require_observed()
        self._sharding.look_at_gradients(others, self.course.standing, self._wrapped.optimizer)
        ready = self._gradients.prepare(self.booster.named, others, self._wrapped.verdict)
        if ready and self.course.progress.booster_step == 0:
            self._turns.first_step()
        if ready:
            self.course.expect(self.lent)
        return ready

    def observe(self, loss: float | Tensor) -> None:
        """Show a step's loss to the policy, averaged over the processes that train the model."""
        self.course.observe(loss, self._sharding.group)

    @alone
    def complete(self) -> None:
        """Do the rest of what an exception has interrupted."""
        self.pace.complete()

    @alone
    def merge(self) -> None:
        """Merge the active booster (Eq. 8), forget it, draw the next and begin it."""
        self.pace.merge()

    @alone
    def finish(self, *, merged: bool, dropped: bool) -> None:
        """Take everything off the model; a run that resumes begins the next booster.

        That is the active one if it was not merged, be it untrained or dropped.
        """
        self.pace.finish(self.leave, merged=merged, dropped=dropped)

    def leave(self) -> None:
        """Take everything off the model."""
        self._pending.detach()
        self.followed.detach()
        self.booster.detach()
        self._recompute.detach()
        self._sharding.detach()
        self.pace.stop()
        self._others.leave()
        if self.writer is not None:
            self.writer.close()
        self.attached = False

    def set_apart(self, device: torch.device | None = None) -> None:
        """Move the factors out of the model, where somebody would take or shard what he finds."""
        self.booster.set_apart()
        if device is not None:
            self.booster.slots.to(device)

    def average_when(self, due: Callable[[], bool], group: ProcessGroup | None) -> None:
        """Average the factors' gradients over a group after backward passes, where it is due."""
        self._sharding.average(group, due)

    def average(self) -> None:
        """Average the factors' gradients now, over the processes that ``average_when`` named."""
        self._sharding.average_now()

    def check_gradients(self, *, skip: bool = False) -> bool:
        """Check the factors' gradients, adding nothing to them.

        Args:
            skip: Whether one that is not finite skips the step, whatever ``nonfinite`` says.

        Returns:
            Whether the step may be taken; raises as ``nonfinite`` and ``unused`` ask for.
        """
        return self._gradients.looking(skip).prepare(self.booster.named, [])

    def folded_in(self) -> AbstractContextManager[None]:
        """Have the pending booster in the weights themselves for a while, and nowhere else."""
        return self._pending.folded_in()

    def at_leave(self, call: Callable[[], object]) -> None:
        """Have something called when the boosters leave the model."""
        self._sharding.at_detach(call)

    def settle(self, base: Optimizer) -> None:
        """Make every Parameter the one that is kept, and the optimizer's own."""
        self._sharding.settle(base)
        self._pending.retie()
        self.followed.settle(base)

    def share_out(self, base: Optimizer) -> None:
        """Cut whole tensors in the base's state, just loaded, like their Parameters."""
        self._sharding.share_out(base)

    def follow(self, original: Boosting) -> None:
        """Go on like the boosting that this is a copy of."""
        self._pending.follow(original._pending)
        self.pace.catch_up_later()

    def told(self, base: Optimizer, *contracts: Contract) -> dict[str, Any]:
        """Return what others must have been told alike, in plain types."""
        return told(self.selection, self.settings, base, *contracts)
