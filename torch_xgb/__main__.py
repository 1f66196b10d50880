"""Command line: ``python -m torch_xgb plot RUN``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch_xgb.ledger import Chain

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m torch_xgb")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_plot(commands)
    options = parser.parse_args(argv)
    try:
        options.run_command(options)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"torch_xgb: {error}")


def _add_plot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plot = commands.add_parser("plot", help="draw a ledger of boosters", description=_plot.__doc__)
    plot.add_argument("run", type=Path, metavar="RUN", help="a ledger: a folder, or a packed file")
    plot.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the picture (default: chain.png beside the ledger)",
    )
    plot.set_defaults(run_command=_plot)


def _plot(options: argparse.Namespace) -> None:
    """Draw update norms by layer and booster, and the effective rank of the update over time."""
    beside = options.run if options.run.is_dir() else options.run.parent
    out = options.out or beside / "chain.png"
    chain = Chain.load(options.run)
    chain.plot(out)
    print(f"{len(chain)} boosters drawn to {out}")


if __name__ == "__main__":
    main()
