"""The papers' theorems where the optimum is known: linear and deep linear targets of rank R.

    python -m benchmarks.theory            # four minutes on one core

Four questions, a plot and a line of fitted slopes each:

boosters    Excess error against the number T of boosters, r = 1, 2, 4, 8, and LoRA of the same
            ranks for as many steps (XGBLoRA, Fig. 2, Theorems 1 and 2: ≤ C/√T + C'/r; its C'/r says
            that boosters stall at a floor set by r, its remarks that they do not).
deep        The same for a product of three maps, one of them drawn by each booster.
noise       min_t E‖∇f‖² of LoRA with noisy gradients against T and r, step size ∝ r^(−1/4)/√T
            (MeFT, Theorem 2: at most ∝ r^(1/4)/√T).
gap         The mean Frank–Wolfe gap against T, for exact Frank–Wolfe over a trace-norm ball and
            for boosters of rank 1 (COLA, Theorem 4.1: at most ∝ 1/√T).

Bounds are above what happens, so a slope steeper than a bound's agrees with it. The library trains
everything but exact Frank–Wolfe; SGD, so that no optimizer state plays a part. Three seeds.
"""

from collections.abc import Sequence

from benchmarks.runs import command
from benchmarks.runs.journal import Journal
from benchmarks.runs.provenance import provenance_line
from benchmarks.runs.theory import JOURNAL
from benchmarks.tables.theory import findings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    command.parser("theory", __doc__).parse_args(argv)
    print(provenance_line(), flush=True)
    print(*findings(Journal(JOURNAL)), sep="\n")


if __name__ == "__main__":
    main()
