"""The command line as its own parser tells it."""

from __future__ import annotations

import argparse
import os

from torch_xgb.command.main import parser

__all__ = ["listed"]


def listed() -> str:
    """Write every command's usage and options for the page."""
    os.environ["COLUMNS"] = "88"  # what argparse wraps at
    whole = parser()
    (commands,) = (a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    parts = [f"## `torch-xgb {name}`\n\n```text\n{command.format_help().strip()}\n```\n"
             for name, command in commands.choices.items()]  # fmt: skip
    return "\n".join(parts)
