"""A way to fine-tune: a model in, a model and its optimizer out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Trainee:
    """What a training loop needs."""

    model: nn.Module
    optimizer: Optimizer
    finish: Callable[[], nn.Module]  # training is over: the plain model
    next_booster: Callable[[], None] = lambda: None

    @property
    def trainable(self) -> int:
        """How many numbers the optimizer steps."""
        groups = self.optimizer.param_groups
        return sum(parameter.numel() for group in groups for parameter in group["params"])


@dataclass(frozen=True)
class Method:
    """A way to fine-tune, with the rates that a search tries (as many for every method).

    ``build`` takes a model, a rate and a seed, and ``options`` as keywords. The builder's name and
    the options, plain JSON, are what a record knows a method by, and for how much of a run its rate
    is ``held`` before it falls, where it is.
    """

    name: str
    build: Callable[..., Trainee]
    lr: float
    grid: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    held: float = 0.0

    @property
    def identity(self) -> dict[str, Any]:
        """What tells a method from others, whatever it is called in a table."""
        held = {"held": self.held} if self.held else {}
        return {"build": self.build.__name__, "options": dict(self.options), **held}
