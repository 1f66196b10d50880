"""An optimizer that stands before another one, and is it for whoever looks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from torch_xgb.base.followed import Followed
from torch_xgb.base.in_full import InFull
from torch_xgb.base.wrapped import Wrapped, passed_on

__all__ = ["Front"]


class Front(Optimizer):
    """What the ecosystem reads of an optimizer is the base's: groups, state and defaults.

    Args:
        followed: The Parameters trained in full, which a group must go on holding.
        optimizer_class: The base's.
        factors: The factors.
        kwargs: Further arguments of the base's class.
        in_full: What ``InFull`` is told of the Parameters trained in full.

    Attributes:
        base: The optimizer it stands before, whose ``load_state_dict`` replaces them.

    Raises:
        TypeError: As ``Wrapped``.
        ValueError: As ``Wrapped``.
    """

    base: Optimizer

    def __init__(
        self,
        followed: Followed,
        optimizer_class: Callable[..., Optimizer],
        factors: Sequence[nn.Parameter],
        kwargs: dict[str, Any],
        *in_full: Any,  # noqa: ANN401
    ) -> None:
        self._followed = followed
        self._wrapped = Wrapped(optimizer_class, factors, kwargs, InFull(*in_full))
        self.base = base = self._wrapped.optimizer
        state = base.state
        super().__init__(base.param_groups, base.defaults)
        # Optimizer.__init__ empties it, and Adagrad fills it at construction.
        base.state = state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's: [0] the factors, [1] the modules trained in full, if any.

        If the base was given ``weight_decay``, [2] are the biases and norms of these, without it.
        """
        self._followed.keep_up(self.base)
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The base's state."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base's defaults."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    __getattr__ = passed_on  # what the base alone has

    def _about_to_save(self) -> None:
        """Run the hooks of before ``state_dict``."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)

    def _saved(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return what the hooks of after ``state_dict`` make of it."""
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def _about_to_load(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return what the hooks of before ``load_state_dict`` make of a state."""
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def _loaded(self) -> None:
        """Run the hooks of after ``load_state_dict``."""
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what is ours: schedulers patch ``step`` on the instance, which cannot travel."""
        torchs = ("_optimizer_", "_zero_grad_profile_name", "_patched_step_function", "step")
        return {key: value for key, value in self.__dict__.items() if not key.startswith(torchs)}
