"""What a command says, to people or to machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Commands", "Run", "command"]

Commands = argparse._SubParsersAction  # what add_subparsers() returns; argparse has no other name


@dataclass(frozen=True)
class Answer:
    """What a command says.

    Attributes:
        text: For people.
        facts: The same for machines, in JSON's types.
    """

    text: str
    facts: Mapping[str, Any]

    def printed(self, as_json: bool) -> str:
        """Return it as text, or as one JSON object."""
        return json.dumps(self.facts, indent=2, allow_nan=False) if as_json else self.text


Run = Callable[[argparse.Namespace], Answer]


def command(
    commands: Commands[argparse.ArgumentParser], name: str, run: Run, text: str, **more: Any
) -> argparse.ArgumentParser:
    """Add a command, whose description is that of the function that runs it.

    Args:
        commands: Where to.
        name: Its name.
        run: Runs it.
        text: A line about it.
        **more: For its parser.
    """
    parser = commands.add_parser(name, help=text, description=run.__doc__, **more)
    parser.set_defaults(usage_error=parser.error, flags=parser._option_string_actions)
    parser.add_argument(
        "--json", action="store_true", default=False, help="say it in JSON, on stdout"
    )
    parser.set_defaults(run_command=run)
    return parser
