"""One step of an ordinary training loop, and the rate along it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.optim import Optimizer

from benchmarks.subjects.classification import Batch


def step(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    forward: AbstractContextManager[Any] | None = None,
) -> float:
    """Take it, gradients clipped to norm 1, and return the loss.

    Args:
        model: What is called.
        optimizer: What is stepped.
        batch: The model's keywords.
        forward: What the forward pass is in, autocast for instance.
    """
    with forward or nullcontext():
        loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def decayed(step: int, steps: int, warmup: float = 0.06, held: float = 0.0) -> float:
    """Return the rate's share at a step: linear warm-up, then linear decay to zero.

    Args:
        step: From 0.
        steps: Of the run.
        warmup: The share of them in which the rate rises.
        held: The share of them after which it falls, at the earliest.
    """
    rising = max(1, round(warmup * steps))
    falling = steps - max(rising, round(held * steps))
    return min((step + 1) / rising, (steps - step) / max(1, falling), 1.0)
