"""Files and functions stay small enough to be read: past these sizes a noun is missing."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = [f for top in ("torch_xgb", "integrations") for f in sorted((ROOT / top).rglob("*.py"))]
OPTIMIZER = ROOT / "torch_xgb" / "optimizer.py"  # its docstring alone has a hundred lines


def bodies() -> dict[str, int]:
    """The lines of every function's body, its docstring left out."""
    found = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                size = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                found[f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"] = size
    return found


def test_files() -> None:
    sizes = {str(f.relative_to(ROOT)): f.read_text("utf-8").count("\n") for f in FILES}
    limits = {str(OPTIMIZER.relative_to(ROOT)): 400}
    assert {n: size for n, size in sizes.items() if size > limits.get(n, 320)} == {}


def test_functions() -> None:
    sizes = bodies()
    assert {name: size for name, size in sizes.items() if size > 40} == {}
    assert sum(size < 15 for size in sizes.values()) >= 0.9 * len(sizes)


def test_the_optimizer_imports_few_of_ours() -> None:
    tree = ast.parse(OPTIMIZER.read_text(encoding="utf-8"))
    ours = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    assert len({name for name in ours if name.startswith("torch_xgb.")}) <= 8
