"""Imports go one way: the core knows torch alone, and each of its modules only those before it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "torch_xgb"

# Each module of the core, in order, and the modules of the core it may import.
ALLOWED: dict[str, set[str]] = {
    "lowrank": set(),
    "blocks": set(),
    "heads": set(),
    "settings": set(),
    "knots": set(),
    "samplers": set(),
    "base": set(),
    "report": set(),
    "spectrum": set(),
    "store": set(),
    "places": set(),
    "averaging": set(),
    "gradients": {"places", "settings"},
    "schedule": {"knots", "lowrank", "samplers", "settings"},
    "rates": {"schedule", "settings"},
    "targets": {"blocks", "places"},
    "fingerprints": {"places", "targets"},
    "agreement": {"fingerprints", "places"},
    "forms": {"lowrank", "targets"},
    "adapter": {"forms", "targets"},
    "directions": {"adapter"},
    "slots": {"targets"},
    "booster": {"adapter", "forms", "lowrank", "slots", "targets"},
    "admission": {"places", "slots"},
    "sharing": {"averaging", "booster", "places"},
    "merge": {"lowrank", "samplers", "targets"},
    "carry": {"adapter", "merge"},
    "fold": {"adapter", "lowrank", "merge", "places", "targets"},
    "resume": {"adapter", "fingerprints", "fold", "merge", "places", "targets"},
    "footprint": set(),
    "shapes": set(),
    "checkpointing": {"blocks", "settings", "targets"},
    "configuration": set(),
    "forecast": {
        "booster",
        "checkpointing",
        "footprint",
        "forms",
        "settings",
        "shapes",
        "targets",
    },
    "record": {"forms", "report", "targets"},
    "scores": {"store"},
    "history": {"record", "store"},
    "replay": {"fingerprints", "merge", "record", "slots", "targets"},
    "export": {"lowrank", "record", "spectrum", "store"},
    "plot": {"record", "spectrum"},
}
ALLOWED["ledger"] = {
    "export",
    "fingerprints",
    "fold",
    "history",
    "plot",
    "record",
    "replay",
    "scores",
    "store",
}
ALLOWED["recorder"] = {"forms", "ledger", "record", "report", "targets"}
ALLOWED["optimizer"] = set(ALLOWED)
ALLOWED["__init__"] = set(ALLOWED)
ALLOWED["__main__"] = {"forecast", "ledger", "merge", "shapes"}
OUTSIDE = sys.stdlib_module_names | {"torch"}
# What an extra brings, imported inside the functions that need it.
EXTRAS = {
    "ledger": {"matplotlib"},
    "plot": {"matplotlib"},
    "shapes": {"transformers"},
    "store": {"safetensors"},
}
FRAMEWORKS = {"accelerate", "datasets", "deepspeed", "integrations", "peft", "transformers"}
FRAMEWORKS |= set().union(*EXTRAS.values())


def imported_names(source: str) -> Iterator[str]:
    """The full dotted name of everything a module of the core imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["torch_xgb" if node.level else "", node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wrong_arrows(module: str, source: str) -> list[str]:
    """What a module of the core imports and must not."""
    return [name for name in imported_names(source) if not _is_allowed(module, name)]


def _is_allowed(module: str, name: str) -> bool:
    top, *rest = name.split(".")
    if top == "torch_xgb":
        return bool(rest) and rest[0] in ALLOWED[module]
    return top in OUTSIDE | EXTRAS.get(module, set())


def test_table_lists_every_module() -> None:
    modules = {path.relative_to(CORE).with_suffix("").as_posix() for path in CORE.rglob("*.py")}
    assert modules == set(ALLOWED)


def test_table_goes_one_way() -> None:
    order = list(ALLOWED)
    for position, (module, allowed) in enumerate(ALLOWED.items()):
        assert allowed <= set(order[:position]), module


@pytest.mark.parametrize("module", ALLOWED)
def test_module_imports_only_what_it_may(module: str) -> None:
    source = (CORE / f"{module}.py").read_text(encoding="utf-8")
    assert wrong_arrows(module, source) == []


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import math, torch.nn", []),
        ("from torch import nn", []),
        ("from torch_xgb.lowrank import delta", []),
        ("from .lowrank import delta", []),
        ("from . import lowrank", []),
        ("from torch_xgb import lowrank, merge", ["torch_xgb.merge"]),
        ("from .optimizer import x", ["torch_xgb.optimizer.x"]),
        ("import torch_xgb", ["torch_xgb"]),
        ("from torch_xgb import __version__", ["torch_xgb.__version__"]),
        ("from torch_xgb.integrations import accelerate", ["torch_xgb.integrations.accelerate"]),
        ("from ..integrations import accelerate", ["torch_xgb.integrations.accelerate"]),
        ("import integrations.accelerate", ["integrations.accelerate"]),
        ("import torchvision", ["torchvision"]),
        ("def f():\n    import transformers", ["transformers"]),
        ("if TYPE_CHECKING:\n    from peft import PeftModel", ["peft.PeftModel"]),
    ],
)
def test_wrong_arrows_are_found(source: str, wrong: list[str]) -> None:
    assert wrong_arrows("booster", source) == wrong


def test_import_loads_no_framework() -> None:
    names = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, torch_xgb.ledger; print(*sorted({names}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "torch_xgb" in loaded
    assert not loaded & FRAMEWORKS
