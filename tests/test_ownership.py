"""State has one owner: what writes it stands in one file, and integrations use the handle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Attributes with one writer each, and the file it stands in.
OWNERS = {
    "bound": "boosters/adapter.py",
    "resting": "boosters/adapter.py",
    "held": "boosters/carry.py",
    "taken": "boosters/carry.py",
    "residuals": "weights/merge.py",
    "progress": "schedule/course.py",
    "draw": "schedule/course.py",
    "attached": "boosting/handle.py",
    "begun": "ledger/archive.py",
}
_MUTATORS = {"append", "clear", "pop", "setdefault", "update"}


def written(tree: ast.AST) -> Iterator[str]:
    """Attributes that are assigned, deleted, or changed by a method of dictionaries and lists."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.attr
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            if isinstance(node.value, ast.Attribute):
                yield node.value.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in _MUTATORS and isinstance(node.func.value, ast.Attribute):
                yield node.func.value.attr


def private_reads(tree: ast.AST) -> Iterator[str]:
    """Private attributes read of anything but ``self``, ``cls`` and modules of this file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            if node.attr.startswith("__") or _is_own(node.value):
                continue
            yield ast.unparse(node)


def _is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def ours() -> set[str]:
    """Every private attribute that an object of the core has."""
    names = set()
    for file in (ROOT / "torch_xgb").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            if isinstance(node, ast.Attribute) and _is_own(node.value):
                names.add(node.attr)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize(("attribute", "owner"), OWNERS.items())
def test_one_file_writes(attribute: str, owner: str) -> None:
    writers = {
        file.relative_to(ROOT / "torch_xgb").as_posix()
        for file in (ROOT / "torch_xgb").rglob("*.py")
        if attribute in written(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert writers == {owner}


def test_integrations_read_nothing_private_of_ours() -> None:
    private = ours() - {"_parameters", "_modules"}  # torch's own
    found = [
        f"{file.relative_to(ROOT)}: {read}"
        for file in (ROOT / "integrations").rglob("*.py")
        for read in private_reads(ast.parse(file.read_text(encoding="utf-8")))
        if read.rpartition(".")[2] in private
    ]
    assert found == []


def test_the_searches_find_what_they_are_for() -> None:
    writes = "a.bound = 1\ndel b.held[c]\nd.residuals.pop(e)\nf.begun: int = 2\ng.draw"
    assert sorted(written(ast.parse(writes))) == ["begun", "bound", "held", "residuals"]
    reads = "self._a\nb._c.d\ne.f._g()\nh.__i__\nj.k"
    assert sorted(private_reads(ast.parse(reads))) == ["b._c", "e.f._g"]
