"""How long a training step takes: paired, interleaved, beside PEFT, BAdam, GaLore and the limit.

    pip install badam galore-torch bitsandbytes   # contenders; what is missing is left out
    python -m benchmarks.speed --json runs/speed.json --plot runs/speed.png
    python -m benchmarks.speed --subject minilm

Subjects: "llama", the 12 blocks of benchmarks.cost (4 x 256 tokens), with L_s = 4, and "minilm",
all-MiniLM-L6-v2 as a classifier (16 x 64 tokens, 6 blocks), with L_s = 2. All contenders live at
once, each with its own copy of the model, and take one step each in every round, in an order drawn
anew. So whatever slows the machine down slows all of them down, and ratios are those of the same
round. The figures are medians over the rounds, of processor time (what a shared machine changes
least) and of wall time.

A booster's step costs what its lowest drawn block says, and is linear in it (benchmarks.cost counts
both). It is therefore timed with the lowest block at either end, and a sampler's mean step is the
point between them at the sampler's mean lowest block: (L + 1)/(L_s + 1) - 1 for "uniform",
(L - L_s)/2 for "window". The limit, the frozen model run forward and backward to the input of
that block, is read the same way. A merge and the next draw are timed in every round as well, and
charged at 1/κ to each step, κ = 8. *Checkpointed* are the blocks, ours by ``checkpointing=True``
(or 0.5: every second one), PEFT's by transformers' ``activation_checkpointing_enable()``.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.measures.speed import OURS, own_share, peaks, rounds, summary
from benchmarks.methods.contenders import contenders, left_out
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.subjects.batched import llama, minilm
from benchmarks.subjects.llama import Size
from benchmarks.tables.speed import plot, speed_table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = command.parser("speed", __doc__)
    parser.add_argument("--subject", choices=("llama", "minilm"), default="llama")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default: 0)")
    parser.add_argument("--no-memory", action="store_true", help="skip the peaks of memory")
    command.add_json(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there")
    options = parser.parse_args(argv)
    subject = llama(Size()) if options.subject == "llama" else minilm()
    memory = {} if options.no_memory else peaks(subject)
    made = {
        n: build(subject.model(), subject.batch) for n, build in contenders(subject.drawn).items()
    }
    times = rounds(subject, made, options.rounds, options.seed)
    share = own_share(subject, times, made[OURS])
    rows = summary(subject, times, memory)
    head = f"{subject.name}: {subject.drawn} of {subject.blocks} blocks drawn, "
    print(f"{head}{options.rounds} rounds, seed {options.seed}; {provenance_line()}; ", end="")
    print(f"{left_out(list(made))}\n\n{speed_table(rows)}\n")
    told = [f"{name} {value:.2%}" for name, value in share.items()]
    count = len(subject.means)
    print(f"not the model's own work: {', '.join(told[:count])}; of it {', '.join(told[count:])}")
    if options.plot:
        plot(rows, options.plot)
    about = {"subject": subject.name, "drawn": subject.drawn, "seed": options.seed}
    found = {**about, **provenance(), "rows": rows, "own_share": share, "times": times}
    command.write(options.json, found)


if __name__ == "__main__":
    main()
