"""A text classification task that every Python carries: the docstrings of its own library.

The source of the running interpreter's standard library is parsed, never imported. A docstring's
topic is the chapter of the library's documentation that describes its module. Nothing is
downloaded and no text is kept in this repository; another Python version gives other counts.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.subjects.classification import Row, Task, make_task

# Chapters of https://docs.python.org/3/library/ -> the pure-Python modules they describe.
CHAPTERS = {
    "data types": "datetime _pydatetime _strptime zoneinfo calendar collections _collections_abc "
    "heapq bisect weakref _weakrefset types copy pprint reprlib enum graphlib",
    "numbers": "numbers fractions decimal _pydecimal random statistics",
    "files": "pathlib posixpath ntpath genericpath fileinput stat filecmp tempfile glob fnmatch "
    "linecache shutil",
    "archives": "gzip bz2 lzma zipfile tarfile _compression compression",
    "operating system": "os io _pyio argparse optparse getopt logging getpass curses platform "
    "ctypes",
    "concurrency": "threading _threading_local multiprocessing concurrent subprocess sched queue",
    "networking": "asyncio socket ssl selectors signal",
    "internet data": "email json mailbox mimetypes base64 quopri",
    "markup": "html xml _markupbase",
    "internet protocols": "webbrowser wsgiref urllib http ftplib poplib imaplib smtplib uuid "
    "socketserver xmlrpc ipaddress",
}
_MODULES = {m.strip("_") for names in CHAPTERS.values() for m in names.split()}
_NAMES = re.compile(rf"\b(?:{'|'.join(sorted(_MODULES, key=len, reverse=True))})\b", re.IGNORECASE)
_MINIMUM_WORDS = 6


def docstring_task(dev_share: float = 0.15, root: Path | None = None) -> Task:
    """Read the standard library's docstrings, labelled by the chapter that describes them.

    Interactive sessions are cut off, the names of all modules in the table are replaced by the
    word "module" (a name would give its chapter away), short texts are dropped, repeated ones are
    kept once and those under two chapters not at all. A text's hash decides its part of the split.

    Args:
        dev_share: The share of texts held out.
        root: The library's folder; the running interpreter's by default.

    Returns:
        The task; its ``notes`` count what was read and what was dropped.

    Raises:
        ValueError: If the interpreter came without the source of its library.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    chapters: dict[str, set[str]] = {}
    texts: dict[str, str] = {}
    read = short = 0
    for chapter, docstring in documented(root):
        read += 1
        text = _clean(docstring)
        if len(text.split()) < _MINIMUM_WORDS:
            short += 1
            continue
        key = re.sub(r"[\W\d_]+", " ", text).lower().strip()
        texts.setdefault(key, text)
        chapters.setdefault(key, set()).add(chapter)
    if not texts:
        raise ValueError(
            f"found no docstrings under {root}: this Python came without its library's source; "
            "give your own data with --train and --dev"
        )
    train, dev = [], []
    unambiguous = sorted(key for key, owners in chapters.items() if len(owners) == 1)
    for key in unambiguous:
        row = Row(texts[key], None, next(iter(chapters[key])))
        (dev if _fraction(key) < dev_share else train).append(row)
    notes = (
        f"{read} docstrings of {root}: {short} under {_MINIMUM_WORDS} words, "
        f"{read - short - len(texts)} repeated, {len(texts) - len(unambiguous)} in two chapters"
    )
    return make_task("stdlib docstrings", train, dev, notes)


def documented(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (chapter, docstring) for every module, class and function below ``root``."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for chapter, names in CHAPTERS.items():
        for name in names.split():
            folder = root / name
            files = sorted(folder.rglob("*.py")) if folder.is_dir() else [root / f"{name}.py"]
            for file in files:
                if not file.is_file() or "test" in file.relative_to(root).parts:
                    continue
                for node in ast.walk(ast.parse(file.read_bytes())):
                    docstring = ast.get_docstring(node) if isinstance(node, nodes) else None
                    if docstring:
                        yield chapter, docstring


def _clean(docstring: str) -> str:
    """Return the prose of a docstring on one line, without sessions and module names."""
    return " ".join(_NAMES.sub("module", docstring.split(">>>")[0]).split())


def _fraction(key: str) -> float:
    """Map a text to [0, 1), the same on every machine and in every Python."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
