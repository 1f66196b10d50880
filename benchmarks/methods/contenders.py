"""The methods whose steps are timed and whose memory is counted: a model in, a step out.

Every contender takes the same batch and the same AdamW (no weight decay) on whatever it trains. A
package that is missing leaves its contender out, and the output says so.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.methods.lora import adapted
from benchmarks.subjects.classification import Batch
from benchmarks.subjects.minilm import HEAD, is_head
from torch_xgb import BoostedLowRankOptimizer

# What each contender needs beside torch and peft. galore-torch imports bitsandbytes for its 8-bit
# variant even where only the plain one is used.
NEEDS = {"BAdam": ("badam",), "GaLore": ("galore_torch", "bitsandbytes")}


@dataclass
class Contender:
    """A method at work on its own model.

    Attributes:
        name: As in the tables.
        model: What is called.
        step: One whole training step: forward, backward, update, gradients set to None.
        turn: What a longer cycle costs beside its steps (a merge and the next draw), once.
        aim: Makes the next step's backward stop at the given block; free of charge.
    """

    name: str
    model: nn.Module
    step: Callable[[], None]
    turn: Callable[[], None] | None = None
    aim: Callable[[int], None] | None = None
    optimizer: Optimizer | None = field(default=None, repr=False)


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the stack of blocks of a Llama or BERT, with its dotted name."""
    return next(
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1
    )


def _stepper(model: nn.Module, optimizer: Optimizer, batch: Batch) -> Callable[[], None]:
    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def frozen(model: nn.Module, batch: Batch) -> Contender:
    """Run the frozen model forward and backward to the input of a block, and nothing else."""
    model.requires_grad_(False)
    _, blocks = blocks_of(model)
    handles: list[Any] = []

    def ask(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].detach().requires_grad_(), *args[1:])

    def aim(lowest: int) -> None:
        for handle in handles:
            handle.remove()
        handles[:] = [blocks[lowest].register_forward_pre_hook(ask)]

    def step() -> None:
        model(**batch).loss.backward()

    return Contender("the limit", model, step, aim=aim)


def boosted(
    model: nn.Module, batch: Batch, drawn: int, name: str = "torch_xgb r=1", **settings: Any
) -> Contender:
    """Train rank-1 boosters of so many blocks; ``aim`` draws them from the given one upwards."""
    _, blocks = blocks_of(model)
    plan = [0]

    def sampler(seed: int, t: int, num_layers: int, layers_per_booster: int) -> list[int]:
        # What a draw costs depends on its lowest block alone (benchmarks.cost checks it).
        lowest = plan[0]
        above = torch.randperm(num_layers - lowest - 1, generator=_seeded(t))
        return sorted([lowest, *(lowest + 1 + i for i in above[: drawn - 1].tolist())])

    settings = {
        "lr": 1e-3,
        "weight_decay": 0.0,
        "kappa": None,
        "modules_to_save": _heads(model),
    } | settings
    assert drawn <= len(blocks)
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, r=1, layers_per_booster=drawn, layer_sampler=sampler, **settings
    )

    def aim(lowest: int) -> None:
        plan[0] = lowest
        optimizer.merge()

    step = _stepper(model, optimizer, batch)
    return Contender(name, model, step, optimizer.merge, aim, optimizer)


def _seeded(t: int) -> torch.Generator:
    return torch.Generator().manual_seed(t)


def lora(model: nn.Module, batch: Batch, r: int, checkpointed: bool = False) -> Contender:
    """Train PEFT's LoRA on all linear maps of the blocks, or with transformers' checkpointing."""
    if checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    aside = [f"{head}.dense" if head == "pooler" else head for head in _heads(model)]
    config = LoraConfig(r=r, target_modules="all-linear", exclude_modules=aside or None)
    wrapped = adapted(model, config)
    trained = [p for n, p in wrapped.named_parameters() if p.requires_grad or is_head(n)]
    optimizer = AdamW([p.requires_grad_() for p in trained], lr=1e-3, weight_decay=0.0)
    name = f"PEFT LoRA r={r}{', checkpointed' if checkpointed else ''}"
    return Contender(name, wrapped, _stepper(wrapped, optimizer, batch), optimizer=optimizer)


