"""What weights of low precision keep of their updates."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.methods.precision import POLICIES
from benchmarks.runs.precision import Record
from benchmarks.tables.table import table


def synthetic_table(records: Iterable[Record]) -> str:
    """Lay out the synthetic cases, a row a dtype and rate."""
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for r in records:
        rows[f"{r['dtype']}, lr {r['lr']:g}"].append(f"{r['retained']:.3f} / {r['cosine']:.3f}")
    return table(["retained / cosine", *POLICIES], [[name, *cells] for name, cells in rows.items()])


def real_table(records: Sequence[Record]) -> str:
    """Lay out the real cases, means over the seeds."""
    cases: defaultdict[tuple[float, str], list[Record]] = defaultdict(list)
    for record in records:
        cases[record["lr"], record["run"]].append(record)
    head = ["lr", "weights", "final loss", "dev score", "seeds", "distance", "retained", "cosine"]
    return table(head, [[f"{lr:g}", name, *_cells(runs)] for (lr, name), runs in cases.items()])


def _cells(runs: Sequence[Record]) -> list[str]:
    mean = {k: statistics.fmean(run[k] for run in runs) for k in runs[0] if k not in ("run", "lr")}
    return [
        f"{mean['loss']:.4f}",
        f"{mean['score']:.4f}",
        " ".join(f"{run['score']:.3f}" for run in runs),
        *(f"{mean[key]:.3f}" for key in ("distance", "retained", "cosine")),
    ]


COLUMNS = ("bits", "retained", "cosine", "distance", "loss", "score")


def quantised_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the ways of quantising, means over the seeds."""
    head = ["lr", "weights", "bits", "retained", "cosine", "distance", "dev loss", "dev score"]
    cases: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for r in found:
        cases.setdefault((r["lr"], f"{r['grid']}, {r['way']}"), []).append(r)
    rows = []
    for (lr, name), runs in cases.items():
        mean = {key: statistics.fmean(run[key] for run in runs) for key in COLUMNS}
        rows.append([f"{lr:g}", name, f"{mean['bits']:.1f}"])
        rows[-1] += [f"{mean[key]:.3f}" for key in COLUMNS[1:]]
    return table(head, rows)


def beside_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the ways of training on a base of four bits, means over the seeds."""
    head = ["", "lr", "base, MB", "beside it, MB", "final loss", "score", "seeds", "lost"]
    rows = []
    for way in dict.fromkeys(r["way"] for r in found):
        runs = [r for r in found if r["way"] == way]
        mean = {
            k: statistics.fmean(r[k] for r in runs) for k in ("base", "beside", "loss", "score")
        }
        rows.append([way, f"{runs[0]['lr']:g}", f"{mean['base'] / 1e6:.1f}"])
        rows[-1] += [f"{mean['beside'] / 1e6:.1f}", f"{mean['loss']:.3f}", f"{mean['score']:.3f}"]
        rows[-1] += [" ".join(f"{r['score']:.3f}" for r in runs)]
        lost = [r["lost"] for r in runs if r["lost"] is not None]
        rows[-1] += [f"{statistics.fmean(lost):.3f}" if lost else ""]
    return table(head, rows)
