"""Runs in a file of JSON lines, each done once: what a killed sweep had finished, it keeps."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.runs.provenance import provenance

Key = Mapping[str, Any]
Record = dict[str, Any]

RESULTS = Path(__file__).resolve().parents[1] / "results"


class Journal:
    """Records by key. A record is a line ``{"key": ..., results ..., provenance ...}``.

    Args:
        path: The file; made with its folder by the first record. A line that a killed process left
            half written is dropped.

    Raises:
        ValueError: If a line is no record; the file and the line are named.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        if text != complete:
            path.write_text(complete, encoding="utf-8")
        self._records: dict[str, Record] = {}
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                record = json.loads(line)
                self._records[canonical(record["key"])] = record
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: no record of a run ({error!r})") from None

    def __contains__(self, key: Key) -> bool:
        """Tell whether the run with this key is recorded."""
        return canonical(key) in self._records

    def __getitem__(self, key: Key) -> Record:
        """Return the record with this key."""
        return self._records[canonical(key)]

    def __iter__(self) -> Iterator[Record]:
        """Yield every record, in the order of their first recording."""
        return iter(self._records.values())

    def __len__(self) -> int:
        """Count the records."""
        return len(self._records)

    def once(self, key: Key, run: Callable[[], Mapping[str, Any]]) -> Record:
        """Return the record with this key; run and append it if it is missing."""
        if key not in self:
            start = perf_counter()
            results = run()
            self._append({
                "key": dict(key),
                **results,
                "wall_s": round(perf_counter() - start, 2),
                "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "provenance": provenance(),
            })  # fmt: skip
        return self[key]

    def _append(self, record: Record) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._records[canonical(record["key"])] = record


def canonical(key: Key) -> str:
    """Write a key as text, the same for equal keys whatever their order."""
    return json.dumps(key, sort_keys=True)
