"""Whether the library still trains to the bit what an earlier revision of it trains.

    python -m tests.identical [--before REV] [--now REV] [--only SUBSTRING] [--details]

A list of short runs is made twice on this machine, side by side: with the library of ``--before``
(a git revision, or a folder with ``torch_xgb`` in it) and with the one of ``--now`` (the same, by
default the working tree). Compared are weights in the middle of a booster and at the end, the
optimizer's state, losses, merge reports and ledgers. A run that differs is a line; then the exit
code is 1. ``--details`` prints all that differs.

What is run goes through public names alone, for the private ones of both may differ; the models and
loops are those of the working tree's tests, for both.
"""

import argparse
import copy
import functools
import hashlib
import io
import json
import os
import pickle
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
BEFORE = "f8e0661"
PACKAGES = ("torch_xgb", "integrations")
# Not compared of a state: it may say more of the settings.
LEFT_OUT = ("booster/settings/", "booster/version")
SETTINGS: dict[str, Any] = {"kappa": 3, "layers_per_booster": 2, "seed": 3, "lora_alpha": None}
SHOWN = 4  # tensors of a run that differs
LIMIT = 1800.0  # seconds, of a hang and not of a slow machine

Facts = dict[str, str]  # by name: a tensor's digest, or a plain value's text


# What a run writes down.


def digest(tensor: Tensor) -> str:
    """A tensor's type, shape and bits; gathered first if it is in shards."""
    whole = tensor.detach()
    whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
    raw = whole.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    facts = f"{whole.dtype} {tuple(whole.shape)}"
    return f"{facts} {hashlib.blake2b(raw, digest_size=12).hexdigest()}"


def leaves(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in nested containers, with their paths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*at, str(key)))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*at, str(i)))
    else:
        yield "/".join(at), value


class Notes:
    """The facts of one run."""

    def __init__(self) -> None:
        self.facts: Facts = {}
        self.times: Counter[str] = Counter()
        self.merges = 0

    def note(self, name: str, value: Any) -> None:
        """Write down everything in ``value``, numbered where a name comes again."""
        for at, leaf in leaves(value):
            key = f"{name}: {at}" if at else name
            self.times[key] += 1
            if self.times[key] > 1:
                key += f" ({self.times[key]})"
            self.facts[key] = digest(leaf) if isinstance(leaf, Tensor) else f"= {leaf!r}"

    def state(self, name: str, state: dict[str, Any]) -> None:
        """Write down an optimizer's state."""
        found = {at: leaf for at, leaf in leaves(state) if not f"{at}/".startswith(LEFT_OUT)}
        self.note(name, found)

    def report(self, report: Any) -> None:
        """Write down a merge, as a listener of ``on_merge``."""
        names = ("booster_index", "layers", "steps", "rank", "update_norm", "lost")
        self.note(f"merge {self.merges}", {name: getattr(report, name) for name in names})
        self.merges += 1


# Ordinary loops in one process.


def boxed(settings: dict[str, Any], base: str, model: nn.Module) -> Any:
    """The optimizer of a loop."""
    from bases import BASES
    from torch_xgb import BoostedLowRankOptimizer

    optimizer_class, kwargs = BASES[base]
    return BoostedLowRankOptimizer(optimizer_class, model, **{**SETTINGS, **settings, **kwargs})


def stacked(seed: int, **kw: Any) -> nn.Module:
    """The tiny stack."""
    from tiny import stack

    return stack(seed=seed, **kw)


def from_zoo(name: str, seed: int) -> nn.Module:
    """A transformers model of the zoo."""
    from zoo import ZOO

    torch.manual_seed(seed)
    model = ZOO[name].build()
    model.train()
    return model


def tied(seed: int) -> nn.Module:
    """A stack, a weight of which belongs to two blocks."""
    model = stacked(seed)
    model.blocks[2].up.weight = model.blocks[0].up.weight
    return model


def checkpointed(seed: int) -> nn.Module:
    """A Llama with checkpointing of its own."""
    model = from_zoo("llama", seed)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def compiled(how: str, seed: int) -> nn.Module:
    """A stack whose blocks, or which as a whole, goes through torch.compile."""
    torch.compiler.reset()
    model = stacked(seed, depth=2)
    if how == "whole":
        model.compile(backend="aot_eager")
    else:
        for block in model.blocks:
            block.compile(backend="aot_eager")
    return model


