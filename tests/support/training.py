"""The ordinary training loop around an optimizer, what it noted down, and a checkpoint of it."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reference import Weights
from tiny import Batch
from torch_xgb import BoostedLowRankOptimizer


@dataclass
class Log:
    """The loss of every step, and what every booster drew and began with."""

    losses: list[float] = field(default_factory=list)
    drawn: dict[int, list[str]] = field(default_factory=dict)
    inits: dict[int, Weights] = field(default_factory=dict)

    def init(self, t: int) -> Weights:
        """The A of booster t, by the name of its module."""
        return self.inits[t]

    def note_booster(self, optimizer: BoostedLowRankOptimizer) -> None:
        """Note what the active booster drew, once."""
        t = optimizer.booster_index
        if t not in self.inits:
            self.drawn[t] = list(optimizer.active_layers)
            self.inits[t] = {
                name: A.detach().clone() for name, (A, _) in optimizer.active_factors.items()
            }


def train(
    model: nn.Module,
    optimizer: BoostedLowRankOptimizer,
    data: Iterable[Batch],
    *,
    clip: float | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler] = (),
) -> Log:
    """Train as anybody would; nothing in here knows of boosters but the log."""
    log = Log()
    for x, y in data:
        log.note_booster(optimizer)
        loss = cross_entropy((model if forward is None else forward)(x), y)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        optimizer.zero_grad()
        log.losses.append(loss.item())
    log.note_booster(optimizer)
    return log


def through_a_file(checkpoint: Any) -> Any:
    """Written and read as a checkpoint is: tensors and plain types alone."""
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
