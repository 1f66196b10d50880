"""Multiple choice by likelihood: a context, the continuations it may have, and the right one."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.subjects.tasks import data_folder

_CHOICE = re.compile(r"\s*Answer\d+:\s*")
_BECAUSE = {"cause": "because", "effect": "so"}
IGNORED = -100  # a label that no loss counts
FOLDERS = {"ARC-easy": "commonsense_arc-easy", "OpenBookQA": "commonsense_openbookqa"}
HELD_OUT = 100


@dataclass(frozen=True)
class Question:
    """A context and its possible continuations."""

    context: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """Read COPA's rows, or instructions that list "Answer1: ... Answer2: ..." after a question.

    The prompts are those of EleutherAI's evaluation harness for ARC, OpenBookQA and COPA.

    Raises:
        ValueError: If a row is neither; the file and line are named.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            rows.append(_copa(fields) if "premise" in fields else _instruction(fields))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path}:{number}: no multiple-choice question ({error!r})") from None
    return rows


def _copa(fields: dict[str, str]) -> Question:
    premise = fields["premise"].strip().rstrip(".")
    choices = [fields[name].strip() for name in ("choice1", "choice2")]
    lowered = tuple(f" {choice[0].lower()}{choice[1:]}" for choice in choices)
    return Question(f"{premise} {_BECAUSE[fields['question']]}", lowered, int(fields["label"]))


def _instruction(fields: dict[str, str]) -> Question:
    asked, listed = fields["instruction"].split("\n\n")[:2]
    question = asked.split(":", 1)[1].strip()
    choices = tuple(f" {choice.strip()}" for choice in _CHOICE.split(listed)[1:])
    answer = int(fields["answer"].removeprefix("answer")) - 1
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer + 1} of {len(choices)}")
    return Question(f"Question: {question}\nAnswer:", choices, answer)


@cache
def questions(name: str, part: str) -> list[Question]:
    """Read a part of a task; ``held out`` and ``train`` share train's rows between them."""
    folder: Path = data_folder() / FOLDERS.get(name, "copa")
    if part == "test":
        return read_questions(folder / ("dev.jsonl" if name == "COPA" else "test.jsonl"))
    rows = read_questions(folder / "train.jsonl")
    return rows[:HELD_OUT] if part == "held out" else rows[HELD_OUT:]


class Prompts:
    """Questions as token ids, for training and for scoring."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int = 128) -> None:
        self._tokenizer, self._length = tokenizer, length

    def batch(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """Collate contexts with continuations; labels count the continuations alone."""
        rows, labels = [], []
        for context, continuation in pairs:
            first, second = (
                self._tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (context, continuation)
            )
            rows.append([*first, *second][-self._length :])
            labels.append([*[IGNORED] * len(first), *second][-self._length :])
        width = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([r + [pad] * (width - len(r)) for r in rows]),
            "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
            "labels": torch.tensor([r + [IGNORED] * (width - len(r)) for r in labels]),
        }

    def training(
        self, questions: Sequence[Question], steps: int, size: int, seed: int
    ) -> Iterator[dict[str, Tensor]]:
        """Yield batches of right answers, in an order that the seed alone decides."""
        generator = torch.Generator().manual_seed(seed)
        queue: list[int] = []
        for _ in range(steps):
            while len(queue) < size:
                queue += torch.randperm(len(questions), generator=generator).tolist()
            drawn, queue = [questions[i] for i in queue[:size]], queue[size:]
            yield self.batch([(q.context, q.choices[q.answer]) for q in drawn])


@torch.no_grad()
def score(model: nn.Module, prompts: Prompts, questions: Sequence[Question]) -> dict[str, float]:
    """Return the share of questions answered right.

    By the continuation's log-likelihood (``score``), and by that per byte (``score_norm``).
    """
    model.eval()
    right, right_norm = 0, 0
    for question in questions:
        batch = prompts.batch([(question.context, choice) for choice in question.choices])
        labels = batch.pop("labels")
        logits = model(**batch).logits[:, :-1].float().log_softmax(-1)
        wanted = labels[:, 1:]
        picked = logits.gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        sums = picked.masked_fill(wanted == IGNORED, 0).sum(1)
        lengths = torch.tensor([len(choice.encode()) for choice in question.choices])
        right += int(sums.argmax()) == question.answer
        right_norm += int((sums / lengths).argmax()) == question.answer
    return {"score": right / len(questions), "score_norm": right_norm / len(questions)}