def dropping(seed: int) -> nn.Module:
    """A stack that passes over one of its blocks in each step."""
    model = stacked(seed)
    calls = iter(range(1000))

    def drop(module: nn.Module, args: Any) -> None:
        call = next(calls)
        for i, block in enumerate(module.blocks):
            block.forward = (lambda x: x) if i == call % 3 else functools.partial(whole, block)

    def whole(block: nn.Module, x: Tensor) -> Tensor:
        return type(block).forward(block, x)

    model.register_forward_pre_hook(drop)
    return model


def vectors(count: int, dtype: torch.dtype) -> list[Any]:
    """Batches of the tiny stack."""
    from tiny import batches

    return batches(count, dtype)


def spoilt(count: int, dtype: torch.dtype) -> list[Any]:
    """The same, the second and the fifth not finite."""
    found = vectors(count, dtype)
    for i in (1, 4):
        found[i] = (found[i][0] * float("inf"), found[i][1])
    return found


def zoo_batches(name: str, count: int, dtype: torch.dtype) -> list[Any]:
    """The one batch of a zoo's model, over and over."""
    from zoo import ZOO

    torch.manual_seed(1)
    return [ZOO[name].batch()] * count


@dataclass
class Loop:
    """A training loop: what it trains, with which settings, and what happens in its middle.

    ``middle`` comes after ``at`` steps: "copied" trains a copy as well, "pickled" and "resumed" go
    on in another object, "rewound" loads the state of then after the last step and goes on again,
    "merged" merges there.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    model: Callable[..., nn.Module] = stacked
    data: Callable[[int, torch.dtype], list[Any]] = vectors
    dtype: torch.dtype = torch.float64
    base: str = "adamw"
    steps: int = 8
    at: int = 5
    middle: str = ""
    micro: int = 1
    clip: float | None = None
    scheduled: bool = False
    autocast: torch.dtype | None = None
    closure: bool = False
    discard: bool = False
    record: str = ""
    plain: bool = True  # whether the chain is a PEFT adapter

    def built(self, seed: int = 0) -> nn.Module:
        """The model, untrained."""
        return self.model(seed).to(self.dtype)

    def __call__(self, folder: Path) -> Facts:
        """Train and write down."""
        from training import through_a_file

        torch.manual_seed(0)
        notes = Notes()
        settings = dict(self.settings)
        if self.record:
            settings["record"] = True if self.record == "memory" else folder / "run"
        model = self.built()
        optimizer = boxed(settings, self.base, model)
        optimizer.on_merge(notes.report)
        schedulers = []
        if self.scheduled:
            schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 / (1 + i / 4))]
        data = self.data(self.steps * self.micro, self.dtype)
        early, late = data[: self.at * self.micro], data[self.at * self.micro :]
        self.train(notes, model, optimizer, early, schedulers)
        saved = through_a_file((model.state_dict(), optimizer.state_dict()))
        self.look(notes, "middle", model, optimizer)
        if self.middle == "merged":
            optimizer.merge()
        elif self.middle == "copied":
            twin = copy.deepcopy(optimizer)
            self.train(notes, twin.model, twin, late)
            notes.note("the copy's end", twin.finalize().state_dict())
        elif self.middle == "pickled":
            model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
            optimizer.on_merge(notes.report)
        elif self.middle == "resumed":
            model = self.built(1)
            optimizer = boxed(settings, self.base, model)
            optimizer.on_merge(notes.report)
            load(model, optimizer, saved)
        self.train(notes, model, optimizer, late, schedulers)
        self.look(notes, "late", model, optimizer)
        if self.middle == "rewound":
            load(model, optimizer, saved)
            self.look(notes, "rewound", model, optimizer)
            self.train(notes, model, optimizer, late)
        notes.note("end", optimizer.finalize(discard=self.discard).state_dict())
        notes.note("trains again", [p.requires_grad for p in model.parameters()])
        if optimizer.chain is not None:
            self.look_at_chain(notes, optimizer.chain, folder)
        return notes.facts

    def train(
        self,
        notes: Notes,
        model: nn.Module,
        optimizer: Any,
        data: Sequence[Any],
        schedulers: Sequence[Any] = (),
    ) -> None:
        """Train through all of the data."""
        scaler = torch.amp.GradScaler("cpu") if self.autocast == torch.float16 else None
        for start in range(0, len(data), self.micro):
            part = data[start : start + self.micro]

            def evaluate(part: Sequence[Any] = part) -> Tensor:
                losses = []
                for batch in part:
                    cast = torch.autocast("cpu", self.autocast) if self.autocast else nullcontext()
                    with cast:
                        if isinstance(batch, dict):
                            loss = model(**batch).loss
                        else:
                            loss = cross_entropy(_wide(model(batch[0])), batch[1])
                    loss = loss / self.micro
                    (loss if scaler is None else scaler.scale(loss)).backward()
                    losses.append(loss.detach())
                notes.note("loss", losses)
                return torch.stack(losses).sum()

            if self.closure:
                optimizer.step(evaluate)
            else:
                optimizer.observe(evaluate())
                if scaler is not None:
                    scaler.unscale_(optimizer)
                if self.clip is not None:
                    notes.note("norm", nn.utils.clip_grad_norm_(model.parameters(), self.clip))
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)
                    scaler.update()
            for scheduler in schedulers:
                scheduler.step()
            optimizer.zero_grad()

    def look(self, notes: Notes, name: str, model: nn.Module, optimizer: Any) -> None:
        """Write down where the run is."""
        notes.note(f"{name}, weights", model.state_dict())
        notes.state(f"{name}, state", optimizer.state_dict())
        notes.note(f"{name}, factors", optimizer.active_factors)
        notes.note(f"{name}, layers", optimizer.active_layers)

    def look_at_chain(self, notes: Notes, chain: Any, folder: Path) -> None:
        """Write down what a ledger holds, and what comes out of it."""
        from torch_xgb import Chain

        records = ("booster_index", "layers", "steps", "rank", "update_norm", "updates", "saved")
        notes.note("chain", [{name: getattr(r, name) for name in records} for r in chain])
        chain.score(1, 0.5)
        chain.score(0, 0.25)
        notes.note("best", (chain.best, chain.should_stop(1)))
        chain.save(folder / "packed.safetensors")
        opened = {"own": chain, "packed": Chain.load(folder / "packed.safetensors")}
        if self.record == "folder":
            opened["folder"] = Chain.load(folder / "run")
        for name, one in opened.items():
            for to in (-1, 1, len(one) - 1):
                notes.note(f"{name}, {to}", one.rollback(self.built(1), to).state_dict())
            for exact in (None, True, False):
                notes.note(f"{name}, {exact}", one.apply(self.built(), exact=exact).state_dict())
        notes.note("delta", [chain.delta(name) for name in chain.header.weights])
        for rank in (None, 2) if self.plain else ():
            from safetensors.torch import load_file

            report = chain.to_peft(folder / f"peft {rank}", rank, "base")
            notes.note(f"peft {rank}", (report.rank, report.error, report.total_error))
            notes.note(f"peft {rank}", load_file(report.folder / "adapter_model.safetensors"))
            text = (report.folder / "adapter_config.json").read_text(encoding="utf-8")
            notes.note(f"peft {rank}", json.loads(text))


def load(model: nn.Module, optimizer: Any, saved: Any) -> None:
    """Resume from a checkpoint."""
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.element_size() < 4 else logits


# The list of them.

Run = Callable[[Path], Facts]


def loops() -> dict[str, Run]:
    """The runs of ordinary loops."""
    from bases import BASES
    from torch_xgb import LossPlateau, Weighted
    from zoo import ZOO

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    conv1d = functools.partial(stacked, kind="conv1d")
    deep = functools.partial(stacked, depth=4)
    head = {"modules_to_save": ["head"]}
    plateau = {"patience": 1, "min_steps": 2, "max_steps": 3, "min_improvement": 0.2}
    narrow = functools.partial(stacked, hiddens=(9, 7, 5))
    found: dict[str, Run] = {}

    def add(name: str, settings: dict[str, Any] | None = None, **kw: Any) -> None:
        found[name] = Loop(settings or {}, **kw)

    # Models and forms.
    for kind, model in {"linear": stacked, "conv1d": conv1d, "odd widths": narrow}.items():
        add(f"{kind}, lora", model=model)
        add(f"{kind}, biases", {"bias": "targets"}, model=model)
        add(f"{kind}, direft", {"adapter": "direft"}, model=model)
    add("tied weight", model=tied)
    for name in ZOO:
        add(
            f"zoo {name}",
            {"kappa": 2, "exclude_modules": ZOO[name].bypassed},
            model=functools.partial(from_zoo, name),
            data=functools.partial(zoo_batches, name),
            dtype=torch.float32,
            steps=5,
            at=3,
        )
    llama: dict[str, Any] = {"data": functools.partial(zoo_batches, "llama"), "steps": 5, "at": 4}
    llama["dtype"] = torch.float32
    add("llama, own checkpointing", model=checkpointed, **llama)
    add("targets by suffix", {"target_modules": ["query", "down", "embed"]})
    add("targets by pattern", {"target_modules": r"blocks\.\d\.(key|up)", "exclude_modules": "0"})
    # Ranks and scales.
    add("rank 3", {"r": 3})
    add("ranks falling, alpha", {"r": [3, 2, 1], "lora_alpha": 4.0})
    add("ranks falling, biases", {"r": [2, 1], "bias": "targets", **head})
    add("ranks, rates by rank", {"r": lambda t: 3 - t % 3, "rank_lr_exponent": -0.25})
    add("shrinkage", {"shrinkage": 0.5})
    add("shrinkage by booster", {"shrinkage": lambda t: 1 / (1 + t)})
    add("factor_l2", {"factor_l2": 0.1})
    add("dropout", {"lora_dropout": 0.3})
    add("dropout, direft", {"lora_dropout": 0.3, "adapter": "direft"})
    add("rewarmup", {"rewarmup_steps": 2}, scheduled=True)
    # When and where.
    add("knots", {"kappa": [2, 4, 7]})
    add("one booster", {"kappa": None, "layers_per_booster": None})
    add("kappa by booster", {"kappa": lambda t: 1 + t})
    add("kappa 1", {"kappa": 1})
    for how in ("observed", "closure"):
        kw = {"middle": "resumed"} if how == "observed" else {"closure": True}
        add(f"plateau, {how}", {"kappa": LossPlateau(**plateau), **head}, **kw)
    for sampler in ("uniform", "cyclic", "window", "least-used"):
        add(f"sampler {sampler}", {"layer_sampler": sampler, "kappa": 2}, model=deep)
    add("sampler weighted", {"layer_sampler": Weighted([1, 2, 3, 4]), "kappa": 2}, model=deep)
    add("sampler of one's own", {"layer_sampler": lambda s, t, n, k: [t % n, (t + 1) % n]})
    add("a share of the blocks", {"layers_per_booster": 0.5}, model=deep)
    add("blocks by booster", {"layers_per_booster": [1, 3, 2], "kappa": 2})
    # Pairs taken up again.
    every = {"layers_per_booster": 3}
    add("carry 0.97", {"carry": 0.97})
    add("carry 1.0", {"carry": 1.0, **every})
    add("carry 0.97, biases, conv1d", {"carry": 0.97, "bias": "targets", **every}, model=conv1d)
    add("carry 0.97, direft", {"carry": 0.97, "adapter": "direft", **every})
    add("carry 0.97, ranks", {"carry": 0.97, "r": [1, 3, 2], **every})
    add("carry 0.97, bf16", {"carry": 0.97, **head}, dtype=torch.bfloat16)
    for base in ("sgd-momentum", "adagrad", "adamw-fused", "third-party-counting"):
        add(f"carry 0.97, {base}", {"carry": 0.97, **every}, base=base)
    # How A begins.
    add("gradient", {"init": "gradient", "r": 2})
    add("gradient, conv1d, head", {"init": "gradient", "kappa": 2, **head}, model=conv1d)
    add("gradient, direft", {"init": "gradient", "adapter": "direft"})
    # Memory.
    add("checkpointing", {"checkpointing": True})
    add("checkpointing a half", {"checkpointing": 0.5}, model=deep)
    add("checkpointing, dropout", {"checkpointing": True, "lora_dropout": 0.2})
    # Precision.
    for name, dtype in dtypes.items():
        for precision in ("nearest", "stochastic", "residual", "auto"):
            add(f"{name}, {precision}", {"merge_precision": precision, "kappa": 2}, dtype=dtype)
    add("bf16, residual, resumed", dtype=torch.bfloat16, middle="resumed")
    add("fp16, residual elsewhere", {"residual_device": "cpu"}, dtype=torch.float16)
    add("autocast", head, dtype=torch.float32, autocast=torch.bfloat16)
    add("scaled", dtype=torch.float32, autocast=torch.float16, clip=0.5)
    # Bases and loops.
    for base in BASES:
        add(f"base {base}", head if base != "muon" else {}, base=base)
    add("accumulated, clipped", head, micro=2, clip=0.05, scheduled=True)
    add("closure", head, closure=True)
    add("unused", {"unused": "skip", "layers_per_booster": 3}, model=dropping)
    add("not finite", {"nonfinite": "skip"}, data=spoilt)
    add("compiled blocks", model=functools.partial(compiled, "blocks"))
    add("compiled", model=functools.partial(compiled, "whole"))
    # What happens to a run.
    for middle in ("merged", "copied", "pickled", "resumed", "rewound"):
        add(middle, head, middle=middle)
    add("resumed between boosters", head, middle="resumed", at=6)
    add("resumed, adagrad", middle="resumed", base="adagrad")
    add("resumed, carry", {"carry": 0.97}, middle="resumed", at=7)
    add("copied, carry, bf16", {"carry": 0.97}, middle="copied", dtype=torch.bfloat16)
    add("resumed, conv1d, gradient", {"init": "gradient"}, middle="resumed", model=conv1d, at=3)
    rounded = {"r": [3, 1], "merge_precision": "stochastic"}
    add("resumed, ranks, stochastic", rounded, middle="resumed", dtype=torch.bfloat16)
    add("discarded", discard=True)
    # Ledgers.
    for record in ("memory", "folder"):
        add(f"ledger in {record}", head, record=record, dtype=torch.float32)
        add(f"ledger in {record}, bf16", {"bias": "targets"}, record=record, dtype=torch.bfloat16)
    add("ledger resumed", head, record="folder", middle="resumed")
    add("ledger, direft", {"adapter": "direft", "r": [2, 1]}, record="memory")
    add("ledger, conv1d", {"shrinkage": 0.5}, record="folder", model=conv1d)
    add(
        "ledger, stochastic",
        {"merge_precision": "stochastic"},
        record="memory",
        dtype=dtypes["bf16"],
    )
    bert = {**llama, "data": functools.partial(zoo_batches, "bert"), "at": 3}
    add(
        "ledger, bert",
        {"kappa": 2},
        record="folder",
        model=functools.partial(from_zoo, "bert"),
        **bert,
    )
    return found


def trainer_runs() -> dict[str, Run]:
    """The runs of the Hugging Face Trainer in one process."""
    saving = {"save_strategy": "steps", "save_steps": 5}

    def train(folder: Path, settings: dict[str, Any], way: str = "", **arguments: Any) -> Facts:
        from torch_xgb.integrations.trainers import boost_trainer
        from torch_xgb.integrations.transformers import BoostingCallback

        from tests.integrations.test_trainer import make

        notes = Notes()
        trainer = make(folder / "first", settings, **arguments)
        if way == "boosted":
            trainer.optimizer_cls_and_kwargs = None
            boost_trainer(trainer, **settings)
        trainer.add_callback(BoostingCallback(trainer))
        trainer.train()
        notes.note("end", trainer.model.state_dict())
        logs = [
            {k: v for k, v in e.items() if "runtime" not in k and "second" not in k}
            for e in trainer.state.log_history
        ]
        notes.note("log", logs)
        if way == "resumed":
            again = make(folder / "again", settings)
            again.add_callback(BoostingCallback(again))
            again.train(resume_from_checkpoint=str(folder / "first" / "checkpoint-5"))
            notes.note("again", again.model.state_dict())
        return notes.facts

    def run(settings: dict[str, Any] | None = None, **kw: Any) -> Run:
        return lambda folder: train(folder, settings or {}, **kw)

    return {
        "Trainer": run(),
        "Trainer, resumed": run(way="resumed", **saving),
        "Trainer, accumulated": run(
            {"carry": 0.97, "r": 2}, gradient_accumulation_steps=2, logging_steps=1
        ),
        "Trainer, boost_trainer": run({"kappa": 2, "layers_per_booster": 2}, way="boosted"),
        "Trainer, ledger": run({"record": True}, eval_strategy="steps", eval_steps=4),
    }


# Runs of two processes. Each function makes those of a list of names, in each of the processes.


def ddp_runs() -> dict[str, Any]:
    """DistributedDataParallel: settings, micro-batches, clipping."""
    return {
        "lora": ({}, 1, 0.05),
        "direft, head, accumulated": ({"modules_to_save": ["head"], "adapter": "direft"}, 2, 0.3),
        "checkpointing": ({"checkpointing": True}, 2, None),
        "carry": ({"carry": 0.97, "layers_per_booster": 3}, 1, None),
        "gradient": ({"init": "gradient", "r": 2}, 1, None),
        "unused": ({"unused": "skip", "kappa": 2}, 1, None),
        "bf16": ({"merge_precision": "residual"}, 1, None),
        "ledger": ({"record": True}, 1, None),
    }


def ddp(name: str, folder: Path) -> Facts:
    """One run under DistributedDataParallel."""
    from torch.nn.parallel import DistributedDataParallel

    from processes import share
    from tiny import batches, stack

    settings, micro, clip = ddp_runs()[name]
    dtype = torch.bfloat16 if name == "bf16" else torch.float64
    torch.manual_seed(0)
    notes, model = Notes(), stack(3, dtype=dtype)
    optimizer = boxed(settings, "adamw", model)
    optimizer.on_merge(notes.report)
    wrapped = DistributedDataParallel(model)
    data = batches(8 * micro, dtype)
    for step in range(8):
        for i in range(micro):
            x, y = share(data[step * micro + i])
            with nullcontext() if i == micro - 1 else wrapped.no_sync():
                loss = cross_entropy(_wide(wrapped(x)), y) / micro
                loss.backward()
            notes.note("loss", loss)
        if clip is not None:
            notes.note("norm", nn.utils.clip_grad_norm_(wrapped.parameters(), clip))
        optimizer.step()
        optimizer.zero_grad()
        if step == 4:
            notes.note("middle", model.state_dict())
            notes.state("state", optimizer.state_dict())
    notes.note("end", optimizer.finalize().state_dict())
    return notes.facts


def fsdp_runs() -> dict[str, Any]:
    """FSDP2, as its tests have it, and in bfloat16."""
    from tests.parallel.test_fsdp import CASES

    mixed = {"merge_precision": "stochastic"}
    return {**CASES, "bf16": ({}, "blocks"), "bf16, stochastic": (mixed, "mixed")}


def fsdp(name: str, folder: Path) -> Facts:
    """One run under FSDP2, with a resume in its middle."""
    from tests.parallel.test_fsdp import build, train
    from tiny import batches

    settings, how = fsdp_runs()[name]
    dtype = torch.bfloat16 if "bf16" in name else torch.float64
    torch.manual_seed(0)
    notes = Notes()
    model, optimizer = build(settings, how, dtype)
    optimizer.on_merge(notes.report)
    data = batches(8, dtype)
    notes.note("log", train(model, optimizer, data[:5]))
    weights, state = model.state_dict(), optimizer.state_dict()
    notes.note("middle", weights)
    notes.state("state", state)
    weights = {key: value.detach().clone() for key, value in weights.items()}
    state = copy.deepcopy(state)
    notes.note("log", train(model, optimizer, data[5:]))
    notes.note("end", optimizer.finalize().state_dict())
    model, optimizer = build(settings, how, dtype)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    notes.note("log", train(model, optimizer, data[5:]))
    notes.note("again", optimizer.finalize().state_dict())
    return notes.facts


def accelerate_runs() -> dict[str, Any]:
    """accelerate's own routes."""
    return {"ddp": None, "fsdp2": None}


