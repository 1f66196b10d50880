"""What of the papers' models fits a 24 GB card: tokens a batch, by ``torch_xgb.plan``.

    python -m benchmarks.papers_cards --json runs/papers_cards.json

bfloat16 weights, 8 blocks drawn, no residual on the card (merge_precision="stochastic", or
residual_device="cpu"); 24 GiB of which 0.75 are left to the driver. Activations are in proportion
to tokens, so that two lengths tell the most of any batch x length.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.provenance import provenance, provenance_line
from benchmarks.table import table
from torch_xgb import plan
from torch_xgb.forecast import RESERVE

MODELS = ("llama3-8b", "mistral-7b", "llama-13b")
LENGTH = 512


def rows(card: float) -> list[dict[str, object]]:
    """Plan every model with and without checkpointing."""
    found: list[dict[str, object]] = []
    for model in MODELS:
        for checkpointing in (False, True):
            shorter, longer = (
                plan(
                    model,
                    length=length,
                    layers_per_booster=8,
                    merge_precision="stochastic",
                    checkpointing=checkpointing,
                )
                for length in (LENGTH, 2 * LENGTH)
            )
            for need, more in zip(shorter.needs, longer.needs, strict=True):
                here, there = (n.saved + n.transient for n in (need, more))
                per_token = (there - here) / LENGTH
                room = (card - RESERVE) * 2**30 - need.peak
                tokens = LENGTH + int(room // per_token)
                found.append(
                    {
                        "model": model,
                        "checkpointing": checkpointing,
                        "method": need.name,
                        "per_mille": 1e3 * need.trained / shorter.parameters,
                        "weights_gib": need.weights / 2**30,
                        "mib_per_token": per_token / 2**20,
                        "tokens": max(0, tokens),
                    }
                )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Plan and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers_cards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--card", type=float, default=24.0, metavar="GIB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    found = rows(options.card)
    head = [
        "",
        "method",
        "checkpointing",
        "trained, ‰",
        "weights GiB",
        "MiB a token",
        "most tokens",
    ]
    body = [
        [
            str(row["model"]),
            str(row["method"]),
            "yes" if row["checkpointing"] else "no",
            f"{row['per_mille']:.2f}",
            f"{row['weights_gib']:.1f}",
            f"{row['mib_per_token']:.2f}",
            f"{row['tokens']:,}",
        ]
        for row in found
    ]
    print(f"{provenance_line()}\n\n{table(head, body)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**provenance(), "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
