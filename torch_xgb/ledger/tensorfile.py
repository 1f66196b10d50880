"""Safetensors files: read a tensor at a time, and written without another file beside them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from torch_xgb.ledger.facts import Facts
from torch_xgb.ledger.files import damaged, require_file

__all__ = ["TensorFile", "append", "import_safetensors", "write_header", "write_tensors"]

_ALIGNMENT = 8


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


class TensorFile:
    """A file opened once, its list of contents read.

    Raises:
        ValueError: If it is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        library = import_safetensors()
        require_file(path)
        try:
            self._file = library.safe_open(path, framework="pt", device="cpu").__enter__()
            self.keys: list[str] = list(self._file.keys())
            self.metadata: dict[str, str] = dict(self._file.metadata() or {})
        except Exception as error:  # of whatever kind: the library documents none
            raise damaged(path, error) from error

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def read(self, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Return tensors by their keys, one at a time.

        Raises:
            ValueError: If one cannot be read.
        """
        for key in keys:
            try:
                # A copy: the file's own memory is mapped and unaligned.
                tensor = self._file.get_tensor(key).clone()
            except Exception as error:
                raise damaged(self.path, error) from error
            yield key, tensor


def write_tensors(
    file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, with one tensor's bytes in memory at a time."""
    header: Facts = {"__metadata__": dict(metadata)}
    # The widest entries first, as the format asks for: so all of them are aligned.
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    start = 0
    for key in order:
        tensor = tensors[key]
        end = start + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": _name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    write_header(file, header)
    for key in order:
        _, data = _entry(tensors[key])
        file.write(data)


def write_header(file: IO[bytes], header: Facts) -> None:
    """Write what precedes the data of a safetensors file."""
    opening = json.dumps(header).encode()
    opening += b" " * (-len(opening) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(opening)) + opening)


def append(data: IO[bytes], header: Facts, key: str, tensor: Tensor) -> None:
    """Append a tensor's bytes, padded: readers want aligned data, and no gaps."""
    entry, content = _entry(tensor)
    start = data.tell()
    data.write(content)
    header[key] = {**entry, "data_offsets": [start, data.tell()]}
    if gap := -data.tell() % _ALIGNMENT:
        offsets = [data.tell(), data.tell() + gap]
        header[f"padding/{start}"] = {"dtype": "U8", "shape": [gap], "data_offsets": offsets}
        data.write(bytes(gap))


def _entry(tensor: Tensor) -> tuple[Facts, memoryview]:
    """Return what safetensors' header says of a tensor, and its bytes."""
    blob = import_safetensors().save({"tensor": tensor})
    (length,) = struct.unpack("<Q", blob[:8])
    entry: Facts = json.loads(blob[8 : 8 + length])["tensor"]
    return entry, memoryview(blob)[8 + length :]


@lru_cache(maxsize=32)
def _name(dtype: torch.dtype) -> str:
    entry, _ = _entry(torch.empty(0, dtype=dtype, device="cpu"))
    return str(entry["dtype"])