def accelerated(name: str, folder: Path) -> Facts:
    """One run through accelerate, resumed in its middle."""
    from tests.integrations.test_accelerate import accelerator, prepare, train

    notes = Notes()
    for part in (slice(0, 8), slice(8, 12)):
        acc = accelerator(name, 2)
        *parts, optimizer = prepare(acc)
        if part.start:
            acc.load_state(str(folder))
        notes.note("losses", train(acc, parts, part))
        if not part.start:
            acc.save_state(str(folder))
        notes.note("weights", parts[0].state_dict())
        notes.state("state", optimizer.state_dict())
    notes.note("end", optimizer.finalize().state_dict())
    return notes.facts


def zero_runs() -> dict[str, Any]:
    """DeepSpeed's stages, most of them through the JSON."""
    from zero_runs import Case

    none: dict[str, Any] = {"modules_to_save": []}
    json_: dict[str, Any] = {"client": False, "steps": 8}
    found = {f"{stage}": Case(stage, clip=0.5, **json_) for stage in range(4)}
    found |= {f"{s}, bf16": Case(s, bf16=True, clip=0.02, settings=none, **json_) for s in range(4)}
    found |= {f"{s}, carry": Case(s, settings={"carry": 0.7}, **json_) for s in (0, 2, 3)}
    return found | {
        "1, given, accumulated, scheduled": Case(
            1, steps=8, accumulation=2, scheduler="client", clip=0.3
        ),
        "1, scheduled": Case(1, scheduler="json", **json_),
        "2, unused anchor": Case(2, settings=none, spare=True, **json_),
        "3, zero.Init, biases": Case(3, zero_init=True, settings={"bias": "targets"}, **json_),
        "3, gradient": Case(3, settings={"init": "gradient"}, **json_),
        "3, direft": Case(3, settings={"adapter": "direft"}, **json_),
        "3, checkpointing": Case(3, settings={"checkpointing": 0.5}, **json_),
        "3, gathered": Case(3, zero={"stage3_param_persistence_threshold": 10**6}, **json_),
        "2, adagrad": Case(2, settings={"base": "Adagrad"}, **json_),
    }


