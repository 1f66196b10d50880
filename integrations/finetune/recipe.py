"""What a fine-tuning run is told: every option once, with what the command line says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["PRECISIONS", "TASKS", "Recipe"]

TASKS = ("classification", "regression", "causal-lm")
PRECISIONS = ("auto", "full", "bf16")


def _option(default: Any, text: str, kind: type = str, **more: Any) -> Any:  # noqa: ANN401
    """A field with what a command line needs of it: see ``argparse``'s ``add_argument``."""
    return dataclasses.field(default=default, metadata={"help": text, "type": kind, **more})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is told.

    Attributes:
        model: A folder, or a name of the hub.
        task: One of ``TASKS``.
        out: The run's folder, which ends as the model's.
        settings: Arguments of ``BoostedLowRankOptimizer``; ``record=True`` is ``out/ledger``.
        base_settings: Further arguments of the base, e.g. ``weight_decay``.

    The others say themselves, in their ``help``.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If one is out of range, or none says where the data are.
    """

    model: str = _option(dataclasses.MISSING, "a folder, or a name of the hub")
    task: str = _option(dataclasses.MISSING, "what is learned", choices=TASKS)
    out: str = _option(dataclasses.MISSING, "the run's folder, which ends as the model's")
    train: str | None = _option(None, "a file of rows: .jsonl, .json, .csv, .tsv (or .parquet)")
    dev: str | None = _option(None, "the same, to be scored on")
    dataset: str | None = _option(None, "a dataset of the hub instead (needs datasets)")
    dataset_config: str | None = _option(None, "its configuration")
    train_split: str = _option("train", "its part to learn from")
    dev_split: str = _option("validation", "its part to be scored on")
    dev_share: float = _option(0.1, "of the rows, held out if there is no --dev", float)
    text: tuple[str, ...] | None = _option(
        None, "fields of the text, one or two (text, or sentence1 and sentence2)", nargs="+"
    )
    label: str = _option("label", "field of the label, or number")
    prompt: str = _option("prompt", "field of what a causal LM is given")
    completion: str = _option("completion", "field of what it is to answer, and learns")
    max_length: int = _option(256, "tokens a row is cut to", int)
    batch_size: int = _option(16, "rows of a step, of each process", int)
    accumulation: int = _option(1, "batches of a step", int)
    eval_batch_size: int = _option(32, "rows scored at a time", int)
    epochs: float = _option(3.0, "passes over the rows", float)
    steps: int | None = _option(None, "optimizer steps instead", int)
    every: int | None = _option(None, "steps between checkpoints and scores (a tenth)", int)
    best: bool = _option(False, "end with the weights of the best score", bool)
    lr: float = _option(1e-3, "the base's learning rate", float)
    optimizer: str = _option("AdamW", "the base: a class of torch.optim")
    schedule: str = _option(
        "linear", "of the rate: linear, cosine, warmup_stable_decay (falls in the last quarter), …"
    )
    warmup: float = _option(0.06, "share of the steps in which it rises", float)
    max_grad_norm: float = _option(1.0, "gradients are clipped to it", float)
    dtype: str = _option("auto", "of the weights: float32, bfloat16, …")
    precision: str = _option(
        "auto", "of the products (auto: bf16 on such a GPU)", choices=PRECISIONS
    )
    seed: int = _option(0, "of head, batches, dropout and boosters", int)
    report_to: tuple[str, ...] = _option((), "tensorboard, wandb, …", nargs="+")
    base_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("text", "report_to"):
            if isinstance(given := getattr(self, name), (str, list)):
                object.__setattr__(self, name, (given,) if isinstance(given, str) else (*given,))
        for field in dataclasses.fields(self):
            if field.metadata:
                _check(field, getattr(self, field.name))
        if self.train is None and self.dataset is None:
            raise ValueError("no data: give train= (a file) or dataset= (a name of the hub)")
        if self.train is not None and self.dataset is not None:
            raise ValueError("give either train= or dataset=, not both")
        if self.text is not None and len(self.text) > 2:
            raise ValueError(f"text= names one or two fields, got {list(self.text)}")
        _check_ranges(self)

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.out)

    @property
    def boosted(self) -> dict[str, Any]:
        """The arguments of the optimizer, and of its base."""
        settings = dict(self.settings)
        if settings.get("record") is True:
            settings["record"] = str(self.folder / "ledger")
        return {
            "base": self.optimizer,
            "lr": self.lr,
            "seed": self.seed,
            **self.base_settings,
        } | settings

    @property
    def plain(self) -> dict[str, Any]:
        """It in JSON's types, but for where it lives and what watches."""
        facts = dataclasses.asdict(self)
        return {n: v for n, v in facts.items() if n not in ("out", "report_to", "eval_batch_size")}


def _check(field: dataclasses.Field[Any], value: object) -> None:
    kind, several = field.metadata["type"], "nargs" in field.metadata
    optional = field.default is None
    if several or (optional and value is None):
        return
    right = isinstance(value, (int, float) if kind is float else kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        or_none = " or None" if optional else ""
        raise TypeError(f"{field.name} must be of type {kind.__name__}{or_none}, got {value!r}")
    if (allowed := field.metadata.get("choices")) and value not in allowed:
        raise ValueError(f"{field.name} must be one of {list(allowed)}, got {value!r}")


def _check_ranges(recipe: Recipe) -> None:
    counts = ("max_length", "batch_size", "accumulation", "eval_batch_size", "steps", "every")
    for name in counts:
        if (value := getattr(recipe, name)) is not None and value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value}")
    if not recipe.epochs > 0:
        raise ValueError(f"epochs must be greater than 0, got {recipe.epochs}")
    for name in ("warmup", "dev_share"):
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"{name} must be a share in [0, 1), got {getattr(recipe, name)}")
    dtype = getattr(torch, recipe.dtype, None)
    known = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if not known and recipe.dtype != "auto":
        raise ValueError(f"dtype must be 'auto', 'float32', 'bfloat16', …, got {recipe.dtype!r}")
