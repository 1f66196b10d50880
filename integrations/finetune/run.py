"""A fine-tuning run from its recipe to a plain model folder, going on where a kill has ended it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from torch_xgb.settings import Settings

from ..folders import quiet
from ..transformers import BoostedFactory, BoostingCallback
from ..unwrapping import find_boosted
from .card import write_card
from .folder import RunFolder
from .picture import draw_run
from .progress import Progress
from .recipe import Recipe
from .rows import Data, digest, load
from .tasks import Task, task_of

__all__ = ["Outcome", "finetune"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        folder: The run's, now the model's.
        resumed: The step it went on from, 0 if it began; None if it was over before.
        result: Scores on the dev data, steps, sizes, versions, in JSON's types.
    """

    folder: Path
    resumed: int | None
    result: Mapping[str, Any]


def finetune(recipe: Recipe, progress: Progress | None = None) -> Outcome:
    """Fine-tune a model of transformers, or go on with a run that was ended in the middle.

    A run is in its folder: the same recipe goes on from the last complete checkpoint, to the very
    weights that it would have ended with. In the end the folder holds the plain model, its
    tokenizer, a card, a picture, and ``run.json``; the checkpoints are gone.

    Args:
        recipe: What the run is told.
        progress: Says how far it is; by default on stderr.

    Raises:
        ImportError: If a package is missing that the data need.
        OSError: If model or data cannot be read.
        TypeError: If an argument of the optimizer is of the wrong type.
        ValueError: If one is out of range, the data are no rows for the task, or the folder is
            another run's. Nothing is changed then.
    """
    folder, data = RunFolder(recipe.folder), load(recipe)
    told = {**recipe.plain, "data": digest(data)}
    folder.require_own(told)
    if "result" in folder.facts:
        return Outcome(folder.path, None, folder.facts["result"])
    with quiet():
        trainer, task, tokenizer = _build(recipe, folder, data, progress or Progress())
        begun = _Begun(folder, told)
        trainer.add_callback(begun)
        last = folder.last_checkpoint()
        if last is None and trainer.is_world_process_zero():
            _set_aside(folder, recipe.boosted.get("record"))
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        scores = _scores(trainer.evaluate())
        result = {
            "task": recipe.task,
            "scores": scores,
            "steps": trainer.state.global_step,
            "rows": {"train": len(data[0]), "dev": len(data[1])},
            **task.facts,
            **begun.facts,
        }
        if trainer.is_world_process_zero():
            _finish(trainer, tokenizer, folder, recipe, told, result)
    step = 0 if last is None else int(last.name.rpartition("-")[2])
    return Outcome(folder.path, step, result)