def zero(name: str, folder: Path) -> Facts:
    """One run under DeepSpeed, resumed in its middle."""
    from torch_xgb.integrations.deepspeed import boosted

    import zero_runs as routes

    case = zero_runs()[name]
    torch.manual_seed(0)
    notes, data = Notes(), list(routes.data(case))
    for again in (False, True):
        engine = routes.engine_of(case, seed=int(again))
        boosted(engine).on_merge(notes.report)
        if again:
            engine.load_checkpoint(str(folder))
        else:
            for micro in data[:5]:
                notes.note("losses", routes.steps(engine, micro))
            engine.save_checkpoint(str(folder))
        notes.note("middle", routes.whole_weights(engine))
        notes.state("state", boosted(engine).state_dict())
        for micro in data[5:]:
            notes.note("losses", routes.steps(engine, micro))
            notes.note("norm", engine.get_global_grad_norm())
        boosted(engine).finalize()
        notes.note("end", routes.whole_weights(engine))
        engine.destroy()
    return notes.facts


def framework_runs() -> dict[str, Any]:
    """accelerate and the Trainer over DeepSpeed: function, stage, whether by the JSON."""
    return {
        "accelerate over ZeRO 2": ("accelerated", 2, False),
        "accelerate over ZeRO 3, JSON": ("accelerated", 3, True),
        "Trainer over ZeRO 3": ("trained", 3, False),
        "Trainer over ZeRO 2, JSON": ("trained", 2, True),
    }


