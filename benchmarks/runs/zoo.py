"""One model type after another: what boosters and PEFT's LoRA make of a small model of it."""

from __future__ import annotations

import copy
import multiprocessing
import resource
import signal
import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.subjects.shrunk import Batch, Specimen, differentiable, outputs, specimen
from torch_xgb import BoostedLowRankOptimizer

Record = dict[str, Any]
TOLERANCE, MEMORY, SECONDS = 1e-5, 8 << 30, 40  # of the processor's


def examine(model_type: str) -> Record:
    """Examine one type in a process of its own, which may take so much memory and time."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_examine, args=(model_type, theirs))
    child.start()
    theirs.close()
    try:
        answer: Record = mine.recv()
    except EOFError:
        child.join()
        late = child.exitcode == -signal.SIGXCPU
        answer = {"made": "ran out of time" if late else "the process ended (memory)"}
    child.join()
    return {"type": model_type, **answer}


def _examine(model_type: str, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, 2 * SECONDS))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        subject = specimen(model_type)
    except Exception as error:
        pipe.send({"made": str(error) or type(error).__name__})
        return
    record: Record = {"made": "", "class": subject.task}
    record |= {"peft": _lora(subject)}
    pipe.send(record | _boosters(subject))


def _boosters(subject: Specimen) -> Record:
    """Train a step and merge; where a message says what to do, do it and try again."""
    settings: dict[str, Any] = {}
    for _ in range(3):
        model = copy.deepcopy(subject.model)
        try:
            return _boosted(model, subject.batch, settings)
        except Exception as error:
            said = " ".join(str(error).split())
            told = _told(said, model, settings)
            if told is None or told == settings:
                return {
                    "trains": False,
                    "settings": settings,
                    "words": f"{type(error).__name__}: {said}"[:400],
                }
            settings = told
    return {"trains": False, "settings": settings, "words": said[:400]}


def _told(said: str, model: nn.Module, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a message says to do about maps whose forward is not called, or not by every batch."""
    if "exclude_modules" in said and "unused" in said and "unused" not in settings:
        return {**settings, "unused": "skip"}
    return None


def _boosted(model: nn.Module, batch: Batch, settings: dict[str, Any]) -> Record:
    optimizer = BoostedLowRankOptimizer(
        SGD, model, r=1, kappa=None, layers_per_booster=None, lr=1.0, modules_to_save=[], **settings
    )
    for _ in range(2):
        _loss(model, batch).backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)
        optimizer.step()
        optimizer.zero_grad()
    moved = sum(bool(B.any()) for _, B in optimizer.active_factors.values())
    before = _answers(model, batch)
    optimizer.merge()
    after = _answers(model, batch)
    optimizer.finalize()
    kept = max((_distance(a, b) for a, b in zip(before, after, strict=True)), default=0.0)
    return {
        "trains": bool(moved) and kept <= TOLERANCE,
        "blocks": len(set(optimizer.targets.values())),
        "targets": len(optimizer.targets),
        "moved": moved,
        "distance": kept,
        "settings": settings,
        "words": "" if moved else "no factor moved",
    }


def _lora(subject: Specimen) -> str:
    """Train PEFT's LoRA for a step; return why it cannot, or nothing."""
    try:
        model = get_peft_model(
            copy.deepcopy(subject.model), LoraConfig(r=1, target_modules="all-linear")
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        base = SGD(trained, lr=0.1)
        _loss(model, subject.batch).backward()
        if not any(p.grad is not None and p.grad.any() for p in trained):
            return "no gradient reaches a factor"
        base.step()
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    torch.manual_seed(0)
    answers = differentiable(model(**batch))
    generator = torch.Generator().manual_seed(1)
    wanted = (torch.randn(a.shape, generator=generator) for a in answers)
    return torch.stack(
        [(a - w).square().mean() for a, w in zip(answers, wanted, strict=True)]
    ).sum()


@torch.no_grad()
def _answers(model: nn.Module, batch: Batch) -> list[Tensor]:
    torch.manual_seed(0)
    return outputs(model(**batch))


def _distance(a: Tensor, b: Tensor) -> float:
    finite = torch.isfinite(a) & torch.isfinite(b)
    scale = a[finite].abs().max().clamp_min(1e-6) if finite.any() else torch.ones(())
    return float(((a - b)[finite].abs().max() / scale) if finite.any() else 0.0)
