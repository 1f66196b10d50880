"""Files of a ledger: read within bounds, and written whole or not at all.

Whatever is wrong with a file is said by a ValueError that names it, so that nobody meets the
tracebacks of the libraries that read it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

__all__ = [
    "damaged",
    "exists",
    "read_json",
    "reading",
    "replacing",
    "replacing_all",
    "require_file",
    "sweep",
    "writing",
]

_LIMIT = 1 << 27  # bytes of a JSON document; a header of 100,000 weights has some 20 MB
_PART = ".part"


def damaged(place: object, what: object) -> ValueError:
    """Return the error for a part of a ledger that cannot be used."""
    return ValueError(
        f"{str(place)!r} is no part of a ledger, or damaged: {what}. Nothing was changed. Restore "
        "it from a copy; of a damaged booster t, boosters 0 to t − 1 can still be used (to=t − 1)"
    )


@contextmanager
def reading(place: object) -> Iterator[None]:
    """Say of which file it is that a value in it is wrong."""
    try:
        yield
    except RecursionError as error:
        raise damaged(place, "it is nested too deeply") from error
    except (ValueError, OSError) as error:
        raise damaged(place, error) from error


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Say what cannot be written and what to do, where the system only says why."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{error.strerror or error}: {what}") from error


def exists(path: Path) -> bool:
    """Tell whether there is anything of this name, a link to nothing included."""
    return os.path.lexists(path)


def require_file(path: Path) -> int:
    """Return the size of a file.

    Raises:
        ValueError: If it is none: a pipe or a device may keep who reads it waiting, or never end.
    """
    with reading(path):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is a folder, a pipe or a device and not a file")
    return found.st_size


def read_json(path: Path) -> object:
    """Return what a JSON file holds.

    Raises:
        ValueError: If it holds none.
    """
    size = require_file(path)
    with reading(path):
        if size > _LIMIT:
            raise ValueError(f"it has {size} bytes, and no more than {_LIMIT} are read")
        with path.open("rb") as file:
            return json.loads(file.read(size).decode("utf-8"))


@contextmanager
def replacing(path: Path, before: Callable[[], object] = lambda: None) -> Iterator[IO[bytes]]:
    """Give a file to write, and move it into place once it is complete and on the disk.

    What stood there is replaced, and a link there is not followed.

    Args:
        path: The file's name.
        before: Called just before it is moved, with all written.
    """
    with replacing_all([path], before) as (file,):
        yield file


@contextmanager
def replacing_all(
    paths: Sequence[Path], before: Callable[[], object] = lambda: None
) -> Iterator[Sequence[IO[bytes]]]:
    """Do so with several files, none of which is moved before all are complete."""
    parts = [path.with_name(f"{path.name}.{secrets.token_hex(8)}{_PART}") for path in paths]
    try:
        with ExitStack() as opened:
            files = [opened.enter_context(part.open("xb")) for part in parts]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        before()
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    except BaseException:
        for part in parts:
            try:
                part.unlink(missing_ok=True)
            except OSError:  # the folder is gone or cannot be written, as is being said
                pass
        raise


def sweep(folder: Path, names: str) -> None:
    """Remove what writers that were killed have left in a folder.

    Args:
        folder: Where, and nobody else is writing there.
        names: An expression for the names they were writing.
    """
    ours = re.compile(rf"(?:{names})\.[0-9a-f]{{16}}{re.escape(_PART)}")
    for entry in folder.iterdir():
        if ours.fullmatch(entry.name):
            entry.unlink(missing_ok=True)
