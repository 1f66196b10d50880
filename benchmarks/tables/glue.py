"""GLUE in kind: scores and the rates that were found."""

from benchmarks.methods.minilm import FULL, HEAD_ONLY
from benchmarks.runs.glue import Size, rate, scores
from benchmarks.runs.journal import Journal
from benchmarks.tables.table import percent, table


def score_table(size: Size, journal: Journal) -> str:
    """Lay out what is recorded: a row a method, a column a task, and the mean over common tasks.

    Common are the tasks that the head alone and full fine-tuning have all seeds of. A method that
    lacks one has no mean; one with nothing recorded has no row.
    """
    found = {n: {t: scores(t, n, size, journal) for t in size.tasks} for n in size.methods}
    complete = {
        name: {t for t, values in by_task.items() if len(values) == size.seeds}
        for name, by_task in found.items()
    }
    baselines = [complete[m.name] for m in (HEAD_ONLY, FULL) if m.name in complete]
    common = [t for t in size.tasks if baselines and all(t in tasks for tasks in baselines)]
    rows = []
    for name, by_task in found.items():
        parts = [by_task[t] for t in common if t in complete[name]]
        means = [sum(of_seed) / len(common) for of_seed in zip(*parts, strict=True)]
        mean = percent(means) if common and len(parts) == len(common) else "–"
        rows.append([name, *map(percent, by_task.values()), mean])
    shown = [row for row in rows if any(cell != "–" for cell in row[1:])]
    return table(["method", *size.tasks, f"mean of {len(common)}"], shown or rows)


def rate_table(size: Size, journal: Journal) -> str:
    """Lay out the rates that the searches found: a row a method, a column a task."""
    rows = []
    for name in size.methods:
        found = [rate(task, name, size, journal) for task in size.tasks]
        if any(found):
            rows.append([name, *(f"{lr:g}" if lr else "–" for lr in found)])
    return table(["rate of", *size.tasks], rows)
