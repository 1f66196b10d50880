"""What a step computes and keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.measures.allocations import AllocationRow
from benchmarks.measures.cost import Row
from benchmarks.runs.provenance import provenance
from benchmarks.tables.table import table


def cost_table(counted: Sequence[Row]) -> str:
    """Lay out the costs, FLOPs as multiples of the first row's."""
    unit = counted[0].costs[0]
    head = ["", "FLOPs, weights", "least", "most", "and attention", "saved MB", "least", "most"]
    body = [
        [
            row.name,
            *row.span("weights", unit.weights, 3),
            f"{row.mean('flops') / unit.flops:.3f}",
            *row.span("saved", 1e6, 1),
        ]
        for row in counted
    ]
    return table(head, body)


def allocation_table(counted: Sequence[AllocationRow]) -> str:
    """Lay out what one drawn linear map allocates beside a frozen one."""
    head = ["allocations of a linear map", "forward", "in outputs", "backward", "in inputs"]
    head += ["launches forward", "backward"]
    return table(head, [row.cells() for row in counted])


def record(counted: Sequence[Row], spaces: Sequence[AllocationRow], **about: Any) -> dict[str, Any]:
    """Gather everything for the file."""
    fields = ("weights", "attention", "flops", "saved")
    summary: Mapping[str, Any] = {
        row.name: {field: row.mean(field) for field in fields} | {"draws": len(row.costs)}
        for row in counted
    }
    return {**about, **provenance(), "rows": summary, "allocations": [asdict(s) for s in spaces]}
