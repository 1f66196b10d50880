"""Whose a ledger's folder is: one run's at a time.

A lock of the operating system on ``owner.lock`` ends with its process, however that ends. Where
there are no such locks, the process that is named in the file is looked for. Before everything that
is written the owner makes sure that it still is.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import socket
import stat
import sys
import weakref
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch_xgb.ledger.facts import Facts

__all__ = ["Owner"]

_NAME = "owner.lock"
_fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None  # Windows has none
_SIZE = 1 << 12  # bytes of the file that are read
_owners: weakref.WeakValueDictionary[str, Owner] = weakref.WeakValueDictionary()  # by folder


class Owner:
    """Who may write to a folder; copies of it own nothing.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: str | None = None
        self._lock: _Lock | None = None
        self._release: weakref.finalize[..., Any] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Own nothing elsewhere."""
        return {"folder": self.folder, "run": None, "_lock": None, "_release": None}

    @property
    def holds(self) -> bool:
        """Whether the folder is this one's, and not of the process that this one was forked off."""
        return self._lock is not None and self._lock.process == os.getpid()

    def claim(self, run: str) -> None:
        """Become the owner, or make sure of still being it.

        Of two optimizers of a process that go on with the same run, the later one takes over.

        Args:
            run: The name of the run that is to be written.

        Raises:
            RuntimeError: If the folder is another run's.
            OSError: If it cannot be written to.
        """
        if self.holds and self._lock is not None and self._lock.stands():
            self.run = run
            return
        self.release()
        key = os.path.realpath(self.folder)
        if (other := _living(key)) is not None:
            if other.run != run:
                raise RuntimeError(_taken(self.folder, "another optimizer of this process"))
            other.release()
        self._lock, self.run = _Lock.take(self.folder), run
        self._release = weakref.finalize(self, self._lock.give_back)
        _owners[key] = self

    def release(self) -> None:
        """Let others have it."""
        if self._release is not None:
            self._release()
        self._lock = self._release = None


class _Lock:
    """A lock on ``owner.lock``, whose content says who has it."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle, self.process = path, handle, os.getpid()
        me: Facts = {"pid": self.process, "host": socket.gethostname()}
        me |= {"inode": os.fstat(handle).st_ino, "token": secrets.token_hex(8)}
        self.content = json.dumps(me).encode()

    @classmethod
    def take(cls, folder: Path) -> _Lock:
        path = folder / _NAME
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
            lock = cls(path, handle)
            try:
                _require_ours(path, handle)
                _require_free(folder, handle)
                # Between opening and locking it, who had it may have removed it.
                if lock._is_the_file():
                    lock._sign()
                    return lock
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def stands(self) -> bool:
        """Tell whether the file is still there and says the same."""
        return self._is_the_file() and _read(self.handle) == self.content

    def give_back(self) -> None:
        """Remove the file, if it is still this one's."""
        if self.process != os.getpid():  # the process that this one was forked off goes on
            return
        try:
            if self.stands():
                self.path.unlink()
        except OSError:  # on a disk that is gone or cannot be written; the lock ends all the same
            pass
        os.close(self.handle)

    def _sign(self) -> None:
        os.ftruncate(self.handle, 0)
        os.lseek(self.handle, 0, os.SEEK_SET)
        os.write(self.handle, self.content)

    def _is_the_file(self) -> bool:
        try:
            there = os.stat(self.path)
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self.handle))


def _living(key: str) -> Owner | None:
    """Return this process's owner of a folder, if it has one that is still in use."""
    if (found := _owners.get(key)) is None or not found.holds:
        return None
    del found
    gc.collect()  # an optimizer and its model refer to each other
    found = _owners.get(key)
    return found if found is not None and found.holds else None


def _require_free(folder: Path, handle: int) -> None:
    """Lock an open file, or find out from what stands in it whether its owner lives.

    Raises:
        RuntimeError: If he does.
    """
    locked = _system_lock(handle)
    if locked:
        return
    who = _parsed(_read(handle))
    if locked is None and not _lives(who, os.fstat(handle).st_ino):
        return
    raise RuntimeError(_taken(folder, f"process {who.get('pid')} on {who.get('host')}"))


def _require_ours(path: Path, handle: int) -> None:
    """Refuse a file that somebody else gave this name."""
    regular = stat.S_ISREG(os.fstat(handle).st_mode)
    if not regular or ((content := _read(handle)) and "token" not in _parsed(content)):
        raise RuntimeError(
            f"{str(path)!r} was not written by torch_xgb, which keeps under this name whose the "
            "ledger is: move it elsewhere, or choose another path for record="
        )


def _system_lock(handle: int) -> bool | None:
    """Return whether the system gave a lock, or None where it has none to give."""
    if _fcntl is None:
        return None
    try:
        _fcntl.lockf(handle, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _lives(who: Facts, inode: int) -> bool:
    """Tell whether the owner named in a file lives; of another host's it is not known."""
    pid = who.get("pid")
    if who.get("inode") != inode or not isinstance(pid, int):  # nobody's, or a copied folder's
        return False
    return who.get("host") != socket.gethostname() or (pid != os.getpid() and _runs(pid))


def _runs(pid: int) -> bool:
    if sys.platform == "win32":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)
        return bool(handle and ctypes.windll.kernel32.CloseHandle(handle))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _read(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, _SIZE)


def _parsed(content: bytes) -> Facts:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _taken(folder: Path, who: str) -> str:
    return (
        f"the ledger {str(folder)!r} belongs to a run that goes on in {who}, and each run needs a "
        "ledger of its own: choose another path for record=, or end that run (finalize(), or its "
        f"process). If nobody writes there any more, delete {str(folder / _NAME)!r}"
    )
