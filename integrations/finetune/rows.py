"""Rows of data: read, checked, held out."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .recipe import Recipe

__all__ = ["Data", "Row", "digest", "fields", "load"]

Row = Mapping[str, Any]
Data = tuple[list[Row], list[Row]]  # to learn from, and to be scored on


def load(recipe: Recipe) -> Data:
    """Read what a recipe names; without rows to be scored on, hold a share out.

    Raises:
        ImportError: If it takes the package ``datasets``, and that is missing.
        OSError: If a file cannot be read.
        ValueError: If what is in it are no rows.
    """
    if recipe.dataset is not None:
        return _of_hub(recipe, recipe.train_split), _of_hub(recipe, recipe.dev_split)
    assert recipe.train is not None
    rows = _read(Path(recipe.train))
    if recipe.dev is not None:
        return rows, _read(Path(recipe.dev))
    random.Random(recipe.seed).shuffle(rows)
    held = max(1, round(recipe.dev_share * len(rows)))
    if held >= len(rows):
        raise ValueError(f"{recipe.train}: {len(rows)} rows are too few to hold any out: give dev=")
    return rows[held:], rows[:held]


def digest(data: Data) -> str:
    """Return a digest of all rows: a run that goes on must go on with the same."""
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fields(rows: Sequence[Row], names: Sequence[str], part: str) -> list[tuple[Any, ...]]:
    """Return some fields of every row.

    Raises:
        ValueError: If a row lacks one.
    """
    found = []
    for number, row in enumerate(rows, 1):
        if missing := [name for name in names if row.get(name) is None]:
            raise ValueError(
                f"row {number} of the {part} data has no field {missing[0]!r}, only {sorted(row)}: "
                "say which fields hold what, by text, label, prompt or completion"
            )
        found.append(tuple(row[name] for name in names))
    return found


def _read(path: Path) -> list[Row]:
    ending = path.suffix.lower()
    if ending in (".jsonl", ".ndjson", ".json"):
        rows = list(_json_rows(path))
    elif ending in (".csv", ".tsv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="," if ending == ".csv" else "\t"))
    else:
        rows = _with_datasets(path)
    if not rows:
        raise ValueError(f"{path}: the file has no rows")
    return rows


def _json_rows(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        numbered = [(f"{path}, row {i}", row) for i, row in enumerate(json.loads(text), 1)]
    else:
        lines = [(f"{path}:{i}", line) for i, line in enumerate(text.split("\n"), 1)]
        numbered = [(where, _parsed(where, line)) for where, line in lines if line.strip()]
    for where, row in numbered:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a row is an object with fields, got {row!r:.60}")
        yield row


def _parsed(where: str, line: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None


def _with_datasets(path: Path) -> list[Row]:
    kind = path.suffix.lower().lstrip(".")
    loaded = _datasets().load_dataset(kind, data_files=str(path), split="train")
    return [dict(row) for row in loaded]


def _of_hub(recipe: Recipe, split: str) -> list[Row]:
    loaded = _datasets().load_dataset(recipe.dataset, recipe.dataset_config, split=split)
    names = getattr(loaded.features.get(recipe.label), "names", None)
    rows: list[Row] = [dict(row) for row in loaded]
    if names is None:
        return rows
    return [{**row, recipe.label: names[row[recipe.label]]} for row in rows]


def _datasets() -> Any:  # noqa: ANN401
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "this data is read by the package datasets: pip install 'torch-xgb[datasets]', or give "
            "a .jsonl or .csv file"
        ) from error
    return datasets
