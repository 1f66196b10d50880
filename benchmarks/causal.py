"""A causal LM on multiple choice: LoRA r=8 against XGBLoRA r=1, at equal steps and equal tokens.

    python -m benchmarks.causal --tasks ARC-easy    # about an hour of one core; resumes
    python -m benchmarks.causal --quick             # 16 steps, 60 questions

SmolLM2-135M (4-bit-rounded weights, see benchmarks.smollm) answers ARC-easy and OpenBookQA by the
likelihood of each answer, as EleutherAI's evaluation harness does; COPA is scored beside, without
training on it. All methods see the same batches, so the same tokens; each has two rates, on 100
questions held out of train, seed 0. Products of float32 matrices are rounded to bfloat16 where the
processor can (see benchmarks.finetune). Appended to benchmarks/results/causal.jsonl.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from benchmarks import smollm
from benchmarks.choices import Prompts, Question, read_questions, score
from benchmarks.journal import RESULTS, Journal, Record
from benchmarks.methods import Trainee
from benchmarks.table import table
from benchmarks.tasks import data_folder
from torch_xgb import BoostedLowRankOptimizer

JOURNAL = RESULTS / "causal.jsonl"
TASKS = {"ARC-easy": "commonsense_arc-easy", "OpenBookQA": "commonsense_openbookqa"}
HELD_OUT = 100
Build = Callable[[nn.Module, float, int], Trainee]


@dataclass(frozen=True)
class Size:
    """How much is run."""

    steps: int = 100
    seeds: int = 1
    questions: int = 300
    batch_size: int = 8
    tasks: tuple[str, ...] = tuple(TASKS)


QUICK = Size(16, 1, 60)


def lora(model: nn.Module, lr: float, seed: int) -> Trainee:
    """Train PEFT's LoRA of rank 8, alpha 16, on all linear maps."""
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    return Trainee(adapted, AdamW(trained, lr=lr, weight_decay=0.0), adapted.merge_and_unload)


def boosted(model: nn.Module, lr: float, seed: int, **settings: Any) -> Trainee:
    """Train boosters of rank 1 and 8 steps on 8 of 30 blocks: the paper's defaults."""
    given = {"modules_to_save": [], "seed": seed, "lr": lr, "weight_decay": 0.0, **settings}
    optimizer = BoostedLowRankOptimizer(AdamW, model, r=1, kappa=8, **given)
    return Trainee(model, optimizer, optimizer.finalize)


METHODS: dict[str, tuple[Build, tuple[float, ...]]] = {
    "PEFT LoRA r=8": (lora, (5e-4, 1e-3)),
    "XGBLoRA r=1": (boosted, (2e-3, 5e-3)),
    "XGBLoRA r=1, carry=0.97": (
        partial(boosted, carry=0.97, layers_per_booster=None),
        (2e-3, 5e-3),
    ),
}


@cache
def questions(name: str, part: str) -> list[Question]:
    """Read a part of a task; ``held out`` and ``train`` share train's rows between them."""
    folder: Path = data_folder() / TASKS.get(name, "copa")
    if part == "test":
        return read_questions(folder / ("dev.jsonl" if name == "COPA" else "test.jsonl"))
    rows = read_questions(folder / "train.jsonl")
    return rows[:HELD_OUT] if part == "held out" else rows[HELD_OUT:]


def train(name: str, method: str, lr: float, seed: int, size: Size) -> tuple[nn.Module, Record]:
    """Fine-tune a fresh model; return it plain, with what training gave."""
    prompts = Prompts(smollm.tokenizer())
    model = smollm.model().train()
    trainee = METHODS[method][0](model, lr, seed)
    warmup = max(1, size.steps // 16)
    schedule = LambdaLR(
        trainee.optimizer, lambda i: min((i + 1) / warmup, (size.steps - i) / size.steps)
    )
    losses, tokens, start = [], 0, time.perf_counter()
    batches = prompts.training(questions(name, "train"), size.steps, size.batch_size, seed)
    for batch in tqdm(batches, method, total=size.steps, unit="step", leave=False):
        loss = trainee.model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trainee.model.parameters(), 1.0)
        trainee.optimizer.step()
        schedule.step()
        trainee.optimizer.zero_grad()
        losses.append(round(float(loss.detach()), 4))
        tokens += int(batch["attention_mask"].sum())
    step_ms = 1e3 * (time.perf_counter() - start) / size.steps
    trainable = sum(p.numel() for g in trainee.optimizer.param_groups for p in g["params"])
    return trainee.finish(), {
        "losses": losses,
        "tokens": tokens,
        "step_ms": round(step_ms, 1),
        "trainable": trainable,
    }


def run(name: str, method: str, lr: float, seed: int, part: str, size: Size) -> Record:
    """Train and score; COPA too, where the run is not a search's."""
    model, record = train(name, method, lr, seed, size)
    record |= zero_shot(name, part, size, model)
    if part == "test":
        record["copa"] = zero_shot("COPA", part, size, model)["score"]
    return record


def zero_shot(name: str, part: str, size: Size, model: nn.Module | None = None) -> Record:
    """Score a model, by default the one that nobody trained."""
    asked = questions(name, part)[: size.questions]
    return score(model or smollm.model(), Prompts(smollm.tokenizer()), asked)


def compare(size: Size, journal: Journal) -> list[list[str]]:
    """Do what is missing and return the table's rows."""
    common = {"steps": size.steps, "batch_size": size.batch_size, "questions": size.questions}
    rows = []
    for name in (*size.tasks, "COPA"):
        key = {"task": name, "method": "untrained", "questions": size.questions}
        record = journal.once(key, partial(zero_shot, name, "test", size))
        rows.append([f"{name}, untrained", *_cells([record]), "–", "–"])
    for name in size.tasks:
        for method, (_, grid) in METHODS.items():
            search = {
                lr: journal.once(
                    {"task": name, "method": method, "lr": lr, "seed": 0, "part": "held out"}
                    | common,
                    partial(run, name, method, lr, 0, "held out", size),
                )
                for lr in grid
            }
            lr = max(search, key=lambda lr: (search[lr]["score"], search[lr]["score_norm"], -lr))
            records = [
                journal.once(
                    {"task": name, "method": method, "lr": lr, "seed": seed, "part": "test"}
                    | common,
                    partial(run, name, method, lr, seed, "test", size),
                )
                for seed in range(size.seeds)
            ]
            first = records[0]
            extra = [f"{100 * first['copa']:.1f}", f"{first['step_ms']:.0f} ms"]
            rows.append([f"{name}, {method} at {lr:g}", *_cells(records), *extra])
    return rows


def _cells(records: Sequence[Record]) -> list[str]:
    """Format the mean of both scores."""
    names = ("score", "score_norm")
    return [f"{100 * sum(r[name] for r in records) / len(records):.1f}" for name in names]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.causal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a subset, by the same code")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    options = parser.parse_args(argv)
    size = replace(QUICK if options.quick else Size(), tasks=tuple(options.tasks))
    try:
        smollm.folder()
        for name in (*TASKS, "COPA"):
            questions(name, "test")
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.causal: {error}")
    torch.set_float32_matmul_precision("medium")
    rows = compare(size, Journal(JOURNAL))
    print(table(["task, method", "score", "per byte", "COPA", "step"], rows))


if __name__ == "__main__":
    main()