class _Begun(TrainerCallback):
    """Writes down what a run was told once its optimizer could be built, and what that found."""

    def __init__(self, folder: RunFolder, told: Mapping[str, Any]) -> None:
        self.folder, self.told = folder, told
        self.facts: dict[str, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = find_boosted(kwargs.get("optimizer"))
        assert optimizer is not None  # BoostingCallback has looked
        summary = optimizer.summary()
        self.facts = {"parameters": summary.parameters, "trained": summary.trained}
        if state.is_world_process_zero:
            self.folder.write(self.told)


class _ScoredAfterwards(TrainerCallback):
    """Leaves the last step to the evaluation after training, of the very weights that are kept.

    The last merge has rounded them since.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = False


def _build(
    recipe: Recipe, folder: RunFolder, data: Data, progress: Progress
) -> tuple[Trainer, Task, PreTrainedTokenizerBase]:
    set_seed(recipe.seed)  # of a new head
    tokenizer = _tokenizer(recipe.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    task = task_of(recipe, data, tokenizer, _room(recipe, tokenizer))
    train, dev = task.encoded(data[0], "train"), task.encoded(data[1], "dev")
    trainer = Trainer(
        task.model(recipe),
        _arguments(recipe, folder, task, len(train)),
        data_collator=task.batch,
        train_dataset=train,
        eval_dataset=dev,
        compute_metrics=task.score,
        preprocess_logits_for_metrics=task.reduced,
        optimizer_cls_and_kwargs=(BoostedFactory, recipe.boosted),  # type: ignore[arg-type]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(
        BoostingCallback(trainer, metric=f"eval_{task.metric}", greater_is_better=task.greater)
    )
    if not recipe.best:  # else it may be the best one
        trainer.add_callback(_ScoredAfterwards())
    trainer.add_callback(progress)
    return trainer, task, tokenizer


def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        ValueError: If there is none, as of a model that there is not.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, TypeError, KeyError) as error:
        where = "the hub, as here is no such folder" if not Path(model).is_dir() else "this folder"
        raise ValueError(f"no tokenizer for model=, {model!r}, from {where}: {error}") from error
    return tokenizer


def _room(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a row may have, by the recipe, the tokenizer and the model."""
    positions = getattr(AutoConfig.from_pretrained(recipe.model), "max_position_embeddings", None)
    return min(recipe.max_length, tokenizer.model_max_length, positions or recipe.max_length)


def _arguments(recipe: Recipe, folder: RunFolder, task: Task, rows: int) -> TrainingArguments:
    steps = recipe.steps or _steps(recipe, rows)
    every = recipe.every or _every(recipe, steps)
    alone = not torch.accelerator.is_available()
    bf16_here = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return TrainingArguments(
        str(folder.checkpoints),
        use_cpu=alone,
        ddp_backend="gloo" if alone and _processes() > 1 else None,
        average_tokens_across_devices=recipe.task == "causal-lm",  # other losses are means of rows
        dataloader_pin_memory=not alone,
        bf16=recipe.precision == "bf16" or (recipe.precision == "auto" and bf16_here),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.eval_batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.schedule,
        lr_scheduler_kwargs=_falling(recipe.schedule, steps),
        warmup_steps=round(recipe.warmup * steps),
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=recipe.best,
        metric_for_best_model=f"eval_{task.metric}",
        greater_is_better=task.greater,
        logging_steps=max(1, steps // 50),
        report_to=list(recipe.report_to),
        disable_tqdm=True,
    )


def _every(recipe: Recipe, steps: int) -> int:
    """A tenth of the run; with a ledger, so long that a booster ends there and has the score."""
    tenth, kappa = math.ceil(steps / 10), recipe.settings.get("kappa", Settings().kappa)
    if recipe.settings.get("record") is None or not isinstance(kappa, int):
        return tenth
    ends = max(1, kappa) * math.ceil(tenth / max(1, kappa))
    return ends if ends <= steps else tenth


def _falling(schedule: str, steps: int) -> dict[str, Any]:
    """Let a rate that is held fall over the last quarter, linearly as the others do."""
    held = schedule == "warmup_stable_decay"
    return {"num_decay_steps": max(1, steps // 4), "decay_type": "linear"} if held else {}


def _steps(recipe: Recipe, rows: int) -> int:
    batches = math.ceil(rows / (recipe.batch_size * _processes()))
    return math.ceil(recipe.epochs * math.ceil(batches / recipe.accumulation))


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun says it


def _set_aside(folder: RunFolder, ledger: object) -> None:
    if isinstance(ledger, (str, os.PathLike)) and (aside := folder.set_aside(Path(ledger))):
        _log.warning(
            "no checkpoint goes with the boosters in %s: they are in %s now", ledger, aside
        )


def _scores(metrics: Mapping[str, float]) -> dict[str, float]:
    kept = {n: v for n, v in metrics.items() if not n.endswith(("_runtime", "_per_second"))}
    return {n.removeprefix("eval_"): v for n, v in kept.items() if n.startswith("eval_")}


def _finish(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    folder: RunFolder,
    recipe: Recipe,
    told: Mapping[str, Any],
    result: dict[str, Any],
) -> None:
    """Write the model and what is said of it; last, that the run is over."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(folder.path)
    tokenizer.save_pretrained(folder.path)
    history = [dict(entry) for entry in trainer.state.log_history]
    picture = draw_run(history, folder.path / "run.png")
    result["picture"] = None if picture is None else picture.name
    write_card(folder.path / "README.md", recipe, result)
    folder.write(told, {**result, "history": history})
    folder.clear_checkpoints()
