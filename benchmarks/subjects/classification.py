"""Text data: rows with a label or a score, checked once, then tokenised into batches."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

Label = int | str | float
Batch = dict[str, torch.Tensor]
_FIELDS = ("sentence1", "sentence2", "label")


@dataclass(frozen=True)
class Row:
    """One example: a sentence, perhaps a second one, and what it is."""

    sentence1: str
    sentence2: str | None
    label: Label


@dataclass(frozen=True)
class Task:
    """Rows to learn from and rows to score on, with the labels that both may carry.

    A regression has no labels: its rows carry numbers.
    """

    name: str
    train: Sequence[Row]
    dev: Sequence[Row]
    labels: tuple[Label, ...]
    notes: str = ""
    metric: str = "accuracy"

    def __str__(self) -> str:
        """Say what the task is made of."""
        if not self.labels:
            return f"{self.name}: {len(self.train)} train, {len(self.dev)} dev, a regression"
        common = Counter(row.label for row in self.dev).most_common(1)[0]
        counts = Counter(row.label for row in self.train)
        return (
            f"{self.name}: {len(self.train)} train, {len(self.dev)} dev, {len(self.labels)} labels "
            f"({', '.join(f'{label} {counts[label]}' for label in self.labels)}); always saying "
            f"{common[0]!r} scores {common[1] / len(self.dev):.3f}"
        )


def make_task(
    name: str,
    train: Sequence[Row],
    dev: Sequence[Row],
    notes: str = "",
    metric: str = "accuracy",
) -> Task:
    """Check that a model can be trained on ``train`` and scored on ``dev``.

    Raises:
        ValueError: If a part is empty, train has a single class, dev has labels that train
            lacks, labels are of mixed types, or only one part has a second sentence.
    """
    for part, rows in (("train", train), ("dev", dev)):
        if not rows:
            raise ValueError(f"{name}: the {part} part has no rows")
    kinds = {type(row.label).__name__ for row in (*train, *dev)}
    if len(kinds) > 1:
        raise ValueError(f"{name}: labels must be of one type, got {' and '.join(sorted(kinds))}")
    if kinds == {"float"}:
        return Task(name, train, dev, (), notes, metric)
    labels = tuple(
        sorted({row.label for row in train}, key=lambda label: (str(type(label)), label))
    )
    if len(labels) < 2:
        raise ValueError(
            f"{name}: train has only one class, {labels[0]!r}; at least two are needed"
        )
    unknown = sorted({row.label for row in dev} - set(labels), key=str)
    if unknown:
        raise ValueError(
            f"{name}: dev has the labels {unknown[:5]} that train (labels {list(labels)[:10]}) "
            "never shows; give both parts the same labels"
        )
    if len({row.sentence2 is None for row in (*train, *dev)}) > 1:
        raise ValueError(f"{name}: some rows have sentence2 and some have not; all or none must")
    return Task(name, train, dev, labels, notes, metric)


def read_jsonl(path: Path, scores: bool = False) -> list[Row]:
    """Read rows from JSON lines with the fields ``sentence1``, ``label`` and maybe ``sentence2``.

    With ``scores``, labels are numbers to be predicted.

    Raises:
        ValueError: If a line is no such row, or there are none; the file and line are named.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            rows.append(_row(line, f"{path}:{number}", scores))
    if not rows:
        raise ValueError(f"{path}: the file has no rows")
    return rows


def _row(line: str, where: str, scores: bool) -> Row:
    """Parse one line of a JSON lines file."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected an object with fields {_FIELDS}, got {fields!r:.80}")
    unknown, missing = fields.keys() - set(_FIELDS), {"sentence1", "label"} - fields.keys()
    if unknown or missing:
        problem = f"unknown field {min(unknown)!r}" if unknown else f"no field {min(missing)!r}"
        raise ValueError(f"{where}: {problem}; a row is sentence1[, sentence2], label")
    sentences = (fields["sentence1"], fields.get("sentence2"))
    if not isinstance(sentences[0], str) or not isinstance(sentences[1], str | None):
        raise ValueError(f"{where}: sentences must be text, got {sentences!r:.80}")
    if scores and type(fields["label"]) in (int, float):
        return Row(*sentences, float(fields["label"]))
    if isinstance(fields["label"], bool) or not isinstance(fields["label"], int | str):
        raise ValueError(
            f"{where}: a label must be a whole number or a word, or a number "
            f"where a task is a regression, got {fields['label']!r}"
        )
    return Row(*sentences, fields["label"])


def hold_out(task: Task, share: float = 0.15, seed: int = 0, most: int = 500) -> Task:
    """Split train in two, so that a search never sees the rows that are scored in the end.

    A share of the rows is held out, but not more than ``most``.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(task.train), generator=generator).tolist()
    size = max(1, min(most, round(share * len(order))))
    train = [task.train[i] for i in order[size:]]
    seen = {row.label for row in train}
    held_out = [task.train[i] for i in order[:size]]
    dev = [row for row in held_out if not task.labels or row.label in seen]
    return make_task(f"{task.name}, part of train held out", train, dev, metric=task.metric)


