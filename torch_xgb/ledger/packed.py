"""A ledger in one safetensors file: written once, from a growing one, and read."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from torch import Tensor

from torch_xgb.ledger.store import Facts, Store, import_safetensors, opened, read_tensor, replacing

__all__ = ["Packed", "pack"]

_ALIGNMENT = 8


class Packed:
    """A store in one safetensors file, to be read; documents written to it stay in memory.

    Args:
        path: The file, written by ``pack``.

    Raises:
        ValueError: If the file is not one of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
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
        with opened(self.path) as file:
            return {key: read_tensor(file, f"{section}/{key}") for key in wanted}

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
