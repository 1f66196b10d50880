"""The text tasks of the tables: where their rows are, how they are scored, how long their rows are.

Rows are read from ``../shared/data`` or the folder that TORCH_XGB_DATA names: a folder for each
task with ``train.jsonl`` and ``dev.jsonl`` (``test.jsonl`` is preferred to dev where there is one).
A task without a folder is loaded from the hub, if the package ``datasets`` and a network are there.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.subjects.classification import Task, make_task, read_jsonl
from benchmarks.subjects.docstrings import docstring_task
from benchmarks.subjects.hub import hub_task

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """A task of the tables.

    Attributes:
        folder: Of its rows, in the data folder.
        hub: Its name on the hub.
        length: Tokens a row is cut to.
        metric: How it is scored.
        longer: Its K, in units of the other tasks'.
    """

    folder: str
    hub: str
    length: int
    metric: str = "accuracy"
    longer: int = 1


TASKS: Mapping[str, Source] = {
    "SST-2": Source("sst2", "glue/sst2", 48),
    "CoLA": Source("cola", "glue/cola", 32, "matthews", longer=3),
    "MRPC": Source("mrpc", "glue/mrpc", 96),
    "RTE": Source("rte", "glue/rte", 128),
    "STS-B": Source("stsb", "glue/stsb", 64, "pearson"),
    "TREC": Source("trec", "SetFit/TREC-QC", 32),
    "CB": Source("cb", "super_glue/cb", 128),
}


def data_folder() -> Path:
    """Return the folder that holds a folder for each task."""
    return Path(os.environ.get("TORCH_XGB_DATA", _ROOT.parent / "shared" / "data"))


@cache
def load_task(name: str) -> Task:
    """Load a task by its name in ``TASKS``.

    Raises:
        ValueError: If the name is unknown, or its rows are neither on disk nor on a hub that can
            be reached; both reasons are given.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {list(TASKS)}, got {name!r}")
    source = TASKS[name]
    folder = data_folder() / source.folder
    scored = next((p for p in (folder / "test.jsonl", folder / "dev.jsonl") if p.is_file()), None)
    if scored is not None and (folder / "train.jsonl").is_file():
        parts = [
            read_jsonl(path, source.metric == "pearson")
            for path in (folder / "train.jsonl", scored)
        ]
        return make_task(name, *parts, f"scored on {scored.stem}", source.metric)
    try:
        task = hub_task(source.hub, source.metric == "pearson")
    except ValueError as error:
        raise ValueError(
            f"no {name}: {folder} lacks train.jsonl and dev.jsonl, lines of "
            '{"sentence1": "Who was Galileo ?", "label": 3} (set TORCH_XGB_DATA to the folder that '
            f"holds {source.folder}/), and {error}"
        ) from None
    return make_task(name, task.train, task.dev, task.notes, source.metric)


SMALL = ("docstrings", "trec")  # of a few minutes


def small_task(name: str) -> Task:
    """Load one of ``SMALL``."""
    return load_task("TREC") if name == "trec" else docstring_task()
