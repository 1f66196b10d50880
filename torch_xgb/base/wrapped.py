"""The wrapped optimizer: any class of ``torch.optim``, third-party class or callable."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from torch_xgb.base.in_full import InFull
from torch_xgb.base.steps import FreshStart, only_fills_state, scaled_lr
from torch_xgb.base.together import Together
from torch_xgb.base.verdict import Verdict
from torch_xgb.settings import Settings

__all__ = ["Wrapped", "passed_on"]

T = TypeVar("T")
_BASE = "optimizer_class"

# Words of PEFT and others for arguments that are ours, and would go to the base.
_MEANT = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "init_lora_weights": "init",
    "steps_per_booster": "kappa",
    "num_layers": "layers_per_booster",
    "layers": "layers_per_booster",
    "target_module": "target_modules",
    "gradient_checkpointing": "checkpointing",
}
_REFUSED = {
    LBFGS: "it evaluates the model several times a step, with one history for all parameters",
    SparseAdam: "the factors' gradients are dense",
}


class Wrapped:
    """The base optimizer: group 0 the factors, the others the modules trained in full, if any.

    Args:
        optimizer_class: A class, or a callable that takes groups.
        factors: The factor Parameters.
        kwargs: Further arguments of the class.
        in_full: The modules trained in full.

    Attributes:
        optimizer: The base.
        verdict: Whether its last step's gradients were finite, where that is known later.
        stepping: Whether it is taking a step.

    Raises:
        TypeError: If ``optimizer_class`` is no class or callable, or does not answer with an
            Optimizer.
        ValueError: If it cannot serve as a base, or rearranges the groups it is given.
    """

    def __init__(
        self,
        optimizer_class: Callable[..., Optimizer],
        factors: Sequence[nn.Parameter],
        kwargs: dict[str, Any],
        in_full: InFull,
    ) -> None:
        groups = [{"params": list(factors)}]
        if in_full.optimizer_class is None:
            self.optimizer = _of_both(optimizer_class, groups, in_full.groups(kwargs), kwargs)
        else:
            first = _build(_BASE, optimizer_class, groups, kwargs)
            own = _build(
                "modules_to_save_optimizer", in_full.optimizer_class, in_full.groups({}), {}
            )
            self.optimizer = Together(first, own)
        self._fresh_start = FreshStart(self.optimizer, factors)
        self.verdict = Verdict(self.optimizer)
        self.stepping = False

    def step(self, step: Callable[[], T], rate: float) -> T:
        """Run a step of the base with the factors' learning rate multiplied by a factor.

        Raises:
            RuntimeError: If the gradients of the step before turn out not to have been finite.
        """
        self.verdict.require()
        self._fresh_start.follow(self.optimizer)
        self.stepping = True
        try:
            with scaled_lr(self.optimizer.param_groups[0], rate):
                return self._fresh_start.watch(self.optimizer, step)
        finally:
            self.stepping = False
            self.verdict.stepped()

    @property
    def lr(self) -> Any:  # noqa: ANN401
        """The factors' learning rate, a number or a tensor; None if the base has none."""
        return self.optimizer.param_groups[0].get("lr")

    def only_fills_state(self) -> bool:
        """Tell a step that is about to train nothing: see ``only_fills_state``."""
        return only_fills_state(self.optimizer)

    @property
    def counters(self) -> dict[str, float | None]:
        """What the factors' group was found to count by itself: see ``FreshStart``."""
        return dict(self._fresh_start.counters)

    def resume(self, counters: Mapping[str, float | None]) -> None:
        """Take over what an earlier run of this base was found to count."""
        self._fresh_start.counters = dict(counters)

    def forget(self, counters: bool = True) -> None:
        """Make the factors' state as if the base had never stepped.

        Args:
            counters: Whether what their group itself counts starts anew as well.
        """
        self._fresh_start.apply(self.optimizer, counters)


def passed_on(optimizer: Optimizer, name: str) -> Any:  # noqa: ANN401
    """Return an attribute that an optimizer does not have, and its ``base`` has.

    Public ones, such as schedule-free's ``train()`` and ``eval()``, and methods of the base's class
    that its schedulers call, such as Adafactor's ``_get_lr()``. Private state stays hidden: much of
    it tells torch how to treat the base's own ``step()`` (``_step_supports_amp_scaling``).

    Raises:
        AttributeError: If there is none, or it is a step, which would train past the boosting.
    """
    base = vars(optimizer).get("base")  # while it is made or unpickled, none
    of_class = callable(getattr(type(base), name, None))
    if base is None or name.startswith("__") or (name.startswith("_") and not of_class):
        raise AttributeError(f"BoostedLowRankOptimizer has no attribute {name!r}")
    if name.endswith("_step") and of_class:
        raise AttributeError(
            f"{type(base).__name__}.{name}() would train past the boosting, which counts its steps "
            "and merges at the last: give step() a closure, or call optimizer.base's method "
            "knowing that it does not count"
        )
    try:
        return getattr(base, name)
    except AttributeError:
        raise AttributeError(
            f"BoostedLowRankOptimizer has no attribute {name!r}, nor has its base, "
            f"{type(base).__name__}",
            name=name,
            obj=optimizer,  # of whose names Python's traceback tells the nearest
        ) from None


