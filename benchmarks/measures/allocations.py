"""What one linear map allocates and launches: frozen, boosted, or wrapped by PEFT's LoRA."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.measures.memory import changes
from benchmarks.measures.operations import Operations
from torch_xgb import BoostedLowRankOptimizer

Prepare = Callable[[nn.Module], object]


def allocated(run: Callable[[], object]) -> list[int]:
    """Return the bytes of every allocation that torch's CPU allocator serves during ``run``."""
    return [size for size in changes(run) if size > 0]


@dataclass(frozen=True)
class AllocationRow:
    """Allocations of one linear map (in -> out) by one method."""

    name: str
    forward: int
    forward_outputs: float  # bytes, in units of the map's output
    backward: int
    backward_inputs: float  # bytes, in units of the map's input
    launches: tuple[int, int]  # operations, forward and backward

    def cells(self) -> list[str]:
        """Format the row."""
        return [
            self.name,
            str(self.forward),
            f"{self.forward_outputs:.3f}",
            str(self.backward),
            f"{self.backward_inputs:.3f}",
            *map(str, self.launches),
        ]


def allocations(module: nn.Module, x: Tensor) -> tuple[list[int], list[int]]:
    """Return the bytes of every allocation of a forward and a backward pass."""
    forward, backward = _passes(module, x)
    return allocated(forward), allocated(backward)


def launches(module: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return how many operations a forward and a backward pass are made of."""
    found = []
    for run in _passes(module, x):
        with Operations() as counted:
            run()
        found.append(counted.number)
    return found[0], found[1]


def _passes(module: nn.Module, x: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a forward pass, and the backward pass of what it made."""
    x = x.detach().requires_grad_()
    made: list[Tensor] = []
    g = torch.ones_like(module(x))
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return lambda: made.append(module(x)), lambda: torch.autograd.grad(made, wanted, g)


def allocation_rows(
    in_features: int, out_features: int, batch: tuple[int, int], dtype: torch.dtype = torch.float32
) -> list[AllocationRow]:
    """Count for a frozen map, a drawn one, and one under PEFT's LoRA of rank 1 and 8."""
    x = torch.randn(*batch, in_features, dtype=dtype)
    rows = []
    for name, prepare in METHODS.items():
        root = nn.Sequential(nn.Linear(in_features, out_features, bias=False, dtype=dtype))
        linear = root[0]
        linear.requires_grad_(False)
        held = prepare(root)  # keeps what was prepared alive
        forward, backward = allocations(root[0], x)
        outputs, inputs = (
            x.numel() // in_features * out_features * x.itemsize,
            x.numel() * x.itemsize,
        )
        cells = (len(forward), sum(forward) / outputs, len(backward), sum(backward) / inputs)
        rows.append(AllocationRow(name, *cells, launches(root[0], x)))
        del held
    return rows


def _boost(root: nn.Module) -> object:
    return BoostedLowRankOptimizer(AdamW, root, r=1, lr=1e-3)


def _lora(r: int) -> Prepare:
    return lambda root: get_peft_model(root, LoraConfig(r=r, target_modules=["0"]))


METHODS: dict[str, Prepare] = {
    "frozen": lambda root: None,
    "torch_xgb r=1": _boost,
    "PEFT LoRA r=1": _lora(1),
    "PEFT LoRA r=8": _lora(8),
}
