"""What a training step computes and keeps, counted instead of timed: the same on every machine.

    python -m benchmarks.cost                    # about two minutes
    python -m benchmarks.cost --json runs/cost.json

A Llama of 12 blocks (hidden 512, intermediate 1408, 8 heads, vocabulary 4096) with random weights
sees a batch of 4 x 256 tokens in float32. Every method counts under the same rules:

FLOPs are those of the matrix products of forward and backward, as torch's FlopCounterMode sees
them, with two additions it lacks: the in-place ``addmm_`` and the CPU's flash attention. Products
with weights and products of attention are told apart.

Bytes are those of the distinct storages that autograd saves for backward, model parameters and
buffers apart.

A draw's cost depends on its lowest block alone: that is where backward stops. It is counted once
for every lowest block, for the tightest and the widest draw above it, which must agree; a
sampler's mean is then taken over many of its draws. "The limit" is the frozen model with a gradient
asked for at the input of the lowest drawn block, and nothing else.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.allocations import AllocationRow, allocation_rows
from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.samplers import draw, sampler

SAMPLERS = ("uniform", "cyclic", "window")
_WITH_WEIGHTS = {"aten.mm", "aten.addmm", "aten.addmm_"}
Shape = Sequence[int]


@dataclass(frozen=True)
class Size:
    """The model and the batch that are counted."""

    blocks: int = 12
    hidden: int = 512
    intermediate: int = 1408
    heads: int = 8
    vocabulary: int = 4096
    batch: int = 4
    tokens: int = 256
    attention: str = "sdpa"

    def model(self) -> LlamaForCausalLM:
        """Build the model, with the same random weights every time."""
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.tokens,
            use_cache=False,
            attn_implementation=self.attention,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LlamaForCausalLM(config).train()

    def ids(self) -> Tensor:
        """Return a batch of tokens."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.vocabulary, (self.batch, self.tokens), generator=generator)


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


def _addmm_flop(y: Shape, a: Shape, b: Shape, **_: Any) -> int:
    """Count a product (m, k) by (k, n) added to y."""
    return 2 * a[0] * a[1] * b[1]


def _attention_flop(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flop(g: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(g, q, k, v)


_UNKNOWN_TO_TORCH: dict[Any, Callable[..., int]] = {
    torch.ops.aten.addmm_: _addmm_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
}


def count_flops(run: Callable[[], object]) -> Counter[str]:
    """Count the FLOPs of all matrix products during ``run``, by operator."""
    with FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH) as counter:
        run()
    return Counter({str(op): n for op, n in counter.get_flop_counts().get("Global", {}).items()})


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


def cost_table(counted: Sequence[Row]) -> str:
    """Lay out the costs, FLOPs as multiples of the first row's."""
    unit = counted[0].costs[0]
    head = ["", "FLOPs, weights", "least", "most", "and attention", "saved MB", "least", "most"]
    body = [
        [
            row.name,
            *row.span("weights", unit.weights, 3),
            f"{row.mean('flops') / unit.flops:.3f}",
            *row.span("saved", 1e6, 1),
        ]
        for row in counted
    ]
    return table(head, body)


def allocation_table(counted: Sequence[AllocationRow]) -> str:
    """Lay out what one drawn linear map allocates beside a frozen one."""
    head = ["allocations of a linear map", "forward", "in outputs", "backward", "in inputs"]
    return table(head, [row.cells() for row in counted])


def record(counted: Sequence[Row], spaces: Sequence[AllocationRow], **about: Any) -> dict[str, Any]:
    """Gather everything for the file."""
    fields = ("weights", "attention", "flops", "saved")
    summary: Mapping[str, Any] = {
        row.name: {field: row.mean(field) for field in fields} | {"draws": len(row.costs)}
        for row in counted
    }
    return {**about, **provenance(), "rows": summary, "allocations": [asdict(s) for s in spaces]}


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--drawn", type=int, default=4, help="blocks a booster draws (default: 4)")
    parser.add_argument("--draws", type=int, default=5000, help="per sampler (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    size = Size(attention=options.attention)
    print(f"{size}\n{options.drawn} blocks drawn, seed {options.seed}; {provenance_line()}\n")
    counted = rows(size, options.drawn, options.draws, options.seed)
    spaces = allocation_rows(size.hidden, size.intermediate, (size.batch, size.tokens))
    print(f"{cost_table(counted)}\n\n{allocation_table(spaces)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"size": asdict(size), "drawn": options.drawn, "seed": options.seed}
        options.json.write_text(json.dumps(record(counted, spaces, **about), indent=2) + "\n")


if __name__ == "__main__":
    main()
