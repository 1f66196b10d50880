"""What a model learns of rows: classes, numbers, or text to go on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from . import scores
from .recipe import Recipe
from .rows import Data, Row, fields, place, texts

__all__ = ["Task", "task_of"]

Example = Mapping[str, Any]
Batch = dict[str, Tensor]
_IGNORED = -100  # a label that transformers' losses leave out


class Task(Protocol):
    """What a model learns.

    Attributes:
        metric: By which the best is chosen.
        greater: Whether more of it is better.
        facts: What to say of the data, in JSON's types.
    """

    metric: str
    greater: bool
    facts: dict[str, Any]

    def model(self, recipe: Recipe) -> PreTrainedModel:
        """Load the model, with a new head where it takes one."""

    def encoded(self, rows: Sequence[Row], part: str) -> list[Example]:
        """Return rows as token ids and labels."""

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Pad examples to the longest."""

    def reduced(self, logits: Any, labels: Tensor) -> Any:  # noqa: ANN401
        """Return what is to be kept of a batch's logits for the score."""

    def score(self, predicted: EvalPrediction) -> dict[str, float]:
        """Return the scores of what was kept."""


def task_of(recipe: Recipe, data: Data, tokenizer: PreTrainedTokenizerBase, room: int) -> Task:
    """Return what the recipe says is learned of the data.

    Args:
        recipe: The recipe.
        data: The rows.
        tokenizer: The model's.
        room: Tokens a row may have.
    """
    if recipe.task == "causal-lm":
        return _Causal(recipe, tokenizer, room)
    names = recipe.text or _text_fields(data[0][0])
    reader = _Reader(tokenizer, names, recipe.label, room)
    if recipe.task == "regression":
        return _Regression(reader)
    return _Classification(reader, _classes(recipe, data))


@dataclass(frozen=True)
class _Reader:
    """Reads one or two texts and a label of each row."""

    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, ...]
    label: str
    room: int

    def read(self, rows: Sequence[Row], part: str) -> tuple[list[Example], list[Any]]:
        labels = [label for (label,) in fields(rows, [self.label], part)]
        columns = map(list, zip(*texts(rows, self.names, part), strict=True))
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.room)
        ids: list[Example] = [
            {n: values[i] for n, values in encoded.items()} for i in range(len(labels))
        ]
        return ids, labels

    def batch(self, examples: Sequence[Example]) -> Batch:
        collated: Batch = DataCollatorWithPadding(self.tokenizer)([dict(e) for e in examples])
        return collated

    def head(self, recipe: Recipe, **settings: Any) -> PreTrainedModel:  # noqa: ANN401
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            recipe.model, dtype=recipe.dtype, **settings
        )
        if model.config.pad_token_id is None:  # a decoder looks for a row's last token by it
            model.config.pad_token_id = self.tokenizer.pad_token_id
        return model


@dataclass
class _Classification:
    reader: _Reader
    labels: list[str]
    metric: str = "accuracy"
    greater: bool = True

    def __post_init__(self) -> None:
        self.facts = {"labels": self.labels, "text": list(self.reader.names)}
        self._numbers = {label: i for i, label in enumerate(self.labels)}

    def model(self, recipe: Recipe) -> PreTrainedModel:
        names = dict(enumerate(self.labels))
        return self.reader.head(
            recipe, num_labels=len(names), id2label=names, label2id=dict(self._numbers)
        )

    def encoded(self, rows: Sequence[Row], part: str) -> list[Example]:
        examples, labels = self.reader.read(rows, part)
        if unknown := {str(label) for label in labels} - self._numbers.keys():
            raise ValueError(
                f"the {part} data has labels that the train data never shows: {sorted(unknown)[:5]}"
            )
        return [
            {**one, "labels": self._numbers[str(label)]}
            for one, label in zip(examples, labels, strict=True)
        ]

    def batch(self, examples: Sequence[Example]) -> Batch:
        return self.reader.batch(examples)

    def reduced(self, logits: Any, labels: Tensor) -> Any:  # noqa: ANN401
        return _first(logits)

    def score(self, predicted: EvalPrediction) -> dict[str, float]:
        return scores.of_classes(np.asarray(predicted.predictions), np.asarray(predicted.label_ids))


@dataclass
class _Regression:
    reader: _Reader
    metric: str = "mse"
    greater: bool = False

    def __post_init__(self) -> None:
        self.facts = {"text": list(self.reader.names)}

    def model(self, recipe: Recipe) -> PreTrainedModel:
        return self.reader.head(recipe, num_labels=1, problem_type="regression")

    def encoded(self, rows: Sequence[Row], part: str) -> list[Example]:
        examples, labels = self.reader.read(rows, part)
        numbers = [_number(label, place(rows[i], i, part)) for i, label in enumerate(labels)]
        return [{**e, "labels": n} for e, n in zip(examples, numbers, strict=True)]

    def batch(self, examples: Sequence[Example]) -> Batch:
        return self.reader.batch(examples)

    def reduced(self, logits: Any, labels: Tensor) -> Any:  # noqa: ANN401
        return _first(logits)

    def score(self, predicted: EvalPrediction) -> dict[str, float]:
        return scores.of_numbers(np.asarray(predicted.predictions), np.asarray(predicted.label_ids))


