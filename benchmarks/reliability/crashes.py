"""SIGKILL at random moments: a run begun again from what it left on disk ends in the same weights.

Five ways to run: a plain loop that saves as docs/how-to/saving.md says, one with a ledger, the
Trainer's checkpoints, and DeepSpeed's under ZeRO 1 and 3.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.reliability.apart import Fork
from benchmarks.reliability.counts import Counts, Fault, is_ours
from benchmarks.reliability.subjects import Kind, batch, boosted, digest, model_of, step
from torch_xgb import Chain

__all__ = ["ROUTES", "run"]

STEPS = 60
KIND = Kind("stack", "head")
Work = Callable[[Path], str]


def loop(folder: Path, record: bool = False, pause: float = 0.001) -> str:
    """Train with a checkpoint after every third step, beginning with the last one there is."""
    model, first, last = model_of(KIND), 0, folder / "last.pt"
    saved: dict[str, Any] | None = torch.load(last, weights_only=True) if last.exists() else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        first = saved["step"]
    ledger = folder / "ledger" if record else None
    optimizer = boosted(model, KIND, record=ledger)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
    for number in range(first, STEPS):
        step(model, optimizer, number)
        time.sleep(pause)
        if number % 3 == 2:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": number + 1}, folder / "new.pt")
            (folder / "new.pt").replace(last)
    optimizer.finalize()
    if ledger is not None:
        applied = Chain.load(ledger).apply(model_of(KIND))
        mine, theirs = (
            {n: v for n, v in m.state_dict().items() if "blocks" in n} for m in (model, applied)
        )
        if digest(mine) != digest(theirs):
            raise AssertionError("the ledger does not make the trained model")
    return digest(model.state_dict())


def trainer(folder: Path) -> str:
    """Train by the Trainer, resuming from its last checkpoint that is whole."""
    from torch_xgb.integrations.transformers import BoostedFactory, BoostingCallback
    from transformers import Trainer, TrainingArguments

    told = {"kappa": 3, "layers_per_booster": 1, "modules_to_save": ["head"], "lr": 0.02}
    arguments = TrainingArguments(
        str(folder),
        max_steps=30,
        save_steps=3,
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_total_limit=3,
    )
    x, y = zip(*(batch(i) for i in range(30)), strict=True)
    rows = [{"x": a, "labels": b} for a, b in zip(torch.cat(x), torch.cat(y), strict=True)]
    model = _WithLoss(model_of(KIND))
    made = Trainer(model, arguments, train_dataset=rows, optimizer_cls_and_kwargs=(BoostedFactory, told))  # type: ignore[arg-type]  # fmt: skip  # noqa: E501
    made.add_callback(BoostingCallback(made))
    made.train(resume_from_checkpoint=_last_whole(folder))
    return digest(model.state_dict())


def _last_whole(folder: Path) -> str | None:
    """Return the last checkpoint whose ``trainer_state.json`` is whole: the Trainer ends with it.

    ``get_last_checkpoint`` takes one that was being written for the last.
    """
    for found in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        with suppress(OSError, ValueError):
            json.loads((found / "trainer_state.json").read_text())
            return str(found)
    return None


class _WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def zero(folder: Path, stage: int) -> str:
    """Train under DeepSpeed in one process, with its checkpoints."""
    import deepspeed
    import torch_xgb.integrations.deepspeed  # noqa: F401  the optimizer's name in the JSON

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    store = folder / f"store{os.getpid()}"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=0, world_size=1
    )
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "optimizer": {
            "type": "BoostedLowRank",
            "params": {
                "base": "AdamW",
                "kappa": 3,
                "layers_per_booster": 1,
                "modules_to_save": ["head"],
                "lr": 0.02,
            },
        },
    }
    engine, *_ = deepspeed.initialize(model=model_of(KIND), config=config)
    first, latest = 0, folder / "last"
    if latest.exists():
        _, client = engine.load_checkpoint(str(folder), tag=latest.read_text())
        first = client["step"]
    for number in range(first, 24):
        x, y = batch(number)
        loss = nn.functional.cross_entropy(engine(x), y)
        engine.backward(loss)
        engine.step()
        if number % 3 == 2:
            tag = f"step{number + 1}"
            shutil.rmtree(folder / tag, ignore_errors=True)
            engine.save_checkpoint(str(folder), tag=tag, client_state={"step": number + 1})
            (folder / "new").write_text(tag)
            (folder / "new").replace(latest)
    x, _ = batch(0)
    with torch.no_grad():
        return digest({"outputs": engine(x)})


ROUTES: dict[str, tuple[Work, int, int]] = {  # what runs, kills in the quick run, and in all
    "loop": (loop, 3, 40),
    "ledger": (partial(loop, record=True), 3, 30),
    "trainer": (trainer, 0, 15),
    "zero1": (partial(zero, stage=1), 0, 8),
    "zero3": (partial(zero, stage=3), 0, 7),
}


_BEFORE = {
    "trainer": ("torch_xgb.integrations.transformers",),
    "zero": ("deepspeed", "torch_xgb.integrations.deepspeed"),
}


def run(quick: bool, seed: int) -> Counts:
    """Kill runs of every route, and begin each again until it ends."""
    counts, dice = Counts(), random.Random(seed)
    for name, (work, few, many) in ROUTES.items():
        if kills := few if quick else many:
            for module in _BEFORE.get(name.rstrip("13"), ()):
                importlib.import_module(module)  # once, and not in every process anew
            counts.add(_route(name, work, kills, dice))
    return counts


def _route(name: str, work: Work, kills: int, dice: random.Random) -> Counts:
    counts = Counts()
    began = time.monotonic()
    answer = _once(work, None, tempfile.mkdtemp())
    whole = time.monotonic() - began
    if answer is None or not answer[0]:
        counts.injected = 1
        counts.wrong.append(f"{name}: the run fails when nobody kills it: {answer and answer[1]}")
        return counts
    folder = tempfile.mkdtemp()
    while counts.injected < kills:
        with counts.fault(f"{name}, kill {counts.injected}") as fault:
            again = _once(work, dice.uniform(0.05, 0.9) * whole, folder)
            if again is not None:  # it ended before it was shot, and the next run begins anew
                _compare(again, answer, fault)
                shutil.rmtree(folder)
                folder = tempfile.mkdtemp()
    with counts.fault(f"{name}, after the last kill") as fault:
        _compare(_once(work, None, folder), answer, fault)
    shutil.rmtree(folder)
    return counts


def _compare(again: Any, answer: Any, fault: Fault) -> None:
    if again is None or not again[0]:
        fault.lost = f"a run cannot go on: {str(again and again[1])[-400:]}"
    elif isinstance(again[1], _Refused):
        fault.refused = True
    elif again[1] != answer[1]:
        fault.wrong = "the run went on to other weights"


@dataclass
class _Refused:
    """A run that the library refused to begin again, in words."""

    words: str


def _once(work: Work, shot: float | None, folder: str) -> tuple[bool, object] | None:
    process = Fork(partial(_quietly, work, Path(folder)))
    if shot is not None:
        process.shoot(shot)
    return process.wait()


def _quietly(work: Work, folder: Path) -> str | _Refused:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        return work(folder)
    except Exception as error:
        if is_ours(error):
            return _Refused(str(error))
        raise