def _of_both(
    optimizer_class: Callable[..., Optimizer],
    factors: list[dict[str, Any]],
    in_full: list[dict[str, Any]],
    kwargs: dict[str, Any],
) -> Optimizer:
    """Return the base of the factors' group and those of the modules trained in full."""
    try:
        return _build(_BASE, optimizer_class, [*factors, *in_full], kwargs)
    except (ValueError, RuntimeError, AssertionError) as error:
        if not in_full:
            raise
        try:
            _build(_BASE, optimizer_class, factors, kwargs)
        except Exception:  # noqa: BLE001 - it is not about them
            raise error from None
        given = getattr(optimizer_class, "__name__", "the base")
        raise ValueError(
            f"{given} takes the boosters' factors and not the modules trained in "
            f"full, of which it says: {error}. Give these an optimizer of their own, such as "
            "modules_to_save_optimizer=torch.optim.AdamW; or name others, or none, in "
            "modules_to_save=[…]"
        ) from error


def _build(
    name: str,
    optimizer_class: Callable[..., Optimizer],
    groups: list[dict[str, Any]],
    kwargs: dict[str, Any],
) -> Optimizer:
    """Return the optimizer of some groups, which an argument of that name makes."""
    if isinstance(optimizer_class, Optimizer) or not callable(optimizer_class):
        raise TypeError(
            f"{name} must be an optimizer's class (e.g. torch.optim.AdamW) or a callable "
            f"that takes parameters and returns an optimizer, got {_shown(optimizer_class)}"
        )
    if inspect.isclass(optimizer_class):
        _refuse(optimizer_class)
    given = _held(groups, name)
    base = _called(optimizer_class, groups, kwargs)
    if not isinstance(base, Optimizer):
        raise TypeError(f"{name} must make a torch.optim.Optimizer, got {type(base).__name__}")
    _refuse(type(base))
    _refuse_apart(base)
    if given != _held(base.param_groups, name):
        raise ValueError(
            f"{type(base).__name__} rearranges its param_groups; it must keep the groups given"
        )
    return base


def _shown(given: object) -> str:
    kind = type(given).__name__
    made = isinstance(given, Optimizer)
    return f"{kind}(…), made already: pass {kind} itself" if made else repr(given)


def _held(groups: list[dict[str, Any]], name: str) -> list[list[int]]:
    """Return what groups hold, group by group if it is the factors'."""
    held = [[id(parameter) for parameter in group["params"]] for group in groups]
    return held if name == _BASE else [sorted(sum(held, []))]


def _called(
    optimizer_class: Callable[..., Optimizer], groups: list[dict[str, Any]], kwargs: dict[str, Any]
) -> Optimizer:
    try:
        return optimizer_class(groups, **kwargs)
    except TypeError as error:
        wrong = [name for name in kwargs if name in _MEANT or f"argument '{name}'" in str(error)]
        if not wrong:
            raise
        meant = [f"{ours}= in the place of {name}=" for name in wrong if (ours := _meant(name))]
        raise TypeError(
            f"{error}; what BoostedLowRankOptimizer does not know goes to the base"
            + (f". Say {' and '.join(meant)}" if meant else "")
        ) from error


def _meant(name: str) -> str | None:
    """Return the argument of ours that a word stands for, or is a misspelling of."""
    near = difflib.get_close_matches(name, [f.name for f in fields(Settings)], 1, 0.8)
    return _MEANT.get(name) or (near[0] if near else None)


def _refuse(optimizer_class: type) -> None:
    for refused, why in _REFUSED.items():
        if issubclass(optimizer_class, refused):
            raise ValueError(f"{refused.__name__} cannot train boosters: {why}")


def _refuse_apart(base: Optimizer) -> None:
    """Refuse an optimizer around another one, such as Lookahead, that has not its state as its own.

    One that shows it by a property can have another state kept beside it, and be given none.
    """
    held = getattr(type(base), "state", None)
    shows = isinstance(held, property) and held.fset is None
    for inner in vars(base).values():
        if isinstance(inner, Optimizer) and (shows or inner.state is not base.state):
            inner_name = type(inner).__name__
            raise ValueError(
                f"{type(base).__name__} cannot train boosters: it is around {inner_name}, whose "
                f"state it {'only shows' if shows else 'does not share'}, so that this would "
                f"neither begin anew with each booster nor be saved. Give {inner_name} itself"
            )