def fewer(task: Task, rows: int, seed: int) -> Task:
    """Keep so many rows of train, drawn by the seed.

    Raises:
        ValueError: If train has not as many, or some label of dev is on none of them.
    """
    if not 0 < rows <= len(task.train):
        raise ValueError(f"{task.name}: rows must be 1 to {len(task.train)}, got {rows}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(task.train), generator=generator)[:rows].tolist()
    train = [task.train[i] for i in drawn]
    return make_task(f"{task.name}, {rows} rows", train, task.dev, metric=task.metric)


class Encoded:
    """Rows as token ids, ready to be served in batches padded to their longest row."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        labels: Sequence[Label],
        length: int,
    ) -> None:
        """Tokenise ``rows``, cut to ``length`` tokens."""
        pairs = [row.sentence2 for row in rows] if rows[0].sentence2 is not None else None
        texts = [row.sentence1 for row in rows]
        encoding = tokenizer(texts, pairs, truncation=True, max_length=length)
        self._features = [
            {name: values[i] for name, values in encoding.items()} for i in range(len(rows))
        ]
        values = [labels.index(row.label) if labels else row.label for row in rows]
        self._labels = torch.tensor(values)
        self._pad = tokenizer.pad

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._features)

    def _batch(self, rows: Sequence[int]) -> Batch:
        """Collate the rows with these indices."""
        padded = self._pad([self._features[i] for i in rows], return_tensors="pt")
        return {**padded, "labels": self._labels[list(rows)]}

    def training_batches(self, steps: int, size: int, seed: int) -> Iterator[Batch]:
        """Yield ``steps`` batches, epoch after epoch, in an order that the seed alone decides."""
        generator = torch.Generator().manual_seed(seed)
        queue: list[int] = []
        for _ in range(steps):
            while len(queue) < size:
                queue += torch.randperm(len(self), generator=generator).tolist()
            yield self._batch(queue[:size])
            del queue[:size]

    def grouped_batches(self, steps: int, size: int, seed: int) -> Iterator[Batch]:
        """Yield ``steps`` batches of rows of similar length, in an order the seed alone decides.

        An epoch is shuffled and cut into stretches of 32 batches; each is sorted by length and cut
        into batches, and all batches of the epoch are shuffled. Much less padding, as good a mix.
        """
        generator = torch.Generator().manual_seed(seed)
        queue: list[list[int]] = []
        for _ in range(steps):
            if not queue:
                queue = self._grouped_epoch(size, generator)
            yield self._batch(queue.pop())

    def _grouped_epoch(self, size: int, generator: torch.Generator) -> list[list[int]]:
        """Return an epoch's whole batches; the rows left over come in another epoch."""
        order = torch.randperm(len(self), generator=generator).tolist()
        batches = []
        for start in range(0, len(order), 32 * size):
            stretch = sorted(order[start : start + 32 * size], key=self._length)
            batches += [stretch[i : i + size] for i in range(0, len(stretch) - size + 1, size)]
        if not batches:
            raise ValueError(f"a batch of {size} rows needs as many rows, got {len(self)}")
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _length(self, row: int) -> int:
        return len(self._features[row]["input_ids"])

    def ordered_batches(self, size: int) -> Iterator[Batch]:
        """Yield every row once, rows of similar length together."""
        order = sorted(range(len(self)), key=self._length)
        for start in range(0, len(order), size):
            yield self._batch(order[start : start + size])
