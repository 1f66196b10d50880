"""The causal LM on text of a domain: perplexity by K."""

import math

from benchmarks.measures.metrics import interval
from benchmarks.methods.causal import METHODS
from benchmarks.runs.domain import Size, rate, records, untrained
from benchmarks.runs.journal import Journal
from benchmarks.tables.table import table


def domain_table(size: Size, journal: Journal) -> str:
    """Lay out what is recorded: a row a method, loss and perplexity by K."""
    rows = []
    if untrained(size) in journal:
        loss = journal[untrained(size)]["loss"]
        rows.append(["untrained", "–", *[_cell([loss])] * len(size.lengths)])
    for method in METHODS:
        found = [[r["loss"] for r in records(method, K, size, journal)] for K in size.lengths]
        if any(found):
            lr = rate(method, size, journal)
            rows.append([method, f"{lr:g}", *map(_cell, found)])
    head = ["docstrings, nats a token, perplexity (seeds)", "rate"]
    return table([*head, *(f"K = {K:,}" for K in size.lengths)], rows)


def _cell(losses: list[float]) -> str:
    if not losses:
        return "–"
    mean, half = interval(losses)
    spread = f" ± {half:.3f}" if len(losses) > 1 else ""
    return f"{mean:.3f}{spread}, {math.exp(mean):.2f} ({len(losses)})"
