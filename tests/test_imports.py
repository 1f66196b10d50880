"""Imports go one way: the core knows torch alone, and each of its rooms only those below it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "torch_xgb"

# Each room of the core, from the lowest floor up, and the rooms it may import. A file that stands
# beside the rooms counts as one.
ALLOWED: dict[str, set[str]] = {
    "callers": set(),
    "checks": set(),
    "processes": set(),
    "settings": set(),
    "formulas": set(),
    "weights": {"checks", "formulas", "processes"},
    "schedule": {"checks", "formulas", "processes", "settings"},
    "targets": {"settings", "weights"},
    "base": {"checks", "processes", "settings", "weights"},
    "boosters": {"callers", "checks", "formulas", "targets", "weights"},
    "saving": {
        "boosters",
        "callers",
        "formulas",
        "processes",
        "schedule",
        "settings",
        "weights",
    },
    "parallel": {"boosters", "processes", "targets", "weights"},
    "ledger": {"boosters", "checks", "formulas", "processes", "settings", "targets", "weights"},
    "forecast": {"boosters", "checks", "schedule", "settings", "targets", "weights"},
    "boosting": {
        "base",
        "boosters",
        "callers",
        "ledger",
        "parallel",
        "saving",
        "schedule",
        "settings",
        "targets",
        "weights",
    },
    "optimizer": {"base", "boosters", "boosting", "ledger", "schedule", "settings"},
    "__init__": {"boosting", "forecast", "ledger", "optimizer", "schedule"},
    "command": {"forecast", "ledger", "settings"},
    "__main__": {"command"},
}
OUTSIDE = sys.stdlib_module_names | {"torch"}
# What an extra brings, imported inside the functions that need it.
EXTRAS = {
    "command": {"argcomplete", "yaml"},
    "forecast": {"transformers"},
    "ledger": {"matplotlib", "safetensors"},
}
# Who calls what stands above the core, inside the functions that need it.
CALLS_INTEGRATIONS = {"command"}
FRAMEWORKS = {"accelerate", "datasets", "deepspeed", "integrations", "peft", "transformers"}
FRAMEWORKS |= set().union(*EXTRAS.values())
FILES = sorted(CORE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The folder a file of the core stands in, or its own name beside the folders."""
    return file.relative_to(CORE).with_suffix("").parts[0]


def imported_names(source: str) -> Iterator[str]:
    """The full dotted name of everything a module of the core imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["torch_xgb" if node.level else "", node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_arrows(room: str, source: str) -> list[str]:
    """What a module of a room imports and must not."""
    return [name for name in imported_names(source) if not _is_allowed(room, name)]


def _is_allowed(room: str, name: str) -> bool:
    top, *rest = name.split(".")
    if top == "torch_xgb" and rest[:1] == ["integrations"]:
        return room in CALLS_INTEGRATIONS
    if top == "torch_xgb":
        return bool(rest) and rest[0] in ALLOWED[room] | {room}
    return top in OUTSIDE | EXTRAS.get(room, set())


def test_table_lists_every_room() -> None:
    assert {room_of(file) for file in FILES} == set(ALLOWED)


def test_table_goes_one_way() -> None:
    order = list(ALLOWED)
    for position, (room, allowed) in enumerate(ALLOWED.items()):
        assert allowed <= set(order[:position]), room


def test_table_has_no_arrow_that_nobody_needs() -> None:
    used: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for file in FILES:
        names = imported_names(file.read_text(encoding="utf-8"))
        used[room_of(file)] |= {n.split(".")[1] for n in names if n.startswith("torch_xgb.")}
        used[room_of(file)].discard("integrations")
    assert {room: rooms - {room} for room, rooms in used.items()} == ALLOWED


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CORE)))
def test_file_imports_only_what_its_room_may(file: Path) -> None:
    assert wrong_arrows(room_of(file), file.read_text(encoding="utf-8")) == []


def test_files_of_a_room_go_one_way() -> None:
    graph = {}
    for file in FILES:
        module = ".".join(["torch_xgb", *file.relative_to(CORE).with_suffix("").parts])
        names = {name.rpartition(".")[0] for name in imported_names(file.read_text("utf-8"))}
        graph[module] = {name for name in names if name.startswith("torch_xgb.")}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_every_room_says_what_it_is() -> None:
    for door in (CORE / room / "__init__.py" for room in ALLOWED if (CORE / room).is_dir()):
        tree = ast.parse(door.read_text(encoding="utf-8"))
        text = ast.get_docstring(tree) or ""
        rest = [node for node in tree.body[1:] if not isinstance(node, ast.ImportFrom)]
        assert [ast.unparse(node).split(" ")[0] for node in rest] in ([], ["__all__"]), door
        assert "May import" in text and "One more" in text, door
        for file in door.parent.glob("[a-z]*.py"):
            assert f"``{file.stem}``" in text, f"{door} does not name {file.stem}"


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import math, torch.nn", []),
        ("from torch import nn", []),
        ("from torch_xgb.formulas.lowrank import delta", []),
        ("from torch_xgb.boosters.pair import Pair", []),
        ("from torch_xgb import formulas, saving", ["torch_xgb.saving"]),
        ("from torch_xgb.optimizer import x", ["torch_xgb.optimizer.x"]),
        ("import torch_xgb", ["torch_xgb"]),
        ("from torch_xgb import __version__", ["torch_xgb.__version__"]),
        ("from torch_xgb.integrations import accelerate", ["torch_xgb.integrations.accelerate"]),
        ("import integrations.accelerate", ["integrations.accelerate"]),
        ("import torchvision", ["torchvision"]),
        ("def f():\n    import transformers", ["transformers"]),
        ("if TYPE_CHECKING:\n    from peft import PeftModel", ["peft.PeftModel"]),
    ],
)
def test_wrong_arrows_are_found(source: str, wrong: list[str]) -> None:
    assert wrong_arrows("boosters", source) == wrong


def test_import_loads_no_framework() -> None:
    names = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, torch_xgb.ledger.chain; print(*sorted({names}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "torch_xgb" in loaded
    assert not loaded & FRAMEWORKS
