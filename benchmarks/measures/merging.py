"""What a merge takes, in units of one read and write of the weights it touches."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.measures.memory import peak_memory
from benchmarks.measures.operations import Operations
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.saving.memory import Memory
from torch_xgb.weights.addition import Addition

CASES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32, nearest": (torch.float32, {}),
    "float32, nearest, r=4": (torch.float32, {"r": 4}),
    "bfloat16, nearest": (torch.bfloat16, {"merge_precision": "nearest"}),
    "bfloat16, stochastic": (torch.bfloat16, {"merge_precision": "stochastic"}),
    "bfloat16, residual": (torch.bfloat16, {}),
    "bfloat16, residual, a listener": (torch.bfloat16, {"listen": True}),
    "float16, residual": (torch.float16, {}),
}


@dataclass(frozen=True)
class MergeCost:
    """The least times of several merges, in seconds.

    Attributes:
        traffic: Reading and writing every weight once, in place.
        merge: A merge with everything about it, the next draw included.
        looks: Of it, looking whether weights are what they were, and noting what they are.
        sums: Of it, adding the products to the weights.
        temporary: Bytes that a merge holds at most, above what was held before.
        passes: Operations over an entry, reductions included: the same on every machine.
    """

    traffic: float
    merge: float
    looks: float
    sums: float
    temporary: int
    passes: float

    @property
    def ratio(self) -> float:
        """The merge in units of the traffic."""
        return self.merge / self.traffic


class _Clock:
    """Adds up the seconds that calls take: of the processor, or of a device they are waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """Return the seconds so far."""
        if self._device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def time(self, run: Callable[[], object]) -> float:
        """Return the seconds of a call."""
        start = self.now()
        run()
        return self.now() - start

    @contextmanager
    def within(self, spent: list[float], *methods: tuple[type, str]) -> Iterator[None]:
        """Add the seconds that methods of classes take inside to the last number of a list."""
        with ExitStack() as patched:
            for owner, name in methods:
                patched.enter_context(patch.object(owner, name, self._clocked(owner, name, spent)))
            yield

    def _clocked(self, owner: type, name: str, spent: list[float]) -> Callable[..., Any]:
        method = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return method(*args, **kwargs)
            finally:
                spent[-1] += self.now() - start

        return call


def merge_cost(case: str, width: int, count: int, merges: int, device: torch.device) -> MergeCost:
    """Measure merges of a stack of square maps, all of them drawn.

    Args:
        case: One of ``CASES``.
        width: Of the maps.
        count: How many.
        merges: How many merges are timed; two more warm up.
        device: Where.
    """
    dtype, settings = CASES[case]
    model, optimizer = _made(dtype, width, count, device, dict(settings))
    weights = [m.weight.detach() for m in model if isinstance(m, nn.Linear)]
    x = torch.ones(2, width, dtype=dtype, device=device)
    clock, taken = _Clock(device), [[0.0], [0.0]]
    traffic, whole = [], []
    for number in range(merges + 2):
        _step(model, optimizer, x)
        traffic.append(clock.time(lambda: _touch(weights)))
        if number % 2:  # in every other one, as clocks inside take time of their own
            whole.append(clock.time(optimizer.merge))
            continue
        for spent in taken:
            spent.append(0.0)
        looks = [(Memory, "compared"), (Memory, "note")]
        with clock.within(taken[0], *looks), clock.within(taken[1], (Addition, "go_on")):
            optimizer.merge()
    _step(model, optimizer, x)
    temporary = peak_memory(optimizer.merge, device)
    _step(model, optimizer, x)
    with Operations() as counted:
        optimizer.merge()
    passes = counted.entries / sum(weight.numel() for weight in weights)
    return MergeCost(min(traffic), min(whole), *(min(s[1:]) for s in taken), temporary, passes)


def _made(
    dtype: torch.dtype, width: int, count: int, device: torch.device, settings: dict[str, Any]
) -> tuple[nn.Sequential, BoostedLowRankOptimizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        maps = [nn.Linear(width, width, bias=False) for _ in range(count)]
    model = nn.Sequential(*maps).to(device, dtype)
    listen = settings.pop("listen", False)
    settings |= {"kappa": None, "layers_per_booster": None, "lr": 1e-3, "modules_to_save": []}
    optimizer = BoostedLowRankOptimizer(AdamW, model, **settings)
    if listen:
        optimizer.on_merge(lambda report: report.lost)
    return model, optimizer


def _step(model: nn.Module, optimizer: BoostedLowRankOptimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).float().square().mean().backward()
    optimizer.step()


def _touch(weights: list[Tensor]) -> None:
    for weight in weights:
        weight.mul_(1.0)  # every entry is read and written, and stays what it is