def full(model: nn.Module, batch: Batch) -> Contender:
    """Train every parameter."""
    optimizer = AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    return Contender("full AdamW", model, _stepper(model, optimizer, batch), optimizer=optimizer)


def galore(model: nn.Module, batch: Batch, rank: int = 8, gap: int = 200) -> Contender:
    """Train every weight of the blocks through GaLore's projected gradients, the rest frozen."""
    from galore_torch import GaLoreAdamW

    prefix, _ = blocks_of(model)
    model.requires_grad_(False)
    linears = [
        m.weight
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and n.startswith(prefix)
    ]
    projected = {"rank": rank, "update_proj_gap": gap, "scale": 0.25, "proj_type": "std"}
    groups: list[dict[str, Any]] = [{"params": [w.requires_grad_() for w in linears], **projected}]
    if head := [p for n, p in model.named_parameters() if is_head(n)]:
        groups.append({"params": [p.requires_grad_() for p in head]})
    optimizer = GaLoreAdamW(groups, lr=1e-3, no_deprecation_warning=True)
    return Contender("GaLore r=8", model, _stepper(model, optimizer, batch), optimizer=optimizer)


def badam(model: nn.Module, batch: Batch, drawn: int) -> Contender:
    """Train so many neighbouring blocks at a time in full with BAdam; ``aim`` chooses them."""
    from badam import BlockOptimizer

    prefix, blocks = blocks_of(model)
    starts = range(len(blocks) - drawn + 1)
    groups = [[f"{prefix}.{start + i}." for i in range(drawn)] for start in starts]
    head = [n for n, _ in model.named_parameters() if is_head(n)]
    base = AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    with quiet():
        optimizer = BlockOptimizer(
            base,
            list(model.named_parameters()),
            groups,
            switch_block_every=10**9,
            start_block=0,
            switch_mode="fixed",
            active_modules=head,
            verbose=0,
        )

    def aim(lowest: int) -> None:
        optimizer.current_block_idx = lowest
        with quiet():
            optimizer.switch_trainable_params()

    step = _stepper(model, optimizer, batch)
    name = f"BAdam, {drawn} block{'s' if drawn > 1 else ''}"
    return Contender(name, model, step, aim=aim, optimizer=optimizer)


@contextmanager
def quiet() -> Iterator[None]:
    """Let a package that talks say nothing."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def missing(name: str) -> list[str]:
    """Return the packages that a contender lacks."""
    return [p for p in NEEDS.get(name.split(",")[0].split(" ")[0], ()) if find_spec(p) is None]


def _heads(model: nn.Module) -> list[str]:
    """Name what every contender trains in full, where there is any."""
    parts = {part for name, _ in model.named_parameters() for part in name.split(".")}
    return [head for head in HEAD if head in parts]


Build = Callable[[nn.Module, Batch], Contender]


def contenders(drawn: int, **settings: Any) -> dict[str, Build]:
    """Return how each contender is made, but those whose package is missing."""

    def ours(name: str, checkpointing: bool | float = False) -> Build:
        kept = {"checkpointing": checkpointing, **settings}
        return lambda model, batch: boosted(model, batch, drawn, name, **kept)

    every: dict[str, Build] = {
        "the limit": frozen,
        "torch_xgb r=1": ours("torch_xgb r=1"),
        "torch_xgb, half checkpointed": ours("torch_xgb, half checkpointed", 0.5),
        "torch_xgb, checkpointed": ours("torch_xgb, checkpointed", True),
        "PEFT LoRA r=8": lambda model, batch: lora(model, batch, 8),
        "PEFT LoRA r=8, checkpointed": lambda model, batch: lora(model, batch, 8, True),
        "PEFT LoRA r=1": lambda model, batch: lora(model, batch, 1),
        "full AdamW": full,
        f"BAdam, {drawn} blocks": lambda model, batch: badam(model, batch, drawn),
        "BAdam, 1 block": lambda model, batch: badam(model, batch, 1),
        "GaLore r=8": galore,
    }
    return {name: build for name, build in every.items() if not missing(name)}


def left_out(names: Sequence[str]) -> str:
    """Say which contenders are not there and why."""
    lacking = {n: missing(n) for n in ("BAdam", "GaLore") if missing(n)}
    told = (f"{n} (pip install {' '.join(p)})" for n, p in lacking.items())
    return f"left out: {', '.join(told)}" if lacking else f"{len(names)} contenders"
