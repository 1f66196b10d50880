"""What a training step computes and keeps: FLOPs and saved bytes, by method and draw."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import LlamaForCausalLM

from benchmarks.measures.flops import count_flops
from benchmarks.subjects.llama import Size
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.schedule.samplers import draw, sampler

SAMPLERS = ("uniform", "cyclic", "window")
_WITH_WEIGHTS = {"aten.mm", "aten.addmm", "aten.addmm_", "aten.addcmul_", "aten.mul"}


@dataclass(frozen=True)
class Cost:
    """What one forward and backward pass came to."""

    weights: int  # FLOPs of products with weights
    attention: int  # FLOPs of products of activations with each other
    saved: int  # bytes

    @property
    def flops(self) -> int:
        """FLOPs of all products."""
        return self.weights + self.attention


@dataclass(frozen=True)
class Row:
    """The costs of a method: one, or one for each of many draws."""

    name: str
    costs: Sequence[Cost]

    def mean(self, field: str) -> float:
        """Average one of the cost's fields."""
        return statistics.fmean(getattr(cost, field) for cost in self.costs)

    def span(self, field: str, unit: float, digits: int) -> list[str]:
        """Format mean, least and most of a field; a single cost has but a mean."""
        values = [getattr(cost, field) / unit for cost in self.costs]
        cells = [statistics.fmean(values), min(values), max(values)]
        return (
            [f"{v:.{digits}f}" for v in cells]
            if len(values) > 1
            else [_first(cells, digits), "", ""]
        )


def _first(values: Sequence[float], digits: int) -> str:
    return f"{values[0]:.{digits}f}"


def count_saved(model: nn.Module, run: Callable[[], object]) -> int:
    """Count the bytes autograd saves during ``run``, each storage once, the model's own apart."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}  # holds on to the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            saved[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def cost(model: nn.Module, ids: Tensor, backward: bool = True) -> Cost:
    """Count one forward and, unless told not to, backward pass."""
    flops: Counter[str] = Counter()

    def step() -> None:
        with torch.set_grad_enabled(backward):
            loss = model(input_ids=ids, labels=ids).loss
        if backward:
            loss.backward()

    def counted() -> None:
        flops.update(count_flops(step))

    saved = count_saved(model, counted)
    model.zero_grad()
    weights = sum(n for op, n in flops.items() if op in _WITH_WEIGHTS)
    return Cost(weights, flops.total() - weights, saved)


@contextmanager
def boosted(model: nn.Module, drawn: Sequence[int]) -> Iterator[BoostedLowRankOptimizer]:
    """Adapt the model for a while, with these blocks drawn."""
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, r=1, layers_per_booster=len(drawn), layer_sampler=lambda *_: drawn, lr=1e-3
    )
    try:
        yield optimizer
    finally:
        optimizer.finalize()


def boosted_cost(model: nn.Module, ids: Tensor, drawn: Sequence[int]) -> Cost:
    """Count a step of a rank-1 booster on the drawn blocks."""
    with boosted(model, drawn):
        return cost(model, ids)


def limit_cost(model: LlamaForCausalLM, ids: Tensor, lowest: int) -> Cost:
    """Count the frozen model with a gradient at the input of one block and nothing else."""

    def ask(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].detach().requires_grad_(), *args[1:])

    handle = model.model.layers[lowest].register_forward_pre_hook(ask)
    try:
        model.requires_grad_(False)
        return cost(model, ids)
    finally:
        handle.remove()
        model.requires_grad_(True)


def lora_cost(model: LlamaForCausalLM, ids: Tensor, r: int) -> Cost:
    """Count PEFT's LoRA on all linear maps."""
    adapted = get_peft_model(model, LoraConfig(r=r, target_modules="all-linear"))
    try:
        return cost(adapted, ids)
    finally:
        adapted.unload()
        model.requires_grad_(True)


def by_lowest(model: LlamaForCausalLM, ids: Tensor, drawn_blocks: int) -> dict[int, Cost]:
    """Count a draw for every lowest block.

    Raises:
        RuntimeError: If two draws with the same lowest block cost differently.
    """
    costs, blocks = {}, model.config.num_hidden_layers
    for lowest in range(blocks - drawn_blocks + 1):
        tight = list(range(lowest, lowest + drawn_blocks))
        wide = [lowest, *range(blocks - drawn_blocks + 1, blocks)]
        costs[lowest] = boosted_cost(model, ids, tight)
        if wide != tight and (other := boosted_cost(model, ids, wide)) != costs[lowest]:
            raise RuntimeError(f"draws {tight} and {wide} cost {costs[lowest]} and {other}")
    return costs


def lowest_blocks(name: str, size: Size, drawn_blocks: int, draws: int, seed: int) -> list[int]:
    """List the lowest block of every draw of a sampler."""
    rule = sampler(name)
    return [draw(rule, seed, t, size.blocks, drawn_blocks)[0] for t in range(draws)]


def rows(size: Size, drawn_blocks: int, draws: int, seed: int) -> list[Row]:
    """Count every method."""
    model, ids = size.model(), size.ids()
    single = {
        "frozen forward": partial(cost, model, ids, backward=False),
        "full fine-tuning": partial(cost, model, ids),
        "PEFT LoRA r=8": partial(lora_cost, model, ids, 8),
        "PEFT LoRA r=1": partial(lora_cost, model, ids, 1),
    }
    counted = [Row(name, [run()]) for name, run in single.items()]
    boosters = by_lowest(model, ids, drawn_blocks)
    limits = {lowest: limit_cost(model, ids, lowest) for lowest in boosters}
    for name in SAMPLERS:
        drawn = lowest_blocks(name, size, drawn_blocks, draws, seed)
        counted.append(Row(f"torch_xgb r=1, {name}", [boosters[lowest] for lowest in drawn]))
        counted.append(Row(f"the limit, {name}", [limits[lowest] for lowest in drawn]))
    return counted
