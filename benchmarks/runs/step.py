"""One step of an ordinary training loop."""

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
