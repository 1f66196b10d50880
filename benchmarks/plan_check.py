"""Whether a plan comes true: its predicted peaks beside those of real steps on this machine.

    python -m benchmarks.plan_check --json runs/plan_check.json

Each model is trained for two steps by boosters (the first block drawn, the worst draw), by PEFT's
LoRA of rank 8 and in full, with AdamW, while torch's allocator is watched. Both figures are bytes
above the weights: the prediction has nothing of the real run but the model's shapes.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from benchmarks.measures.plans import check
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.subjects.batched import architectures
from benchmarks.tables.plans import check_table


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, measure and print."""
    parser = command.parser("plan_check", __doc__)
    command.add_json(parser)
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    checks = [c for name, (m, batch) in architectures().items() for c in check(name, m, batch)]
    print(f"{provenance_line()}\n\n{check_table(checks)}")
    command.write(options.json, {**provenance(), "checks": [asdict(c) for c in checks]})


if __name__ == "__main__":
    main()
