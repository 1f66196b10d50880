"""Tutorials: scripts in cells, run from top to bottom and written down with what they printed.

A tutorial is a Python file of ``examples/tutorials``. Its docstring is a title, the command that
runs it and an introduction; ``# %% [markdown]`` begins a cell of text in comments, ``# %%`` one of
code. If its command is torchrun's, two processes run it, and the output is the first one's.

    python -m docs.tools.tutorials [NAME …]    # run them and print the pages
"""

from __future__ import annotations

import ast
import contextlib
import io
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "tutorials"
_CELL = re.compile(r"^# %%(.*)$", re.MULTILINE)


@dataclass
class Cell:
    """A piece of a script.

    Attributes:
        text: Whether it is Markdown, and not code.
        source: Its lines; of Markdown without their comment signs.
        line: Of the script, where it begins.
        printed: What it printed.
        pictures: Names of the pictures that it made.
    """

    text: bool
    source: str
    line: int
    printed: str = ""
    pictures: list[str] = field(default_factory=list)


@dataclass
class Tutorial:
    """A script, its cells, and after a run what came of them.

    Attributes:
        path: Of the script.
        title: The first line of its docstring.
        command: That runs it.
        introduction: The rest of the docstring.
        cells: In order.
        pictures: Every picture's bytes by its name.
        seconds: Of processor time that the run took.
    """

    path: Path
    title: str
    command: str
    introduction: str
    cells: list[Cell]
    pictures: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The page's name."""
        return self.path.stem.replace("_", "-")

    @property
    def processes(self) -> int:
        """How many its command starts."""
        return 2 if "--nproc_per_node 2" in self.command else 1

    def page(self) -> str:
        """Write it down in Markdown."""
        lines = [f"# {self.title.rstrip('.')}", "", self.introduction, ""]
        lines += ["```console", f"$ {self.command}", "```", ""]
        for cell in self.cells:
            lines += [cell.source, ""] if cell.text else ["```python", cell.source, "```", ""]
            if cell.printed.strip():
                lines += ['```text title="prints"', cell.printed.rstrip(), "```", ""]
            lines += [f"![What this cell draws]({name})\n" for name in cell.pictures]
        where = self.path.relative_to(ROOT)
        lines += ["---", "", f"The script is `{where}`; this page was written by running it."]
        return "\n".join(lines) + "\n"


def found() -> list[Tutorial]:
    """Read every tutorial: each script with cells in the folder."""
    scripts = [
        path for path in sorted(FOLDER.glob("*.py")) if _CELL.search(path.read_text("utf-8"))
    ]
    return [read(path) for path in scripts]


def read(path: Path) -> Tutorial:
    """Take a script apart."""
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    title, _, rest = docstring.partition("\n")
    command = re.search(r"^    (.+)$", rest, flags=re.MULTILINE)
    if command is None:
        raise ValueError(f"{path}: the docstring has no indented command")
    introduction = rest.replace(command[0], "", 1).strip()
    return Tutorial(path, title, command[1], introduction, list(_cells(source)))


def _cells(source: str) -> Iterator[Cell]:
    marks = list(_CELL.finditer(source))
    ends = [mark.start() for mark in marks[1:]] + [len(source)]
    for mark, end in zip(marks, ends, strict=True):
        body = source[mark.end() : end].strip("\n")
        line = source.count("\n", 0, source.index(body, mark.end()) if body else mark.end()) + 1
        text = mark[1].strip() == "[markdown]"
        if text:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        yield Cell(text, body, line)


def run(tutorials: Iterable[Tutorial], workers: int = 2) -> list[Tutorial]:
    """Run them, each in a process of its own and an empty folder.

    Raises:
        RuntimeError: If one fails, with what it said.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["docs.tools.preloaded"])
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:
        return list(pool.map(_run, tutorials))


def _run(tutorial: Tutorial) -> Tutorial:
    began = _processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if tutorial.processes == 2:
            _run_in_two(tutorial)
        else:
            _run_cells(tutorial)
        os.chdir(ROOT)
    tutorial.seconds = _processor_seconds() - began
    return tutorial


def _run_in_two(tutorial: Tutorial) -> None:
    """Become two processes, with the environment that torchrun would give them, and run both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    second = os.fork()
    rank = "0" if second else "1"
    os.environ |= {**both, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
    try:
        _run_cells(tutorial)
    except RuntimeError as error:
        if second:
            os.kill(second, signal.SIGKILL)  # it may wait for the first one
            raise
        print(error, file=sys.stderr)
        os._exit(1)
    if not second:
        os._exit(0)
    if os.waitpid(second, 0)[1]:
        raise RuntimeError(f"{tutorial.path}: the second process fails")


def _processor_seconds() -> float:
    return sum(os.times()[:4])


def _run_cells(tutorial: Tutorial) -> None:
    """Run the cells in one namespace, as a notebook does."""
    main = sys.modules["__main__"]
    sys.path.insert(0, str(tutorial.path.parent))
    sys.argv = [str(tutorial.path)]
    main.__dict__.update({"__name__": "__main__", "__file__": str(tutorial.path)})
    for cell in tutorial.cells:
        if cell.text:
            continue
        out, err = io.StringIO(), io.StringIO()
        code = compile("\n" * (cell.line - 1) + cell.source, str(tutorial.path), "exec")
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                exec(code, main.__dict__)
        except BaseException as error:
            said = "".join(traceback.format_exception(error))
            raise RuntimeError(f"{tutorial.path} fails:\n{out.getvalue()}\n{said}") from None
        cell.printed = out.getvalue()
        for picture in sorted(Path.cwd().rglob("*.png")):
            name = f"{tutorial.name}-{picture.stem}.png"
            if name not in tutorial.pictures:
                tutorial.pictures[name] = picture.read_bytes()
                cell.pictures.append(name)


if __name__ == "__main__":
    wanted = [t for t in found() if not sys.argv[1:] or t.path.stem in sys.argv[1:]]
    began = time.perf_counter()
    for done in run(wanted):
        print(done.page())
        print(f"{done.name}: {done.seconds:.1f} s", file=sys.stderr)
    print(f"in all {time.perf_counter() - began:.1f} s", file=sys.stderr)
