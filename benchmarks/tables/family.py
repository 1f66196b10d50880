"""The family's runs."""

from collections.abc import Sequence
from typing import Any

from benchmarks.tables.table import table


def family_table(records: Sequence[dict[str, Any]]) -> str:
    """Lay the runs out; FLOPs of the pairs beside LoRA's of rank 8."""
    lora = records[0]
    rows = [
        [
            r["name"],
            str(r["boosters"]),
            f"{r['score']:.3f}",
            f"{r['loss']:.3f}",
            f"{r['flops'] / lora['flops']:.4f}",
            f"{r['pair_flops'] / lora['pair_flops']:.3f}",
        ]
        for r in records
    ]
    return table(["variant", "boosters", "score", "loss", "FLOPs / LoRA's", "pair / LoRA's"], rows)
