"""A ledger in one safetensors file: written once, from a growing one, and read."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from torch_xgb.ledger import digests
from torch_xgb.ledger.facts import Facts, entry, mapping
from torch_xgb.ledger.files import reading, replacing
from torch_xgb.ledger.store import Store, read_facts
from torch_xgb.ledger.tensorfile import TensorFile, append, write_header

__all__ = ["Packed", "pack"]

_METADATA = ("documents", "facts")


class Packed:
    """A store in one safetensors file, to be read; documents written to it stay in memory.

    The file is opened once: its list of contents names every tensor of every booster.

    Args:
        path: The file, written by ``pack``.

    Raises:
        ValueError: If the file is not one of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TensorFile | None = TensorFile(path)
        if "documents" not in self._file.metadata:
            raise ValueError(f"{str(path)!r} is no ledger: it was not written by Chain.save")
        with reading(path):
            found = read_facts(self._file.metadata, _METADATA)
            self._documents = found["documents"]
            self._facts = {name: entry(found["facts"], name, mapping) for name in found["facts"]}
        self._keys: dict[str, list[str]] = {section: [] for section in self._facts}
        for key in self._file.keys:
            section, _, name = key.partition("/")
            if section in self._keys:
                self._keys[section].append(name)

    def __getstate__(self) -> dict[str, object]:
        """Leave the open file behind."""
        return {**self.__dict__, "_file": None}

    def sections(self) -> list[str]:  # noqa: D102
        return list(self._facts)

    def __contains__(self, section: str) -> bool:
        return section in self._facts

    def place(self, name: str) -> str:  # noqa: D102
        return f"{self.path}: {name}"

    def facts(self, section: str) -> Facts:  # noqa: D102
        return self._facts[section]

    def keys(self, section: str) -> list[str]:  # noqa: D102
        return self._keys[section]

    def items(  # noqa: D102
        self, section: str, keys: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        if self._file is None:
            self._file = TensorFile(self.path)
        wanted = self._keys[section] if keys is None else keys
        for key, tensor in self._file.read(f"{section}/{key}" for key in wanted):
            yield key.removeprefix(f"{section}/"), tensor

    def write(  # noqa: D102
        self,
        section: str,
        tensors: Mapping[str, Tensor],
        facts: Facts,
        before: Callable[[], object] | None = None,
    ) -> None:
        raise RuntimeError(
            f"{str(self.path)!r} is a packed ledger, which cannot grow; use a folder"
        )

    def remove(self, section: str) -> None:  # noqa: D102
        raise RuntimeError(f"{str(self.path)!r} is a packed ledger, which cannot shrink")

    def holds(self, name: str) -> bool:  # noqa: D102
        return name in self._documents

    def document(self, name: str) -> object:  # noqa: D102
        return self._documents.get(name)

    def write_document(self, name: str, facts: Facts) -> None:  # noqa: D102
        self._documents[name] = facts


def pack(store: Store, path: Path, documents: Mapping[str, object], sections: list[str]) -> None:
    """Copy a store into one safetensors file, a tensor at a time.

    The data are gathered in a temporary file beside it, for the header that precedes them is known
    only in the end.

    Args:
        store: What is copied.
        path: The file.
        documents: Those to be in it.
        sections: Those to be in it.
    """
    facts = {section: store.facts(section) for section in sections}
    told = json.dumps(documents), json.dumps(facts)
    metadata = dict(zip(_METADATA, told, strict=True))
    header: Facts = {"__metadata__": {**metadata, "checksum": digests.of_text("".join(told))}}
    with tempfile.TemporaryFile(dir=path.parent) as data:
        for section in facts:
            for key, tensor in store.items(section, sorted(store.keys(section))):
                append(data, header, f"{section}/{key}", tensor)
        data.seek(0)
        with replacing(path) as file:
            write_header(file, header)
            shutil.copyfileobj(data, file, 1 << 20)
