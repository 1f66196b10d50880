"""Compiled blocks: speed and graphs, beside eager mode and PEFT's LoRA, in one run.

    python -m benchmarks.compiled                       # a quarter of an hour; needs a C++ compiler
    python -m benchmarks.compiled --backend aot_eager --rounds 3

The Llama of benchmarks.cost, 4 of 12 blocks drawn. Each block is compiled by itself with
``block.compile(fullgraph=True)``, so that a break in a graph would be an error. Every contender
lives twice, in eager mode and compiled, with its blocks checkpointed and without, and all take
their steps in turn, in an order drawn anew in every round. A step of ours is taken with the lowest
drawn block at either end, and "uniform" is the point between (benchmarks.speed). Figures are
medians over the rounds, of processor time, or with ``--device cuda`` of time until it is done.
"""

from collections.abc import Mapping, Sequence

import torch

from benchmarks.measures.compiled import made, rounds, summary
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.subjects.batched import Subject, llama
from benchmarks.subjects.llama import Size
from benchmarks.tables.table import table


def compiled_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out a line a contender."""
    head = ["", "graphs", "step, ms", "of eager", "of LoRA r=8, made alike"]
    body = [
        [name, f"{row['graphs']:.0f}", f"{1e3 * row['step']:.1f}"]
        + [f"{row[key]:.3f}" for key in ("of_eager", "of_lora")]
        for name, row in sorted(rows.items())
    ]
    return table(head, body)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = command.parser("compiled", __doc__)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--blocks", type=int, default=12, help="of the Llama (default: 12)")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default: 0)")
    parser.add_argument("--device", default="cpu", help="where (default: cpu)")
    command.add_json(parser)
    options = parser.parse_args(argv)
    subject = on(llama(Size(blocks=options.blocks)), torch.device(options.device))
    contenders = made(subject, options.backend)
    times = rounds(subject, contenders, options.rounds, options.seed, options.device != "cpu")
    rows = summary(contenders, times)
    print(f"{subject.name}, {subject.drawn} of {subject.blocks} blocks drawn, {options.backend}, ")
    print(f"{options.rounds} rounds, seed {options.seed}; {provenance_line()}\n")
    print(compiled_table(rows))
    command.write(options.json, {"backend": options.backend, **provenance(), "rows": rows})


def on(subject: Subject, device: torch.device) -> Subject:
    """Return a subject whose models and batch are on a device."""
    batch = {name: tensor.to(device) for name, tensor in subject.batch.items()}
    kept = subject.blocks, subject.drawn
    return Subject(subject.name, lambda: subject.model().to(device), batch, *kept)


if __name__ == "__main__":
    main()
