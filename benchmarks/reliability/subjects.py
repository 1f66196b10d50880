"""Tiny runs whose every tensor can be compared: models, settings, batches that a number names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.optim import SGD, AdamW, NAdam, Optimizer

from torch_xgb import BoostedLowRankOptimizer, LossPlateau

__all__ = ["MODELS", "SETTINGS", "Kind", "batch", "boosted", "digest", "model_of", "step"]

WIDTH = 6
Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Two linear maps beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    """Blocks and a head."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(WIDTH, 3).requires_grad_(False)  # the boosters alone train

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Tied(Stack):
    """Blocks 0 and 2 share their first map."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[2].up.weight = self.blocks[0].up.weight


class Uneven(nn.Module):
    """Blocks of two shapes, some maps without bias, read in a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.first.requires_grad_(False)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 3).requires_grad_(False)  # the boosters alone train

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.first, *self.blocks):
            x = torch.tanh(layer(x))
        return linear(x, self.head.weight, self.head.bias)


MODELS: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "stack": (Stack, torch.float32),
    "float64": (Stack, torch.float64),
    "bfloat16": (Stack, torch.bfloat16),
    "tied": (Tied, torch.float32),
    "uneven": (Uneven, torch.float32),
}


def plateau() -> LossPlateau:
    return LossPlateau(patience=1, min_steps=2, max_steps=4)


SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {},
    "head": lambda: {"modules_to_save": ["head"], "base": NAdam},
    "direft": lambda: {"adapter": "direft", "r": 2},
    "bias": lambda: {"bias": "targets", "r": [3, 1]},
    "carry": lambda: {"carry": 0.9, "layer_sampler": "cyclic"},
    "gradient": lambda: {"init": "gradient", "kappa": 3},
    "knots": lambda: {"kappa": (2, 5, 9), "rewarmup_steps": 2, "base": SGD},
    "loss": lambda: {"kappa": plateau()},
    "stochastic": lambda: {"merge_precision": "stochastic"},
    "residual": lambda: {"merge_precision": "residual", "factor_l2": 1e-4},
    "one": lambda: {"kappa": None, "layers_per_booster": None},
}


@dataclass(frozen=True)
class Kind:
    """A model and settings, by their names."""

    model: str = "stack"
    settings: str = "plain"

    @property
    def dtype(self) -> torch.dtype:
        return MODELS[self.model][1]


def model_of(kind: Kind, seed: int = 0) -> nn.Module:
    """Make a model whose weights depend on the arguments alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[kind.model][0]().to(kind.dtype)


def boosted(model: nn.Module, kind: Kind, **others: Any) -> BoostedLowRankOptimizer:
    """Wrap a model as its kind says."""
    told = {"kappa": 3, "layers_per_booster": 1, "lr": 0.02, "modules_to_save": [], "seed": 3}
    settings = {**told, **SETTINGS[kind.settings](), **others}
    base: type[Optimizer] = settings.pop("base", AdamW)
    return BoostedLowRankOptimizer(base, model, **settings)


def batch(number: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Return the batch of a number."""
    generator = torch.Generator().manual_seed(1000 + number)
    x = torch.randn(8, WIDTH, generator=generator)
    return x.to(dtype), torch.randint(3, (8,), generator=generator)


def step(model: nn.Module, optimizer: BoostedLowRankOptimizer, number: int) -> None:
    """Take the step of a number, as any loop does."""
    x, y = batch(number, next(model.parameters()).dtype)
    optimizer.zero_grad()
    loss = cross_entropy(model(x).float(), y)
    loss.backward()
    optimizer.observe(loss.detach())
    optimizer.step()


def digest(*states: Mapping[str, Any]) -> str:
    """Return a text that differs as soon as a bit of a tensor or another value does."""
    found = hashlib.sha256()
    for state in states:
        _digest(state, found)
    return found.hexdigest()


def _digest(value: Any, found: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        kept = value.detach().cpu().contiguous().reshape(-1)
        found.update(kept.view(torch.uint8).numpy().tobytes() if kept.numel() else b"")
    elif isinstance(value, Mapping):
        for key, one in value.items():
            found.update(repr(key).encode())
            _digest(one, found)
    elif isinstance(value, (list, tuple)):
        found.update(b"[")
        for one in value:
            _digest(one, found)
        found.update(b"]")
    else:
        found.update(repr(value).encode())