def framework(name: str, folder: Path) -> Facts:
    """One of them."""
    import zero_frameworks

    how, stage, by_json = framework_runs()[name]
    notes = Notes()
    notes.note("all", getattr(zero_frameworks, how)(stage, by_json, str(folder)))
    return notes.facts


GROUPS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[str, Path], Facts]]] = {
    "DDP": (ddp_runs, ddp),
    "FSDP2": (fsdp_runs, fsdp),
    "accelerate": (accelerate_runs, accelerated),
    "ZeRO": (zero_runs, zero),
    "frameworks": (framework_runs, framework),
}


# Those in the same processes: to start some takes longer than most of these runs.
TOGETHER = (("DDP", "FSDP2", "accelerate"), ("ZeRO", "frameworks"))


def in_processes(names: dict[str, list[str]], folder: str) -> tuple[dict[str, Facts], list[str]]:
    """Make the runs of some groups in this process; others do the same."""
    name_ledgers_alike()
    facts = {}
    for group, some in names.items():
        for i, name in enumerate(some):
            facts[titled(group, name)] = GROUPS[group][1](name, Path(folder, f"{group}-{i}"))
    return facts, library_files()


# The process that makes all runs with one library.


def name_ledgers_alike() -> None:
    """Have a ledger's random name, which its digests are of as well, be no random one."""
    secrets.token_hex = lambda size=8: "00" * size


