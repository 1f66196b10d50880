"""Two optimizers as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["Together"]


class Together(Optimizer):
    """The groups of one optimizer before those of another, with one state for both.

    Args:
        first: Has one group.
        second: Has the others.
    """

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.first, self.second = first, second
        groups, state = [*first.param_groups, *second.param_groups], {**first.state, **second.state}
        super().__init__(groups, {})
        self.defaults, self.state = first.defaults, defaultdict(dict, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step one, then the other, on the gradients of one evaluation."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self._both():
            one.step()
        return loss

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """What either has and this has not, of both: schedule-free's ``train()`` and ``eval()``."""
        if name.startswith("_") or "second" not in vars(self):
            raise AttributeError(name)
        found = [getattr(one, name) for one in self._both() if hasattr(one, name)]
        if not found:
            raise AttributeError(name)
        return partial(_each, found) if all(map(callable, found)) else found[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "first": self.first, "second": self.second}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what was pickled, or what ``load_state_dict`` has read."""
        super().__setstate__(state)
        for one in self._both():
            one.__setstate__({})

    def _both(self) -> tuple[Optimizer, Optimizer]:
        """Return them with the groups and the state of now, whoever has put others here."""
        self.first.state = self.second.state = self.state
        self.first.param_groups, self.second.param_groups = (
            self.param_groups[:1],
            self.param_groups[1:],
        )
        return self.first, self.second


def _each(calls: list[Callable[..., Any]], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    return [call(*args, **kwargs) for call in calls][0]
