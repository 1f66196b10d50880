"""Tiny models whose forward pass is short enough to be spelled out again in reference.py."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Batch = tuple[Tensor, Tensor]
MakeLinear = Callable[[int, int], nn.Module]

INPUTS, WIDTH, HIDDEN, CLASSES = 5, 6, 10, 3


def conv1d(in_features: int, out_features: int) -> Conv1D:
    """transformers' linear map, whose arguments and weight are the other way round."""
    layer = Conv1D(out_features, in_features)
    nn.init.uniform_(layer.weight, -0.4, 0.4)
    nn.init.uniform_(layer.bias, -0.4, 0.4)
    return layer


KINDS: dict[str, MakeLinear] = {"linear": nn.Linear, "conv1d": conv1d}


class Block(nn.Module):
    """Attention with one head, then an MLP, each beside a residual connection."""

    def __init__(self, linear: MakeLinear = nn.Linear, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.query = linear(WIDTH, WIDTH)
        self.key = linear(WIDTH, WIDTH)
        self.value = linear(WIDTH, WIDTH)
        self.out = linear(WIDTH, WIDTH)
        self.up = linear(WIDTH, hidden)
        self.down = linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT / WIDTH**0.5
        x = x + self.out(scores.softmax(-1) @ self.value(x))
        return x + self.down(torch.tanh(self.up(x)))


class Pool(nn.Module):
    """Three experts in a stack (E, out, in), or (E, in, out), each input a mixture of all."""

    def __init__(self, in_features: int, out_features: int, is_transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = is_transposed
        self.gate = nn.Linear(in_features, 3)
        sides = (in_features, out_features) if is_transposed else (out_features, in_features)
        self.experts = nn.Parameter(torch.empty(3, *sides).uniform_(-0.4, 0.4))

    def forward(self, x: Tensor) -> Tensor:
        experts = self.experts.mT if self.is_transposed else self.experts
        return torch.einsum("...e,eoi,...i->...o", self.gate(x).softmax(-1), experts, x)


class Stack(nn.Module):
    """Blocks between a linear embedding and a linear head: the shape of a transformer.

    Both are frozen by hand, so that the boosters alone train it.
    """

    def __init__(self, hiddens: Iterable[int], linear: MakeLinear = nn.Linear) -> None:
        super().__init__()
        self.embed = linear(INPUTS, WIDTH)
        self.blocks = nn.ModuleList(Block(linear, hidden) for hidden in hiddens)
        self.head = linear(WIDTH, CLASSES)
        self.embed.requires_grad_(False)
        self.head.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(-2))


def stack(
    depth: int = 3,
    kind: str = "linear",
    dtype: torch.dtype = torch.float64,
    hiddens: Iterable[int] = (),
    seed: int = 0,
) -> Stack:
    """A ``Stack`` with weights that depend on the arguments alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Stack(tuple(hiddens) or (HIDDEN,) * depth, KINDS[kind])
    return model.to(dtype)


def tied(seed: int = 0) -> nn.Module:
    """Three blocks beside residual connections, the last with the first one's weight."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _Tied()


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3))
        self.blocks[2][0].weight = self.blocks[0][0].weight

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x.mean(-2)


def pooled(model: Stack) -> Stack:
    """The stack with experts at the end of every block."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for i, block in enumerate(model.blocks):
            pool = Pool(block.up.out_features, WIDTH, is_transposed=i == 1)
            block.down = pool.to(model.embed.weight.dtype)
    return model


def batches(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Batch]:
    """Inputs of shape (4, 5, INPUTS) with the class of each sequence."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, 5, INPUTS, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (count, 4), generator=generator)
    return [(x.to(dtype), y) for x, y in zip(inputs, labels, strict=True)]


def as_matrices(model: nn.Module, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """Copies of a model's parameters as stored now, a linear map's weight as (out, in)."""
    transposed = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, Conv1D)}
    kept = set(names) or {name for name, _ in model.named_parameters()}
    tensors = {name: p.detach().clone() for name, p in model.named_parameters() if name in kept}
    return {n: p.T.contiguous() if n in transposed else p for n, p in tensors.items()}


class Quick(nn.Module):
    """Blocks that take little time, on any device and to compile."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(INPUTS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(depth)
        )
        self.head = nn.Linear(WIDTH, CLASSES)
        self.embed.requires_grad_(False)
        self.head.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(-2))


def quick(depth: int = 3, dtype: torch.dtype = torch.float64) -> Quick:
    """Make one of weights that are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Quick(depth).to(dtype)