def library_files() -> list[str]:
    """Where the library's modules were loaded from."""
    loaded = [m for n, m in list(sys.modules.items()) if n.partition(".")[0] == "torch_xgb"]
    return sorted({str(m.__file__) for m in loaded})


def names_of(only: str) -> dict[str, list[str]]:
    """The chosen runs, by group; those of one process are the group ""."""
    every = {"": [*loops(), *trainer_runs()]}
    every |= {group: list(names()) for group, (names, _) in GROUPS.items()}
    return {
        group: kept
        for group, names in every.items()
        if (kept := [name for name in names if only in titled(group, name)])
    }


def titled(group: str, name: str) -> str:
    """A run's name among all."""
    return f"{group} {name}" if group else name


def work(out: Path, only: str) -> None:
    """Make the runs with the library that is found, and write what they noted to ``out``."""
    import torch_xgb
    from processes import run

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name_ledgers_alike()
    runs: dict[str, Facts] = {}
    files = {str(torch_xgb.__file__)}
    alone = {**loops(), **trainer_runs()}
    chosen = names_of(only)
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(chosen.get("", [])):
            (place := Path(folder, str(i))).mkdir()
            try:
                runs[name] = alone[name](place)
            except Exception:
                runs[name] = {"failed": traceback.format_exc()}
        for groups in TOGETHER:
            names = {group: chosen[group] for group in groups if group in chosen}
            if not names:
                continue
            try:
                ranks = run(in_processes, 2, names, folder)
            except Exception:
                failed = {"failed": traceback.format_exc()}
                runs |= {titled(g, name): failed for g, some in names.items() for name in some}
                continue
            files.update(file for _, loaded in ranks for file in loaded)
            for name in ranks[0][0]:
                runs[name] = {
                    f"{key} of process {rank}": value
                    for rank, (facts, _) in enumerate(ranks)
                    for key, value in facts[name].items()
                }
    files.update(library_files())
    out.write_text(json.dumps({"files": sorted(files), "runs": runs}), encoding="utf-8")


