"""Where a ledger's tensors are kept: in memory, or in a folder; ``packed`` has them in one file.

A safetensors file begins with a header that lists its contents, so a growing one would have to be
written anew each time, and a kill in the middle would lose all of it. A folder therefore holds one
file per booster, written aside and moved into place: what is there is complete.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

__all__ = [
    "Facts",
    "Folder",
    "Memory",
    "Store",
    "import_safetensors",
    "opened",
    "read_tensor",
    "replacing",
]

Facts = dict[str, Any]
_PART = ".part"
_SECTION = re.compile(r"(base|booster-\d{6,})\.safetensors")


class Store(Protocol):
    """Sections, each of named tensors and plain facts; and documents, of plain facts alone."""

    def sections(self) -> list[str]:
        """Return the names of all sections."""

    def __contains__(self, section: str) -> bool: ...

    def facts(self, section: str) -> Facts:
        """Return a section's facts."""

    def keys(self, section: str) -> list[str]:
        """Return the names of a section's tensors."""

    def tensors(self, section: str, keys: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return a section's tensors, all or some of them, reading nothing else."""

    def write(self, section: str, tensors: Mapping[str, Tensor], facts: Facts) -> None:
        """Write a section whole, or not at all."""

    def remove(self, section: str) -> None:
        """Remove a section."""

    def document(self, name: str) -> Facts | None:
        """Return a document, or None."""

    def write_document(self, name: str, facts: Facts) -> None:
        """Write a document whole, or not at all."""


class Memory:
    """A store that ends with the process."""

    def __init__(self) -> None:
        self._sections: dict[str, tuple[dict[str, Tensor], Facts]] = {}
        self._documents: dict[str, Facts] = {}

    def sections(self) -> list[str]:  # noqa: D102
        return list(self._sections)

    def __contains__(self, section: str) -> bool:
        return section in self._sections

    def facts(self, section: str) -> Facts:  # noqa: D102
        return self._sections[section][1]

    def keys(self, section: str) -> list[str]:  # noqa: D102
        return list(self._sections[section][0])

    def tensors(self, section: str, keys: Iterable[str] | None = None) -> dict[str, Tensor]:  # noqa: D102
        held = self._sections[section][0]
        return {key: held[key] for key in (held if keys is None else keys)}

    def write(self, section: str, tensors: Mapping[str, Tensor], facts: Facts) -> None:  # noqa: D102
        self._sections[section] = dict(tensors), facts

    def remove(self, section: str) -> None:  # noqa: D102
        del self._sections[section]

    def document(self, name: str) -> Facts | None:  # noqa: D102
        return self._documents.get(name)

    def write_document(self, name: str, facts: Facts) -> None:  # noqa: D102
        self._documents[name] = facts


class Folder:
    """A store of one safetensors file per section and one JSON file per document.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the folder and remove what an unfinished write left there.

        Raises:
            ValueError: If there is something else of this name.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"a ledger is a folder, and {str(self.path)!r} is a file")
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in (
            *self.path.glob(f"*.safetensors{_PART}"),
            *self.path.glob(f"*.json{_PART}"),
        ):
            leftover.unlink()

    def sections(self) -> list[str]:  # noqa: D102
        files = self.path.iterdir() if self.path.is_dir() else ()
        names = [m[1] for file in files if (m := _SECTION.fullmatch(file.name))]
        return sorted(names, key=lambda name: (len(name), name))

    def __contains__(self, section: str) -> bool:
        return self._file(section).exists()

    def facts(self, section: str) -> Facts:  # noqa: D102
        with opened(self._file(section)) as file:
            facts: Facts = json.loads(file.metadata()["facts"])
            return facts

    def keys(self, section: str) -> list[str]:  # noqa: D102
        with opened(self._file(section)) as file:
            return list(file.keys())

    def tensors(self, section: str, keys: Iterable[str] | None = None) -> dict[str, Tensor]:  # noqa: D102
        with opened(self._file(section)) as file:
            return {key: read_tensor(file, key) for key in (file.keys() if keys is None else keys)}

    def write(self, section: str, tensors: Mapping[str, Tensor], facts: Facts) -> None:  # noqa: D102
        safetensors = import_safetensors()
        with replacing(self._file(section)) as part:
            safetensors.save_file(dict(tensors), part, {"facts": json.dumps(facts)})

    def remove(self, section: str) -> None:  # noqa: D102
        self._file(section).unlink()

    def document(self, name: str) -> Facts | None:  # noqa: D102
        file = self.path / f"{name}.json"
        if not file.exists():
            return None
        facts: Facts = json.loads(file.read_text(encoding="utf-8"))
        return facts

    def write_document(self, name: str, facts: Facts) -> None:  # noqa: D102
        with replacing(self.path / f"{name}.json") as part:
            part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def _file(self, section: str) -> Path:
        return self.path / f"{section}.safetensors"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to, and move the file into place once it is complete and on the disk."""
    part = path.with_name(path.name + _PART)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def import_safetensors() -> Any:  # noqa: ANN401
    """Return ``safetensors.torch``.

    Raises:
        ImportError: If it is not installed; the message says how to.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "a ledger on disk needs safetensors: pip install 'torch-xgb[ledger]'"
        ) from error
    return safetensors.torch


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        ValueError: If it is none.
    """
    safetensors_torch = import_safetensors()
    from safetensors import SafetensorError

    try:
        opened = safetensors_torch.safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is no ledger's file, or damaged: {error}") from error
    with opened as file:
        yield file


def read_tensor(file: Any, key: str) -> Tensor:  # noqa: ANN401
    """Return a tensor of an open file."""
    # A copy: the file's own memory is mapped, unaligned, and may be truncated under our feet.
    tensor: Tensor = file.get_tensor(key).clone()
    return tensor
