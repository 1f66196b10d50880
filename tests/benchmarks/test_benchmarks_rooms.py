"""Rooms of the benchmarks: imports go one way, and nobody but the user imports a command."""

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "benchmarks"
# Each may import those before it; the last is a command in parts.
ROOMS = ("subjects", "methods", "measures", "runs", "tables", "reliability")
MODULES = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.py"))
COMMANDS = [name for name in MODULES if "/" not in name and name != "__init__"]


def allowed(module: str) -> set[str]:
    """The rooms that a module may import: a command every one, a room its own and earlier ones."""
    room, inside, _ = module.partition("/")
    return set(ROOMS[: ROOMS.index(room) + 1] if inside else ROOMS)


def imported(module: str, source: str) -> Iterator[str]:
    """The full dotted name of everything a module imports, at any depth of its code."""
    package = ["benchmarks", *module.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_arrows(module: str, source: str) -> list[str]:
    """What a module imports of the benchmarks and must not."""
    names = [name.split(".") for name in imported(module, source)]
    ours = [parts for parts in names if parts[0] == "benchmarks"]
    may = allowed(module)
    wrong = [parts for parts in ours if len(parts) < 2 or parts[1] not in may]
    strangers = [p for p in names if p[0] == "torch_xgb"] if module.startswith("subjects/") else []
    return [".".join(parts) for parts in (*wrong, *strangers)]


def test_every_module_is_a_command_or_in_a_room() -> None:
    assert {name.partition("/")[0] for name in MODULES if "/" in name} == set(ROOMS)
    for name in COMMANDS:
        source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
        assert '__name__ == "__main__"' in source, name


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    source = (ROOT / f"{module}.py").read_text(encoding="utf-8")
    assert wrong_arrows(module, source) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("measures/speed", "from benchmarks.methods.contenders import boosted", []),
        ("measures/speed", "from benchmarks.measures import memory", []),
        ("measures/speed", "from .memory import peak_memory", []),
        ("measures/speed", "from ..runs import journal", ["benchmarks.runs.journal"]),
        ("measures/speed", "import benchmarks.tables.table", ["benchmarks.tables.table"]),
        ("measures/speed", "def f():\n    from benchmarks import runs", ["benchmarks.runs"]),
        ("tables/report", "from benchmarks import glue", ["benchmarks.glue"]),
        ("tables/report", "import benchmarks", ["benchmarks"]),
        ("subjects/tasks", "from torch_xgb import plan", ["torch_xgb.plan"]),
        ("speed", "from benchmarks.tables.speed import plot", []),
        ("speed", "from benchmarks.cost import Size", ["benchmarks.cost.Size"]),
    ],
)
def test_wrong_arrows_are_found(module: str, source: str, wrong: list[str]) -> None:
    assert wrong_arrows(module, source) == wrong


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")
