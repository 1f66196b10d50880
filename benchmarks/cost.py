"""What a training step computes and keeps, counted instead of timed: the same on every machine.

    python -m benchmarks.cost                    # about two minutes
    python -m benchmarks.cost --json runs/cost.json

A Llama of 12 blocks (hidden 512, intermediate 1408, 8 heads, vocabulary 4096) with random weights
sees a batch of 4 x 256 tokens in float32. Every method counts under the same rules:

FLOPs are those of the matrix products of forward and backward, as torch's FlopCounterMode sees
them, with those it lacks: products in place and in groups, of rank 1 entry by entry, and the CPU's
flash attention. Products with weights and products of attention are told apart.

Bytes are those of the distinct storages that autograd saves for backward, model parameters and
buffers apart.

A draw's cost depends on its lowest block alone: that is where backward stops. It is counted once
for every lowest block, for the tightest and the widest draw above it, which must agree; a
sampler's mean is then taken over many of its draws. "The limit" is the frozen model with a gradient
asked for at the input of the lowest drawn block, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.measures.allocations import allocation_rows
from benchmarks.measures.cost import rows
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance_line
from benchmarks.subjects.llama import Size
from benchmarks.tables.cost import allocation_table, cost_table, record


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = command.parser("cost", __doc__)
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--drawn", type=int, default=4, help="blocks a booster draws (default: 4)")
    parser.add_argument("--draws", type=int, default=5000, help="per sampler (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    command.add_json(parser)
    options = parser.parse_args(argv)
    size = Size(attention=options.attention)
    print(f"{size}\n{options.drawn} blocks drawn, seed {options.seed}; {provenance_line()}\n")
    counted = rows(size, options.drawn, options.draws, options.seed)
    spaces = allocation_rows(size.hidden, size.intermediate, (size.batch, size.tokens))
    print(f"{cost_table(counted)}\n\n{allocation_table(spaces)}")
    about = {"size": asdict(size), "drawn": options.drawn, "seed": options.seed}
    command.write(options.json, record(counted, spaces, **about))


if __name__ == "__main__":
    main()
