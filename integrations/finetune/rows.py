"""Rows of data: read, checked, held out."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from .recipe import Recipe

__all__ = ["Data", "Row", "digest", "fields", "load", "place", "texts"]

Row = Mapping[str, Any]
Data = tuple[list[Row], list[Row]]  # to learn from, and to be scored on


class _Placed(dict[str, Any]):
    """A row that knows where it stands: shuffled and held out, its number is no help."""

    place: str


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
    for number, row in enumerate(rows):
        if missing := [name for name in names if row.get(name) is None]:
            empty = ", which is empty" if missing[0] in row else ""
            raise ValueError(
                f"{place(row, number, part)} has no field {missing[0]!r}{empty}, only "
                f"{sorted(name for name in row if row[name] is not None)}: say which fields hold "
                "what, by text, label, prompt or completion"
            )
        found.append(tuple(row[name] for name in names))
    return found


def texts(rows: Sequence[Row], names: Sequence[str], part: str) -> list[tuple[str, ...]]:
    """Return some fields of every row as texts, which numbers may be.

    Raises:
        ValueError: If a row lacks one, or has something else there.
    """
    found = fields(rows, names, part)
    for number, values in enumerate(found):
        for name, value in zip(names, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise ValueError(
                    f"{place(rows[number], number, part)} has a {type(value).__name__} as "
                    f"{name!r}, which is no text: of a conversation, or of words cut already, give "
                    "one text"
                )
    return [tuple(map(str, values)) for values in found]


def place(row: Row, number: int, part: str) -> str:
    """Return where a row stands: in its file, or of a data set without one its number."""
    return getattr(row, "place", f"row {number + 1} of the {part} data")


def _read(path: Path) -> list[Row]:
    path.open("rb").close()  # whoever reads it below may not say that it is not there
    ending = path.suffix.lower()
    if ending in (".jsonl", ".ndjson", ".json"):
        rows = list(_placed(_json_rows(path)))
    elif ending in (".csv", ".tsv"):
        rows = list(_placed(_table(path, "," if ending == ".csv" else "\t")))
    else:
        rows = _with_datasets(path)
    if not rows:
        raise ValueError(f"{path}: the file has no rows")
    return rows


def _placed(numbered: Iterable[tuple[str, Any]]) -> Iterator[Row]:
    for where, row in numbered:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a row is an object with fields, got {row!r:.60}")
        placed = _Placed(row)
        placed.place = where
        yield placed


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    table = csv.DictReader(StringIO(_text(path), newline=""), delimiter=delimiter)
    names = table.fieldnames or []
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path}: several columns are called {min(twice)!r}")
    try:
        for row in table:
            where = f"{path}:{table.line_num}"
            if None in row:
                raise ValueError(
                    f"{where}: the row has more fields than the first line has names, {names}: "
                    f"put a text with {delimiter!r} in it between quotes"
                )
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}:{table.line_num}: no such table ({error})") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = _text(path)
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        for i, row in enumerate(_parsed(str(path), text), 1):
            yield f"{path}, row {i}", row
    else:
        for i, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{path}:{i}", _parsed(f"{path}:{i}", line)


def _text(path: Path) -> str:
    """Read a file, which may begin with a mark that says it is UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}): save it as that") from None


def _parsed(where: str, text: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
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
