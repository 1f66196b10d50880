"""What a run's turns consist of: how a booster is begun, merged, dropped and forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch_xgb.base.verdict import Verdict
from torch_xgb.base.wrapped import Wrapped
from torch_xgb.boosters.accumulator import Accumulation
from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.booster import Booster
from torch_xgb.boosters.carry import Carry, Lot
from torch_xgb.boosters.forms import Update
from torch_xgb.boosters.report import Listeners, MergeReport, Updates
from torch_xgb.boosters.starts import Start
from torch_xgb.boosters.taking_up import TakingUp
from torch_xgb.boosting.asked import ask
from torch_xgb.boosting.turn import Deed, Turn
from torch_xgb.ledger.writer import Writer
from torch_xgb.saving.memory import Memory
from torch_xgb.schedule.boundaries import Progress
from torch_xgb.schedule.course import Course
from torch_xgb.schedule.draws import Draw
from torch_xgb.weights.addition import Addition
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.own import require_own
from torch_xgb.weights.product import Product
from torch_xgb.weights.weight import Weight

__all__ = ["Turns"]


@dataclass(frozen=True, eq=False)
class Turns:
    """What a run's turns are made of, and go by: merge (Eq. 8), forget, draw, start afresh."""

    booster: Booster
    start: Start
    merger: Merger
    memory: Memory
    carry: Carry | None
    course: Course
    listeners: Listeners = field(default_factory=Listeners)  # are told of merges

    def beginning(self, progress: Progress, draw: Draw, wrapped: Wrapped) -> list[Deed]:
        """Return what begins a booster: the layers drawn, with fresh pairs, or those they had."""
        self.course.require_rate(wrapped.lr)
        adapters = self.booster.of(draw.layers)
        t = progress.booster_index

        def fresh() -> None:
            self.booster.bind(draw.layers, draw.r, draw.s)
            self.start.begin(self.booster, t)

        if self.carry is not None:
            self._require_own(adapters)
        deeds: list[Deed] = [fresh]
        if self.carry is not None and draw.rho is not None:
            deeds.append(lambda: self.memory.look(adapters))
            for adapter in adapters:
                up = TakingUp(self.carry, adapter, wrapped.optimizer, self.merger, t, draw.rho)
                deeds.append(up.go_on)
        deeds.append(lambda: self.start.aim(self.booster, t, self._carried))
        deeds.append(lambda: self.memory.note(adapters, anew=self.carry is not None))
        deeds.append(lambda: self.course.begin(progress, draw))
        return deeds

    def next(self, wrapped: Wrapped, writer: Writer | None) -> Turn:
        """Return what merges the active booster, forgets it, and begins the next.

        Raises:
            RuntimeError: If the active booster is not finite.
        """
        following = self.course.following()
        turn, lots = self._merging(writer, wrapped.verdict)
        deeds = [*turn.deeds, *self._forgetting(lots, wrapped)]
        return replace(turn, deeds=[*deeds, *self.beginning(*following, wrapped)])

    def last(
        self, wrapped: Wrapped, writer: Writer | None, leave: Deed, *, merged: bool, dropped: bool
    ) -> Turn:
        """Return what ends a run; one that resumes begins the next booster.

        Args:
            wrapped: The base.
            writer: Writes the ledger, if one is kept here.
            leave: Takes everything off the model.
            merged: Whether the active booster is to be merged; else it begins over then.
            dropped: Whether it was trained for nothing.

        Raises:
            RuntimeError: If the active booster is to be merged, and not finite.
        """
        if dropped:
            wrapped.verdict.forget()
            turn = Turn(self._dropping(wrapped))
        else:
            verdict = wrapped.verdict
            turn, lots = self._merging(writer, verdict) if merged else (Turn([]), self._untrained())
            begun = merged or self.course.progress.booster_index
            forget = self._forgetting(lots, wrapped) if begun else [wrapped.forget]
            turn = replace(turn, deeds=[*turn.deeds, *forget])
        left: list[Deed] = [lambda: self.course.leave(merged), leave]
        return replace(turn, deeds=[*turn.deeds, *left])

    def first_step(self) -> None:
        """Use the gradients of the active booster's first batch up, if it begins with those."""
        t = self.course.progress.booster_index
        self.start.first_step(self.booster, t, self._carried)

    @property
    def _carried(self) -> list[Adapter]:
        """The active booster's adapters that have taken up a pair."""
        taken = {} if self.carry is None else self.carry.taken
        return [adapter for adapter in self.booster.active if adapter.target.name in taken]

    def _require_own(self, adapters: Sequence[Adapter]) -> None:
        weights = [weight for adapter in adapters for weight in adapter.weights]
        require_own(weights, self.booster.model)

    def _untrained(self) -> list[Lot]:
        """Return the pairs that an untrained booster has taken up; its fresh ones come again."""
        taken = {} if self.carry is None else self.carry.taken
        return [lot for lot in self._lots() if lot[0].target.name in taken]

    def _lots(self) -> list[Lot]:
        return [(adapter, adapter.parameters) for adapter in self.booster.active]

    def _merging(self, writer: Writer | None, verdict: Verdict) -> tuple[Turn, list[Lot]]:
        """Return what merges the active booster: W ← W + α_t·s·B A."""
        lots, draw, progress = self._lots(), self.course.draw, self.course.progress
        t, adapters = progress.booster_index, [adapter for adapter, _ in lots]
        self._require_own(adapters)
        puts: Updates = {a.target.name: a.updates(draw.alpha) for a in adapters}
        updates, norms = self._asked(adapters, puts, verdict)
        layers = self.booster.active_layers
        report = MergeReport(t, layers, progress.booster_step, draw.r, norms, {})
        additions = {a.target.name: self._additions(a, updates[a.target.name], t) for a in adapters}
        deeds: list[Deed] = []
        if writer is not None:
            flat = [pair for pairs in puts.values() for pair in pairs]
            taken = {} if self.carry is None else self.carry.taken_by_weight
            deeds.append(lambda: writer.write(report, flat, taken, draw.alpha))
        harmless = len(deeds)
        deeds += [_Merge(adapter, additions[adapter.target.name]) for adapter in adapters]
        each = [one for several in additions.values() for one in several]
        merged = [one for one in each if isinstance(one, Addition)]
        deeds.append(lambda: self.memory.note(adapters, merged=merged))
        return Turn(deeds, harmless, report, additions), lots

    def _additions(
        self, adapter: Adapter, pairs: Sequence[tuple[Weight, Update]], t: int
    ) -> list[Addition | Accumulation]:
        products = [(weight, Product(*update)) for weight, update in pairs]
        if adapter.accumulator is not None:
            return [adapter.accumulator.addition(product) for _, product in products]
        measure = self.listeners.any
        return [self.merger.addition(weight, one, t, measure) for weight, one in products]

    def _asked(
        self, adapters: Sequence[Adapter], puts: Updates, verdict: Verdict
    ) -> tuple[Updates, Mapping[str, float]]:
        """Return what is to be added to the weights, and the norm of what the booster is."""
        t, alpha = self.course.progress.booster_index, self.course.draw.alpha
        while True:
            # Eq. 8 with f_t = what is put in less what was taken out, on top of what there was.
            updates = self._with_taken(puts, 1 - alpha)
            into = {a.target.name: updates[a.target.name] for a in adapters if a.weights}
            answers = ask(into, self._with_taken(puts, -alpha), self.memory, t)
            verdict.require()  # after the device has answered: by now it is there
            self.memory.drop(adapters, answers.written)
            if not answers.written:  # else what was taken out of them is no more
                return updates, answers.norms

    def _with_taken(self, updates: Updates, factor: float) -> Updates:
        return updates if self.carry is None else self.carry.with_taken(updates, factor)

    def _dropping(self, wrapped: Wrapped) -> list[Deed]:
        """Return what undoes the active booster: what ``carry`` took out is put back.

        Raises:
            RuntimeError: If that is not known.
        """
        adapters, carry, t = self.booster.active, self.carry, self.course.progress.booster_index
        if carry is None or not t:
            return [wrapped.forget]
        self._require_own(adapters)
        self.memory.look(adapters)
        deeds: list[Deed] = [_Merge(a, carry.putting_back(a, self.merger, t)) for a in adapters]
        deeds += [partial(carry.forget, adapter.target) for adapter in adapters]
        deeds.append(lambda: self.memory.note(adapters))
        return [*deeds, lambda: wrapped.forget(counters=False)]

    def _forgetting(self, lots: Sequence[Lot], wrapped: Wrapped) -> list[Deed]:
        """Return what drops the base's state of a booster, but for what ``carry`` keeps."""
        carry, share = self.carry, self.course.draw.alpha * self.course.rho
        if carry is None:
            return [wrapped.forget]
        return [
            lambda: carry.put_down(lots, wrapped.optimizer, share),
            lambda: wrapped.forget(counters=False),
        ]


@dataclass(frozen=True, eq=False)
class _Merge:
    """Merges a target's pair into its weights, and takes it out of the forward pass."""

    adapter: Adapter
    additions: Sequence[Addition | Accumulation]

    def __call__(self) -> None:
        for addition in self.additions:
            addition.go_on()
        self.adapter.give_back()