# The process that compares.


def lay_out(source: str, folder: Path) -> None:
    """Copy the library of a folder, or of a revision, into one package below ``folder``."""
    if Path(source).is_dir():
        for name in PACKAGES:
            if (given := Path(source, name)).is_dir():
                shutil.copytree(given, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        tree = _git("ls-tree", "--name-only", source).decode().split()
        packed = _git("archive", source, *[name for name in PACKAGES if name in tree])
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
    inside = folder / "torch_xgb" / "integrations"  # there already where a checkout has a link
    if (folder / "integrations").is_dir() and not inside.exists():
        (folder / "integrations").rename(inside)


def _git(*args: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *args], check=True, capture_output=True).stdout


def start(folder: Path, only: str) -> subprocess.Popen[bytes]:
    """Start making the runs with the library in ``folder``."""
    environment = os.environ | {
        # The library before what is installed, and the tests' helpers and tests behind it.
        "PYTHONPATH": os.pathsep.join(map(str, (folder, TESTS / "support", ROOT))),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    command = [sys.executable, str(TESTS / "identical.py"), "--work", str(folder / "noted.json")]
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [*command, "--only", only], cwd=folder, env=environment, stdout=said, stderr=said
        )


def collect(worker: subprocess.Popen[bytes], folder: Path) -> dict[str, Facts]:
    """Wait for the runs of one library and make sure that it was that one."""
    if worker.wait(timeout=LIMIT):
        said = (folder / "said.txt").read_text(encoding="utf-8", errors="replace")
        sys.exit(f"the runs of {folder.name} could not be made:\n{said[-4000:]}")
    noted = json.loads((folder / "noted.json").read_text(encoding="utf-8"))
    library = (folder / "torch_xgb").resolve()
    strangers = [f for f in noted["files"] if not Path(f).resolve().is_relative_to(library)]
    if strangers or not noted["files"]:
        sys.exit(f"the runs of {folder.name} loaded {strangers[:5]}, which are not in {library}")
    runs: dict[str, Facts] = noted["runs"]
    return runs


