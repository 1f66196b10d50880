"""Command line: ``python -m torch_xgb plot RUN`` and ``python -m torch_xgb plan MODEL``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from torch_xgb.forecast.plan import plan
from torch_xgb.forecast.shapes import KNOWN
from torch_xgb.ledger.chain import Chain

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m torch_xgb")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_plot(commands)
    _add_plan(commands)
    options = parser.parse_args(argv)
    try:
        options.run_command(options)
    except (ImportError, OSError, TypeError, ValueError) as error:
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


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    planned = commands.add_parser(
        "plan", help="predict a step's memory and FLOPs", description=_plan.__doc__
    )
    planned.add_argument(
        "model", metavar="MODEL", help=f"a folder with a config.json, or one of {', '.join(KNOWN)}"
    )
    dtypes = ("float32", "bfloat16", "float16")
    add = planned.add_argument
    add("--batch", type=int, default=1, help="rows (default: 1)")
    add("--length", type=int, default=512, help="tokens a row (default: 512)")
    add("--dtype", choices=dtypes, default="bfloat16", help="of the weights (default: bfloat16)")
    add("--checkpointing", action="store_true", help="recompute each block in backward")
    add("--card", type=float, metavar="GIB", help="say what fits a card of so many GiB")
    add("--r", type=int, default=1, help="the boosters' rank (default: 1)")
    add("--layers", type=int, help="blocks a booster draws (default: a third)")
    add("--lora-r", type=int, default=8, help="the rank of the LoRA beside it (default: 8)")
    add("--merge-precision", default="auto", help="of 16-bit weights (default: auto)")
    add("--residual-device", help="'cpu' takes the residual off the card")
    planned.set_defaults(run_command=_plan)


def _plan(options: argparse.Namespace) -> None:
    """Predict what a step needs, from shapes alone, for XGBLoRA, LoRA and full fine-tuning."""
    forecast = plan(
        options.model,
        batch=options.batch,
        length=options.length,
        dtype=getattr(torch, options.dtype),
        checkpointing=options.checkpointing,
        card=options.card,
        r=options.r,
        layers_per_booster=options.layers,
        lora_r=options.lora_r,
        merge_precision=options.merge_precision,
        residual_device=options.residual_device,
    )
    print(forecast)


if __name__ == "__main__":
    main()
