"""The parser of all commands, and how a command ends."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from torch_xgb.command.environment import add_env, version
from torch_xgb.command.ledgers import add_export, add_plot, add_rollback
from torch_xgb.command.planning import add_plan
from torch_xgb.command.training import add_finetune

__all__ = ["main", "parser"]

_EXPECTED = (ImportError, OSError, TypeError, ValueError, RuntimeError, KeyboardInterrupt)
_TRACEBACK = "TORCH_XGB_TRACEBACK"
_ARGUMENT = re.compile(r"\b(\w+)=(?=[\s,.;:)]|$)")  # asked for by its name in Python


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Raises:
        SystemExit: With code 1 and one line if it failed, with 2 if it was not understood. If the
            variable TORCH_XGB_TRACEBACK is set, a failure is raised as it is.
    """
    whole = parser()
    if not (sys.argv[1:] if argv is None else argv):
        whole.print_help(sys.stderr)
        sys.exit(2)
    options, unknown = whole.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], options.flags, 1)
        meant = f"; is {near[0]} meant?" if near else ""
        options.usage_error(f"there is no {' '.join(unknown)}{meant}")
    try:
        with redirect_stdout(sys.stderr):  # where other libraries' words belong
            answer = options.run_command(options)
        if os.environ.get("RANK", "0") == "0":  # of several processes the first speaks
            print(answer.printed(options.json), flush=True)
    except BrokenPipeError:  # whoever reads it has read enough, as ``head`` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except _EXPECTED as error:
        if os.environ.get(_TRACEBACK):
            raise
        line = " ".join(_said(error, options).split()) or type(error).__name__
        if options.json:
            print(json.dumps({"error": line}))
        sys.exit(f"torch-xgb: {line}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    whole = argparse.ArgumentParser(
        prog="torch-xgb",
        description="Fine-tuning as gradient boosting with low-rank boosters.",
        epilog=f"Exit codes: 0 done, 1 failed, 2 not understood. {_TRACEBACK}=1 shows where.",
    )
    whole.add_argument("--version", action="version", version=version())
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_finetune, add_plan, add_plot, add_export, add_rollback, add_env):
        add(commands)
    _complete(whole)
    return whole


def _said(error: BaseException, options: argparse.Namespace) -> str:
    """Return what an error says, with the flags of the command for the library's arguments."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    flags = {flag[2:].replace("-", "_"): flag for flag in options.flags}
    said = _ARGUMENT.sub(lambda found: flags.get(found[1], found[0]), str(error))
    file = error.filename if isinstance(error, OSError) else None
    if not isinstance(file, (str, os.PathLike)):
        return said
    given = {flag: getattr(options, name, None) for name, flag in flags.items()}
    paths = {flag: Path(one) for flag, one in given.items() if isinstance(one, (str, Path))}
    holding = [f for f, path in paths.items() if path in (Path(file), *Path(file).parents)]
    return f"{max(holding, key=lambda f: len(paths[f].parts))}: {said}" if holding else said


def _complete(whole: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, where argcomplete is installed."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(whole)
