"""A small stack of residual blocks and its batches, the same in every process."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

WIDTH, CLASSES, DEPTH, BATCH = 32, 5, 4, 8

Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """A residual block of two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Stack(nn.Module):
    """Blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, CLASSES).requires_grad_(False)  # the boosters alone train

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """Return logits, or with labels what the Trainer takes."""
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        if labels is None:
            return logits
        return {"loss": cross_entropy(logits.float(), labels), "logits": logits}


def model(dtype: torch.dtype) -> Stack:
    """Make the same model in every process."""
    torch.manual_seed(0)
    return Stack().to(dtype)


def batches(steps: int) -> list[Batch]:
    """Make the data."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(steps, BATCH, WIDTH, generator=generator)
    return list(zip(x, torch.randint(CLASSES, (steps, BATCH), generator=generator), strict=True))


def own(batch: Batch, dtype: torch.dtype) -> Batch:
    """Return this process's rows."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    return batch[0][rank::size].to(dtype), batch[1][rank::size]