@dataclass
class _Causal:
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    room: int
    metric: str = "perplexity"
    greater: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def model(self, recipe: Recipe) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            recipe.model, dtype=recipe.dtype
        )
        return model

    def encoded(self, rows: Sequence[Row], part: str) -> list[Example]:
        prompted = self.recipe.text is None and self.recipe.completion in rows[0]
        encode = self._answers if prompted else self._texts
        examples = [e for e in encode(rows, part) if any(n != _IGNORED for n in e["labels"][1:])]
        self.facts["learned"] = "completions" if prompted else "all tokens"
        if cut := len(rows) - len(examples):
            self.facts[f"{part} rows without a token to learn within max_length"] = cut
        if not examples:
            raise ValueError(
                f"no row of the {part} data has a token to learn within {self.room} tokens: raise "
                "max_length="
            )
        return examples

    def _texts(self, rows: Sequence[Row], part: str) -> list[Example]:
        names = self.recipe.text or ("text",)
        whole = map("\n".join, texts(rows, names, part))
        return [self._example([], self._ids(text) + self._end) for text in whole]

    def _answers(self, rows: Sequence[Row], part: str) -> list[Example]:
        """Prompts are read, completions learned, with the end that tells the model to stop."""
        pairs = texts(rows, [self.recipe.prompt, self.recipe.completion], part)
        return [
            self._example(self._ids(p), self._ids(c, begins=False) + self._end) for p, c in pairs
        ]

    def _example(self, prompt: list[int], answer: list[int]) -> Example:
        ids, labels = prompt + answer, [_IGNORED] * len(prompt) + answer
        return {"input_ids": ids[: self.room], "labels": labels[: self.room]}

    def _ids(self, text: str, begins: bool = True) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=begins)["input_ids"]
        return ids[:-1] if ids[-1:] == self._end else ids

    @property
    def _end(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end]

    def batch(self, examples: Sequence[Example]) -> Batch:
        longest = max(len(e["input_ids"]) for e in examples)
        empty = self.tokenizer.pad_token_id or 0
        filled = [(e, longest - len(e["input_ids"])) for e in examples]
        return {
            "input_ids": torch.tensor([[*e["input_ids"], *[empty] * n] for e, n in filled]),
            "attention_mask": torch.tensor([[1] * (longest - n) + [0] * n for _, n in filled]),
            "labels": torch.tensor([[*e["labels"], *[_IGNORED] * n] for e, n in filled]),
        }

    def reduced(self, logits: Any, labels: Tensor) -> Any:  # noqa: ANN401
        """Each row's summed loss and its tokens, in the place of logits of a whole vocabulary."""
        said, wanted = _first(logits)[:, :-1].float(), labels[:, 1:]
        losses = cross_entropy(said.mT, wanted, ignore_index=_IGNORED, reduction="none")
        return torch.stack([losses.sum(-1), (wanted != _IGNORED).sum(-1)], -1)

    def score(self, predicted: EvalPrediction) -> dict[str, float]:
        losses, counts = np.asarray(predicted.predictions).T
        return scores.of_tokens(losses, counts)


def _first(logits: Any) -> Tensor:  # noqa: ANN401
    """Logits, without the hidden states or caches that some models answer with beside them."""
    first: Tensor = logits[0] if isinstance(logits, tuple) else logits
    return first


def _text_fields(row: Row) -> tuple[str, ...]:
    if "text" in row:
        return ("text",)
    if "sentence1" in row:
        return ("sentence1", "sentence2") if row.get("sentence2") is not None else ("sentence1",)
    raise ValueError(f"which field is the text? Rows have {sorted(row)}: say it with text=")


def _classes(recipe: Recipe, data: Data) -> list[str]:
    """Return the labels' names in order: numbers by size, words by the alphabet."""
    found = [row[0] for row in fields(data[0], [recipe.label], "train")]
    for number, label in enumerate(found):
        if isinstance(label, (list, dict)) or label != label:
            where = place(data[0][number], number, "train")
            raise ValueError(f"{where} has the label {label!r:.60}, which is no class")
    if any(isinstance(label, float) and not label.is_integer() for label in found):
        raise ValueError("labels are fractions, which are no classes: the task is regression")
    labels = sorted({str(label) for label in found}, key=_order)
    if len(labels) < 2:
        raise ValueError(f"the train data has one class only, {labels[0]!r}; it takes two")
    if len(labels) > max(2, len(found) // 2) and len(labels) > 100:
        raise ValueError(f"{len(labels)} labels in {len(found)} rows are no classes: {labels[:3]}")
    return labels


def _order(label: str) -> tuple[float, str]:
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label


def _number(label: object, where: str) -> float:
    try:
        if isinstance(label, (int, float, str)) and isfinite(number := float(label)):
            return number
    except (OverflowError, ValueError):
        pass
    raise ValueError(f"{where} has the label {label!r:.60}, which is no number")
