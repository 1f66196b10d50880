"""What the commands share: a parser that shows the docstring, a file of figures, a last word."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Make the parser of ``python -m benchmarks.name``."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let the user name a file for the figures."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def write(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the figures down, if there is a file for them."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


@contextmanager
def needed(name: str) -> Iterator[None]:
    """End the command with the reason where a model or data that it needs are missing."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.{name}: {error}")
