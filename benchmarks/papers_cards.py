"""What of the papers' models fits a 24 GB card: tokens a batch, by ``torch_xgb.plan``.

    python -m benchmarks.papers_cards --json runs/papers_cards.json

bfloat16 weights, 8 blocks drawn, no residual on the card (merge_precision="stochastic", or
residual_device="cpu"); 24 GiB of which 0.75 are left to the driver. Activations are in proportion
to tokens, so that two lengths tell the most of any batch x length.
"""

from collections.abc import Sequence

from benchmarks.measures.plans import on_card
from benchmarks.runs import command
from benchmarks.runs.provenance import provenance, provenance_line
from benchmarks.tables.plans import card_table


def main(argv: Sequence[str] | None = None) -> None:
    """Plan and print."""
    parser = command.parser("papers_cards", __doc__)
    parser.add_argument("--card", type=float, default=24.0, metavar="GIB")
    command.add_json(parser)
    options = parser.parse_args(argv)
    found = on_card(options.card)
    print(f"{provenance_line()}\n\n{card_table(found)}")
    command.write(options.json, {**provenance(), "rows": found})


if __name__ == "__main__":
    main()