def differences(before: Facts, now: Facts) -> list[str]:
    """The names of what differs; plain values may be added."""
    failed = [
        f"failed {when}: {facts['failed'].strip()}"
        for when, facts in (("before", before), ("now", now))
        if "failed" in facts
    ]
    if failed:
        return failed
    added = [key for key in now if key not in before and not now[key].startswith("= ")]
    return [key for key in before if before[key] != now.get(key)] + added


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.identical",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--before", default=BEFORE, metavar="REV", help=f"a revision or folder (default: {BEFORE})")
    add("--now", default=str(ROOT), metavar="REV", help="the same (default: the working tree)")
    add("--only", default="", metavar="SUBSTRING", help="runs whose names hold it")
    add("--details", action="store_true", help="everything that differs, and whole tracebacks")
    add("--work", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work, options.only)
        return
    sides = {"before": options.before, "now": options.now}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {side: Path(temporary, side) for side in sides}
        for side, source in sides.items():
            folders[side].mkdir()
            lay_out(source, folders[side])
        workers = {side: start(folder, options.only) for side, folder in folders.items()}
        try:
            before, now = (collect(workers[side], folders[side]) for side in sides)
        finally:
            for worker in workers.values():
                worker.kill()
    if not before:
        sys.exit(f"no run's name holds {options.only!r}")
    different = 0
    for name in before:
        found = differences(before[name], now.get(name, {}))
        different += bool(found)
        if found and options.details:
            print(f"{name}:", *(["    " + line for line in found]), sep="\n")
        elif found:
            more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            print(f"{name}: {'; '.join(found[:SHOWN])}{more}")
    what = "now" if options.now == str(ROOT) else f"now ({options.now})"
    said = f"{different} differ" if different else "identical"
    print(f"{len(before)} runs, before {options.before} and {what}: {said}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
