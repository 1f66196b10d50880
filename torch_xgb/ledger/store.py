"""Where a ledger's tensors are kept: in memory, or in a folder; ``packed`` has them in one file.

A safetensors file begins with a header that lists its contents, so a growing one would have to be
written anew each time, and a kill in the middle would lose all of it. A folder therefore holds one
file per booster, written aside and moved into place: what is there is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from torch_xgb.ledger import digests
from torch_xgb.ledger.facts import Facts, entry, mapping, text
from torch_xgb.ledger.files import exists, read_json, reading, replacing, sweep
from torch_xgb.ledger.tensorfile import TensorFile, write_tensors

__all__ = ["Folder", "Memory", "Store", "read_facts"]

_SECTION = re.compile(r"(base|booster-(?:[0-9]{6}|[1-9][0-9]{6,}))\.safetensors")
_WRITTEN = r"(?:base|booster-[0-9]{6,})\.safetensors|(?:chain|scores)\.json"


def _nothing() -> None:
    pass


class Store(Protocol):
    """Sections, each of named tensors and plain facts; and documents, of plain facts alone.

    Whatever cannot be read is a ValueError that names the place.
    """

    def sections(self) -> list[str]:
        """Return the names of all sections."""

    def __contains__(self, section: str) -> bool: ...

    def place(self, name: str) -> str:
        """Say where a section or a document is."""

    def facts(self, section: str) -> Facts:
        """Return a section's facts."""

    def keys(self, section: str) -> list[str]:
        """Return the names of a section's tensors."""

    def items(
        self, section: str, keys: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Return a section's tensors, all or some of them, one at a time."""

    def write(
        self,
        section: str,
        tensors: Mapping[str, Tensor],
        facts: Facts,
        before: Callable[[], object] = _nothing,
    ) -> None:
        """Write a section whole, or not at all; ``before`` is called once its data are kept."""

    def remove(self, section: str) -> None:
        """Remove a section."""

    def holds(self, name: str) -> bool:
        """Tell whether there is anything of a document's name."""

    def document(self, name: str) -> object:
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

    def place(self, name: str) -> str:  # noqa: D102
        return f"memory: {name}"

    def facts(self, section: str) -> Facts:  # noqa: D102
        return self._sections[section][1]

    def keys(self, section: str) -> list[str]:  # noqa: D102
        return list(self._sections[section][0])

    def items(  # noqa: D102
        self, section: str, keys: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        held = self._sections[section][0]
        return ((key, held[key]) for key in (held if keys is None else keys))

    def write(  # noqa: D102
        self,
        section: str,
        tensors: Mapping[str, Tensor],
        facts: Facts,
        before: Callable[[], object] = _nothing,
    ) -> None:
        before()
        self._sections[section] = dict(tensors), facts

    def remove(self, section: str) -> None:  # noqa: D102
        del self._sections[section]

    def holds(self, name: str) -> bool:  # noqa: D102
        return name in self._documents

    def document(self, name: str) -> object:  # noqa: D102
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
        """Make the folder.

        Raises:
            ValueError: If there is something else of this name.
        """
        if exists(self.path) and not self.path.is_dir():
            raise ValueError(
                f"a ledger is a folder, and {str(self.path)!r} is a file or a link to nothing: "
                "choose another path for record="
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"there cannot be a folder {str(self.path)!r} ({error.strerror}): choose another "
                "path for record="
            ) from error

    def sweep(self) -> None:
        """Remove what unfinished writes of a killed run left, and nothing of others'."""
        sweep(self.path, _WRITTEN)

    def sections(self) -> list[str]:  # noqa: D102
        files = self.path.iterdir() if self.path.is_dir() else ()
        names = [m[1] for file in files if (m := _SECTION.fullmatch(file.name))]
        return sorted(names, key=lambda name: (len(name), name))

    def __contains__(self, section: str) -> bool:
        return exists(self._file(section))

    def place(self, name: str) -> str:  # noqa: D102
        file = self._file(name)
        return str(file if _SECTION.fullmatch(file.name) else self._document(name))

    def facts(self, section: str) -> Facts:  # noqa: D102
        with TensorFile(self._file(section)) as file, reading(file.path):
            return read_facts(file.metadata, ("facts",))["facts"]

    def keys(self, section: str) -> list[str]:  # noqa: D102
        with TensorFile(self._file(section)) as file:
            return file.keys

    def items(  # noqa: D102
        self, section: str, keys: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        with TensorFile(self._file(section)) as file:
            yield from file.read(file.keys if keys is None else keys)

    def write(  # noqa: D102
        self,
        section: str,
        tensors: Mapping[str, Tensor],
        facts: Facts,
        before: Callable[[], object] = _nothing,
    ) -> None:
        told = json.dumps(facts)
        metadata = {"facts": told, "checksum": digests.of_text(told)}
        with replacing(self._file(section), before) as file:
            write_tensors(file, tensors, metadata)

    def remove(self, section: str) -> None:  # noqa: D102
        self._file(section).unlink(missing_ok=True)

    def holds(self, name: str) -> bool:  # noqa: D102
        return exists(self._document(name))

    def document(self, name: str) -> object:  # noqa: D102
        file = self._document(name)
        return read_json(file) if exists(file) else None

    def write_document(self, name: str, facts: Facts) -> None:  # noqa: D102
        with replacing(self._document(name)) as file:
            file.write((json.dumps(facts, indent=1) + "\n").encode())

    def _file(self, section: str) -> Path:
        return self.path / f"{section}.safetensors"

    def _document(self, name: str) -> Path:
        return self.path / f"{name}.json"


def read_facts(metadata: Mapping[str, str], names: tuple[str, ...]) -> dict[str, Facts]:
    """Return the JSON objects in a file's metadata, compared with their checksum.

    Earlier versions of the library wrote none.

    Raises:
        ValueError: If one is missing, or was changed.
    """
    if strangers := metadata.keys() - {*names, "checksum"}:
        raise ValueError(f"its metadata hold {sorted(strangers)[0]!r}, which is nobody's")
    told = [entry(metadata, name, text) for name in names]
    if "checksum" in metadata:
        digests.require(metadata["checksum"], digests.of_text("".join(told)))
    return {name: mapping(json.loads(one)) for name, one in zip(names, told, strict=True)}
