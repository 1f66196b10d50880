"""Steps of models whose blocks are compiled, beside the same in eager mode."""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.methods.contenders import Contender, blocks_of, boosted, lora
from benchmarks.subjects.batched import Subject
from benchmarks.subjects.classification import Batch

OURS, LORA = "torch_xgb r=1", "PEFT LoRA r=8"
CHECKPOINTED = ", checkpointed"


@dataclass(frozen=True)
class Compiled:
    """A contender and what the compiler has made of its blocks.

    Attributes:
        contender: The contender.
        graphs: One number, how many graphs were compiled so far; empty in eager mode.
    """

    contender: Contender
    graphs: list[int]


def made(subject: Subject, backend: str) -> dict[str, Compiled]:
    """Make every contender twice, in eager mode and compiled."""
    found = {}
    for checkpointed in (False, True):
        for compiled in (False, True):
            for name, build in _builds(subject, checkpointed).items():
                contender = build(subject.model(), subject.batch)
                graphs = _compile(contender.model, backend) if compiled else []
                found[f"{name}{', compiled' if compiled else ''}"] = Compiled(contender, graphs)
    return found


def _builds(
    subject: Subject, checkpointed: bool
) -> dict[str, Callable[[nn.Module, Batch], Contender]]:
    told = CHECKPOINTED if checkpointed else ""

    def ours(model: nn.Module, batch: Batch) -> Contender:
        return boosted(model, batch, subject.drawn, OURS, checkpointing=checkpointed)

    return {
        OURS + told: ours,
        LORA + told: lambda model, batch: lora(model, batch, 8, checkpointed),
    }


def _compile(model: nn.Module, backend: str) -> list[int]:
    """Compile every block, whole or not at all; return a list that counts graphs."""
    graphs = [0]
    compiler: Callable[..., Any] = torch._dynamo.lookup_backend(backend)

    def counted(*args: Any, **kwargs: Any) -> Any:
        graphs[0] += 1
        return compiler(*args, **kwargs)

    for block in blocks_of(model)[1]:
        block.compile(backend=counted, fullgraph=True)
    return graphs


def rounds(
    subject: Subject, contenders: Mapping[str, Compiled], count: int, seed: int, sync: bool
) -> dict[str, list[float]]:
    """Time a step of each contender in every round, in an order drawn anew; ours at either end.

    The first two rounds warm up.

    Args:
        subject: What is trained.
        contenders: By name.
        count: How many rounds.
        seed: Of the orders.
        sync: Whether to wait for CUDA; otherwise processor time is taken.
    """
    times: dict[str, list[float]] = defaultdict(list)
    order, rng = list(contenders.items()), random.Random(seed)
    for number in range(count + 2):
        rng.shuffle(order)
        for name, one in order:
            spent = []
            for lowest in (0, subject.top) if one.contender.aim is not None else (0,):
                if one.contender.aim is not None:
                    one.contender.aim(lowest)
                start = _now(sync)
                one.contender.step()
                spent.append(_now(sync) - start)
            share = subject.means["uniform"]
            if number > 1:
                times[name].append(spent[0] + share * (spent[-1] - spent[0]))
    return dict(times)


def _now(sync: bool) -> float:
    if not sync:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def summary(
    contenders: Mapping[str, Compiled], times: Mapping[str, list[float]]
) -> dict[str, dict[str, float]]:
    """Return graphs, the median step, and its ratios to eager mode and to LoRA made alike."""
    rows: dict[str, dict[str, float]] = {}
    for name, spent in times.items():
        eager = times[name.removesuffix(", compiled")]
        peft = times[name.replace(OURS, LORA)]
        rows[name] = {
            "graphs": sum(contenders[name].graphs),
            "step": statistics.median(spent),
            "of_eager": statistics.median(a / b for a, b in zip(spent, eager, strict=True)),
            "of_lora": statistics.median(a / b for a, b in zip(spent, peft, strict=True)),
        }
    return rows
