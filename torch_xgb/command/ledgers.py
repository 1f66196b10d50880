"""``torch-xgb plot``, ``export`` and ``rollback``: what can be had of a ledger."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch_xgb.command.answer import Answer, Commands, command
from torch_xgb.ledger.chain import Chain

__all__ = ["add_export", "add_plot", "add_rollback"]

_RUN = "a ledger: a folder, or a packed file"
_TO = "the last booster that counts: a number, or 'best' by its score"


def add_plot(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``plot``."""
    plot = command(commands, "plot", _plot, "draw a ledger of boosters")
    plot.add_argument("run", type=Path, metavar="RUN", help=_RUN)
    out = "the picture (default: chain.png beside the ledger)"
    plot.add_argument("--out", type=Path, metavar="FILE", help=out)


def add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``export``."""
    export = command(commands, "export", _export, "write a ledger as a PEFT adapter")
    add = export.add_argument
    add("run", type=Path, metavar="RUN", help=_RUN)
    add("--out", type=Path, required=True, metavar="FOLDER", help="of the adapter")
    add("--rank", type=int, metavar="R", help="the best adapter of rank R (default: exact)")
    add("--to", type=_booster, metavar="T", help=f"{_TO} (default: the last)")
    add("--base-model", metavar="NAME", help="the original (default: what the run was loaded from)")


def add_rollback(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``rollback``."""
    rollback = command(commands, "rollback", _rollback, "write a model as it was after a booster")
    add = rollback.add_argument
    add("run", type=Path, metavar="RUN", help=_RUN)
    add("--model", type=Path, required=True, metavar="FOLDER", help="the trained model's folder")
    add("--to", type=_booster, required=True, metavar="T", help=f"{_TO}; -1 is the original")
    add("--out", type=Path, required=True, metavar="FOLDER", help="of the model as it was")


def _booster(text: str) -> int | str:
    return text if text == "best" else int(text)


def _chosen(chain: Chain, to: int | str | None) -> int:
    if to is None:
        return len(chain) - 1
    return chain.best if isinstance(to, str) else to


def _plot(options: argparse.Namespace) -> Answer:
    """Draw update norms by layer and booster, and the effective rank of the update over time."""
    beside = options.run if options.run.is_dir() else options.run.parent
    out = options.out or beside / "chain.png"
    chain = Chain.load(options.run)
    chain.plot(out)
    facts = {"picture": str(out), "boosters": len(chain)}
    return Answer(f"{len(chain)} boosters drawn to {out}", facts)


def _export(options: argparse.Namespace) -> Answer:
    """Write a ledger as a LoRA adapter that ``peft.PeftModel.from_pretrained`` loads."""
    chain = Chain.load(options.run)
    to = _chosen(chain, options.to)
    report = chain.to_peft(options.out, options.rank, options.base_model, to)
    error, most = report.total_error, max(report.rank.values())
    facts = {
        "folder": str(report.folder),
        "booster": to,
        "rank": dict(report.rank),
        "parameters": report.parameters,
        "total_error": error,
        "base_model": options.base_model or chain.header.base_model,
    }
    of = f"{to + 1} boosters" if options.rank is None else f"{to + 1} boosters cut to rank {most}"
    kept = f"rank up to {most}, {report.parameters:,} parameters, error {error:.2g}"
    return Answer(f"{of} exported to {report.folder}: {kept}", facts)


def _rollback(options: argparse.Namespace) -> Answer:
    """Give a saved model of transformers the weights it had after a booster, in another folder."""
    from torch_xgb.integrations.folders import rolled_back

    chain = Chain.load(options.run)
    to = _chosen(chain, options.to)
    rolled_back(chain, options.model, to, options.out)
    facts = {"folder": str(options.out), "booster": to, "boosters": len(chain)}
    state = "before any booster" if to < 0 else f"after booster {to} of {len(chain)}"
    return Answer(f"the model {state} is in {options.out}", facts)
