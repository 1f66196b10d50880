"""The four methods on TREC (5,452 questions, 6 kinds, the official 500 for scoring).

    python -m benchmarks.trec                       # TREC in ../shared/data/trec, or
    TORCH_XGB_DATA=/my/data python -m benchmarks.trec   # in /my/data/trec

Each method's learning rate is searched first, four rates on a held-out part of train with seed 0;
then three seeds at the found rate are scored on the official test questions. Every run is appended
to a file as a line of JSON, and runs that the file already holds are not repeated.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.classification import Task, hold_out, make_task, read_jsonl
from benchmarks.finetune import Bench, Settings
from benchmarks.methods import METHODS, Method
from benchmarks.search import best_rate, search_table
from benchmarks.table import COSTS, cost_cells, table

_ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]


class Journal:
    """Runs in a file of JSON lines, each done once."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self._settings = {k: v for k, v in asdict(settings).items() if k != "seed"}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        if text != complete:  # killed while it wrote
            path.write_text(complete, encoding="utf-8")
        self._records: list[Record] = [json.loads(line) for line in complete.splitlines()]

    def once(self, run: Callable[[], Record], **key: Any) -> Record:
        """Return the record under this key and these settings; run and append it if missing."""
        key |= {"settings": self._settings}
        for record in self._records:
            if all(record.get(name) == value for name, value in key.items()):
                return record
        machine = {
            "device": self._settings["device"],
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        record = {**key, **run(), **machine}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._records.append(record)
        return record


def load_trec() -> Task:
    """Read TREC from the folder that TORCH_XGB_DATA names, else from ../shared/data.

    Raises:
        ValueError: If it is not there.
    """
    folder = Path(os.environ.get("TORCH_XGB_DATA", _ROOT.parent / "shared" / "data")) / "trec"
    parts = [folder / "train.jsonl", folder / "dev.jsonl"]
    if not all(part.is_file() for part in parts):
        raise ValueError(
            f"no TREC in {folder}: needed are train.jsonl and dev.jsonl, lines of "
            '{"sentence1": "Who was Galileo ?", "label": 3}; set TORCH_XGB_DATA to the folder '
            "that holds trec/"
        )
    train, dev = (read_jsonl(part) for part in parts)
    return make_task("TREC", train, dev)


def measure(bench: Bench, method: Method, lr: float, seed: int) -> Record:
    """Run once and keep the numbers."""
    outcome = bench.run(method, lr, seed)
    record = {k: v for k, v in vars(outcome).items() if k != "model"}
    return {**record, "peak": bench.peak_memory(method, lr)}


def try_rate(bench: Bench, method: Method, lr: float) -> Record:
    """Run once and keep the score."""
    return {"score": bench.run(method, lr).score}


def compare(task: Task, settings: Settings, journal: Journal, seeds: Sequence[int]) -> str:
    """Search the rates, run the seeds, and lay out what came of it."""
    held_out, bench = Bench(hold_out(task), settings), Bench(task, settings)
    searched, rows = {}, []
    for name, method in METHODS.items():
        searched[name] = {
            lr: journal.once(
                partial(try_rate, held_out, method, lr), kind="search", seed=0, method=name, lr=lr
            )["score"]
            for lr in method.grid
        }
        lr = best_rate(searched[name])
        runs = [
            journal.once(
                partial(measure, bench, method, lr, seed), kind="run", seed=seed, method=name, lr=lr
            )
            for seed in seeds
        ]
        rows.append(_row(name, lr, runs))
    head = ["method", "rate", "score", "seeds", *COSTS]
    return f"{search_table(searched)}\n\n{table(head, rows)}"


def _row(name: str, lr: float, runs: Sequence[Record]) -> list[str]:
    """Format the runs of one method."""
    scores = [run["score"] for run in runs]
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    step_ms = statistics.median(run["step_ms"] for run in runs)
    sizes = (runs[0][key] for key in ("trainable", "head", "total", "peak"))
    return [
        name,
        f"{lr:g}",
        f"{statistics.fmean(scores):.4f} ± {deviation:.4f}",
        " ".join(f"{score:.3f}" for score in scores),
        *cost_cells(*sizes, step_ms),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trec",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--device", default=Settings.device, help=f"(default: {Settings.device})")
    parser.add_argument(
        "--out",
        type=Path,
        default=_ROOT / "runs" / "trec.jsonl",
        metavar="FILE",
        help="where runs are appended (default: runs/trec.jsonl)",
    )
    options = parser.parse_args(argv)
    try:
        task = load_trec()
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.trec: {error}")
    print(task, flush=True)
    settings = Settings(options.steps, length=32, device=options.device)
    print(compare(task, settings, Journal(options.out, settings), range(options.seeds)))


if __name__ == "__main__":
    main()
