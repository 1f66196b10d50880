"""Where a ledger's tensors are kept: in memory, in a folder, or packed into one file.

A safetensors file begins with a header that lists its contents, so a growing one would have to be
written anew each time, and a kill in the middle would lose all of it. A folder therefore holds one
file per booster, written aside and moved into place: what is there is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from torch import Tensor

__all__ = ["Folder", "Memory", "Packed", "Store", "import_safetensors", "pack", "replacing"]

Facts = dict[str, Any]
_PART = ".part"
_SECTION = re.compile(r"(base|booster-\d{6,})\.safetensors")
_ALIGNMENT = 8


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
        with _opened(self._file(section)) as file:
            facts: Facts = json.loads(file.metadata()["facts"])
            return facts

    def keys(self, section: str) -> list[str]:  # noqa: D102
        with _opened(self._file(section)) as file:
            return list(file.keys())

    def tensors(self, section: str, keys: Iterable[str] | None = None) -> dict[str, Tensor]:  # noqa: D102
        with _opened(self._file(section)) as file:
            return {key: _read(file, key) for key in (file.keys() if keys is None else keys)}

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


class Packed:
    """A store in one safetensors file, to be read; documents written to it stay in memory.

    Args:
        path: The file, written by ``pack``.

    Raises:
        ValueError: If the file is not one of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as file:
            metadata, keys = file.metadata() or {}, list(file.keys())
        if "documents" not in metadata:
            raise ValueError(f"{str(path)!r} is no ledger: it was not written by Chain.save")
        self._documents: dict[str, Facts] = json.loads(metadata["documents"])
        self._facts: dict[str, Facts] = json.loads(metadata["facts"])
        self._keys: dict[str, list[str]] = {section: [] for section in self._facts}
        for key in keys:
            section, _, name = key.partition("/")
            if section in self._keys:
                self._keys[section].append(name)

    def sections(self) -> list[str]:  # noqa: D102
        return list(self._facts)

    def __contains__(self, section: str) -> bool:
        return section in self._facts

    def facts(self, section: str) -> Facts:  # noqa: D102
        return self._facts[section]

    def keys(self, section: str) -> list[str]:  # noqa: D102
        return self._keys[section]

    def tensors(self, section: str, keys: Iterable[str] | None = None) -> dict[str, Tensor]:  # noqa: D102
        wanted = self._keys[section] if keys is None else keys
        with _opened(self.path) as file:
            return {key: _read(file, f"{section}/{key}") for key in wanted}

    def write(self, section: str, tensors: Mapping[str, Tensor], facts: Facts) -> None:  # noqa: D102
        raise RuntimeError(
            f"{str(self.path)!r} is a packed ledger, which cannot grow; use a folder"
        )

    def remove(self, section: str) -> None:  # noqa: D102
        raise RuntimeError(f"{str(self.path)!r} is a packed ledger, which cannot shrink")

    def document(self, name: str) -> Facts | None:  # noqa: D102
        return self._documents.get(name)

    def write_document(self, name: str, facts: Facts) -> None:  # noqa: D102
        self._documents[name] = facts


def pack(store: Store, path: Path, documents: Iterable[str]) -> None:
    """Copy a store into one safetensors file, a tensor at a time.

    The data are gathered in a temporary file beside it, for the header that precedes them is known
    only in the end.
    """
    safetensors = import_safetensors()
    listed = {name: found for name in documents if (found := store.document(name)) is not None}
    facts = {section: store.facts(section) for section in store.sections()}
    metadata = {"documents": json.dumps(listed), "facts": json.dumps(facts)}
    header: Facts = {"__metadata__": metadata}
    with tempfile.TemporaryFile(dir=path.parent) as data:
        for section in facts:
            for key in sorted(store.keys(section)):
                blob = safetensors.save(store.tensors(section, [key]))
                _append(data, header, f"{section}/{key}", blob)
        opening = json.dumps(header).encode()
        opening += b" " * (-len(opening) % _ALIGNMENT)
        data.seek(0)
        with replacing(path) as part, part.open("wb") as file:
            file.write(struct.pack("<Q", len(opening)) + opening)
            shutil.copyfileobj(data, file, 1 << 20)


def _append(data: IO[bytes], header: Facts, key: str, blob: bytes) -> None:
    """Append a safetensors blob's only tensor, padded: readers want aligned data, and no gaps."""
    (length,) = struct.unpack("<Q", blob[:8])
    entries = json.loads(blob[8 : 8 + length])
    (entry,) = (value for name, value in entries.items() if name != "__metadata__")
    start = data.tell()
    data.write(blob[8 + length :])
    header[key] = {**entry, "data_offsets": [start, data.tell()]}
    if gap := -data.tell() % _ALIGNMENT:
        offsets = [data.tell(), data.tell() + gap]
        header[f"padding/{start}"] = {"dtype": "U8", "shape": [gap], "data_offsets": offsets}
        data.write(bytes(gap))


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
def _opened(path: Path) -> Iterator[Any]:
    safetensors_torch = import_safetensors()
    from safetensors import SafetensorError

    try:
        opened = safetensors_torch.safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is no ledger's file, or damaged: {error}") from error
    with opened as file:
        yield file


def _read(file: Any, key: str) -> Tensor:  # noqa: ANN401
    # A copy: the file's own memory is mapped, unaligned, and may be truncated under our feet.
    tensor: Tensor = file.get_tensor(key).clone()
    return tensor
