"""Where a run stands: what its active booster is, when that ends, and what follows."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torch_xgb.checks import natural, share
from torch_xgb.processes import mean
from torch_xgb.schedule.boundaries import Progress, boundary
from torch_xgb.schedule.carried import Decay
from torch_xgb.schedule.draws import Draw, draws
from torch_xgb.schedule.plateau import LossPlateau, LossPolicy
from torch_xgb.schedule.rates import RateFactors
from torch_xgb.settings import Settings

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Course"]


class Course:
    """A run's way through its boosters, pure in (seed, t) but for what it is shown of the loss.

    Args:
        settings: What the run was told.
        num_layers: L, how many layers may be drawn.

    Attributes:
        progress: How far the boosting is.
        draw: What the active booster is.
        due: Whether the active booster has ended, and is not merged yet.
        rho: What its steps have left of its pairs to be taken up; 1 but for ``carry=Decay(…)``.
        policy: What watches the loss, if ``kappa`` is such a thing: a copy, so that what was told
            may be told to another run, which begins anew.
        most_r: The highest rank room is to be made for.
        most_L_s: The largest number of layers room is to be made for.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If one is out of range.
    """

    def __init__(self, settings: Settings, num_layers: int) -> None:
        kappa = settings.kappa
        self.policy = _own(kappa) if isinstance(kappa, LossPolicy) else None
        self._ends = boundary(kappa if self.policy is None else self.policy, settings.least_steps)
        self._draws = draws(settings, num_layers)
        self.most_r, self.most_L_s = self._draws.most_r, self._draws.most_L_s
        self.progress, self.draw = Progress(), self._draws.booster(0)
        self._first = self.draw
        self.due, self.rho = False, 1.0
        self._decay = settings.carry if isinstance(settings.carry, Decay) else None
        self._after: Progress | None = None
        self._last: Progress | None = None  # begun last, and what the policy was before
        self._of_last: dict[str, Any] = {}
        self._expected: tuple[int, list[tuple[Tensor, int]]] | None = None
        self._rates = RateFactors(settings.rewarmup_steps, settings.rank_lr_exponent, self.draw.r)

    @property
    def opening(self) -> dict[str, Any]:
        """What booster 0 is, by names that say what it follows from."""
        first = self._first
        return {
            "kappa at booster 0": self._ends.known(0),
            "the layers drawn first": first.layers,
            "r at booster 0": first.r,
            "lora_alpha / r at booster 0": first.s,
            "shrinkage at booster 0": first.alpha,
            "carry at booster 0": first.rho,
        }

    @property
    def standing(self) -> dict[str, str]:
        """How far it is, by names that say what of."""
        index, step = self.progress.booster_index, self.progress.booster_step
        return {"the booster's index": str(index), "the steps taken in it": str(step)}

    @property
    def rate(self) -> float:
        """The factor on the factors' learning rate for the step about to be taken."""
        return self._rates(self.progress, self.draw.r)

    def expect(self, factors: Iterable[Tensor]) -> None:
        """Take note that the base is about to step some factors."""
        steps = self.progress.total_steps
        self._expected = steps, [(factor, factor._version) for factor in factors]

    def owes_a_step(self) -> bool:
        """Tell whether the base took a step that an exception has kept from being counted.

        If it took none, none is expected any more: others may write to the factors then.
        """
        steps, noted = self._expected or (0, [])
        owed = steps == self.progress.total_steps and any(f._version != v for f, v in noted)
        self._expected = self._expected if owed else None
        return owed

    def stepped(self, lr: object) -> bool:
        """Count a step; return whether the active booster ends with it, and so is due.

        Args:
            lr: The factors' learning rate, but for the factor ``rate``.
        """
        progress, rho = self.progress.stepped(), self.rho
        if self._decay is not None:
            rho = self._decay.after(rho, self.rate * lr)  # type: ignore[operator]
        due = self._ends(progress)
        # All of it at once: whoever is interrupted before counts the step later.
        self.progress, self.rho, self.due, self._expected = progress, rho, due, None
        return due

    def following(self) -> tuple[Progress, Draw]:
        """Return what follows the active booster, changing nothing.

        Raises:
            TypeError: If a callable answers with the wrong type.
            ValueError: If one answers out of range.
        """
        progress = self.progress.next()
        return progress, self._draws.booster(progress.booster_index)

    def begin(self, progress: Progress, draw: Draw) -> None:
        """Begin a booster; done again, it does the same."""
        if self.policy is not None:
            if self._last is progress:
                self.policy.load_state_dict(copy.deepcopy(self._of_last))
            else:
                self._of_last = copy.deepcopy(self.policy.state_dict())
                self._last = progress
            self.policy.begin()
        self.progress, self.draw, self.due, self.rho = progress, draw, False, 1.0

    def require_rate(self, lr: object) -> None:
        """Refuse a base without a learning rate where something is tied to one.

        Raises:
            ValueError: If there is none.
        """
        tied = {
            "carry=Decay(…)": self._decay is not None,
            "rewarmup_steps=": self._rates.rewarmup_steps,
            "rank_lr_exponent=": self._rates.rank_exponent,
        }
        if lr is None and (given := [name for name, told in tied.items() if told]):
            raise ValueError(
                f"{given[0]} goes with a base whose param_groups have an 'lr', as it is tied to "
                "that: leave it out, or give the base a rate; carry= takes a number, a sequence or "
                "a callable instead"
            )

    def require_observed(self) -> None:
        """Raise a RuntimeError if the loss of the step about to be taken is not known, but must."""
        if isinstance(self.policy, LossPlateau):
            self.policy.require_seen(self.progress.booster_step + 1)

    def observe(self, loss: float | Tensor | None, group: ProcessGroup | None) -> None:
        """Show a step's loss, averaged over a group of processes, to the policy, if there is one.

        Args:
            loss: The loss; None if a closure does not say, as the empty one of Lightning's manual
                optimization.
            group: The processes that train the model; None if there is only this one.
        """
        if self.policy is not None and loss is not None:
            self.policy.observe(mean(loss, group))

    def leave(self, merged: bool) -> None:
        """Take note that the boosters leave the model: a run that resumes begins one.

        Args:
            merged: Whether the active one was merged; else it begins over.
        """
        t, steps, total = astuple(self.progress)
        self._after = self.progress.next() if merged else Progress(t, 0, total - steps)
        self.due = False

    def state_dict(self) -> dict[str, Any]:
        """Return counters, draw and the policy's state; no draw where a booster is to begin."""
        policy = None if self.policy is None else self.policy.state_dict()
        active = asdict(self.draw) if self._after is None else None
        progress = asdict(self._after or self.progress)
        rho = self.rho if self._after is None else 1.0
        told = {"due": self.due, "active": active, "rho": rho, "policy": policy}
        return {**progress, **told, "kappa": self._ends.known(progress["booster_index"])}

    def check(self, state: Mapping[str, Any]) -> tuple[Progress, Draw]:
        """Return where a state's run stands, changing nothing.

        Raises:
            ValueError: If it is not where a run of these settings can be.
        """
        try:
            progress = Progress(*(natural(f.name, state.get(f.name)) for f in fields(Progress)))
            share("rho", state.get("rho", 1.0))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the state is damaged: {error}") from error
        if progress.booster_step > progress.total_steps:
            raise ValueError(f"the state is damaged: {progress} took more steps than there were")
        draw = self._draws.booster(progress.booster_index)
        active, here = state.get("active"), asdict(draw)
        if isinstance(active, Mapping):
            active = {"rho": here["rho"], **active}  # earlier versions had one of all boosters
        if active is not None and active != here:
            raise ValueError(
                f"the state's booster {progress.booster_index} is {active!r}, and the settings "
                f"here make it {here!r}. Give the same callables and sequences as the run that was "
                "saved; each must be pure in the booster's index (and the seed)"
            )
        kappa = self._ends.known(progress.booster_index)
        if (there := state.get("kappa", kappa)) != kappa:
            raise ValueError(
                f"the state's booster {progress.booster_index} is of {there!r} steps, and kappa "
                f"here makes it {kappa}. Give the same callable as the run that was saved; it must "
                "be pure in the booster's index"
            )
        self._check_policy(state.get("policy"))
        return progress, draw

    def load_state_dict(self, state: Mapping[str, Any], progress: Progress, draw: Draw) -> None:
        """Take over a state that was checked, and what was found in it."""
        if self.policy is not None:
            self.policy.load_state_dict(copy.deepcopy(state["policy"]))
        self.progress, self.draw = progress, draw
        self.due = bool(state.get("due"))  # earlier versions had no such thing
        self.rho = float(state.get("rho", 1.0))

    def _check_policy(self, state: object) -> None:
        """Have a copy of the policy try a state.

        Raises:
            ValueError: If it cannot load it.
        """
        if self.policy is None or not isinstance(state, Mapping):
            if self.policy is not None or state is not None:
                raise ValueError(f"the state is damaged: its policy's state is {state!r}")
            return
        try:
            copy.deepcopy(self.policy).load_state_dict(copy.deepcopy(dict(state)))
        except Exception as error:
            raise ValueError(
                f"{type(self.policy).__name__} cannot load its state: {error}"
            ) from error


def _own(policy: LossPolicy) -> LossPolicy:
    """Return a copy of a policy.

    Raises:
        TypeError: If it cannot be copied.
    """
    try:
        return copy.deepcopy(policy)
    except Exception as error:
        raise TypeError(
            f"kappa={type(policy).__name__}(…) must be one that copy.deepcopy copies, as each run "
            f"has a policy of its own: {error}. Give it a __deepcopy__ that returns one of the "
            "same settings"
        ) from error
