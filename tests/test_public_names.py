"""What may be imported and run from outside: the names that other people's programs hold."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

import torch_xgb
from torch_xgb.command.main import main

ROOT = Path(__file__).resolve().parents[1]

LIBRARY = [
    "BoostedLowRankOptimizer",
    "Chain",
    "Decay",
    "LossPlateau",
    "MergeReport",
    "Weighted",
    "__version__",
    "plan",
    "release",
]
INTEGRATIONS = {
    "accelerate": ["checkpoint"],
    "folders": ["quiet", "require_free", "rolled_back"],
    "deepspeed": ["Partition", "boosted"],
    "lightning": ["plain"],
    "trainers": ["boost_trainer", "build_optimizer"],
    "finetune.recipe": ["PRECISIONS", "Recipe", "TASKS"],
    "finetune.run": ["Outcome", "finetune"],
    "transformers": ["BoostedFactory", "BoostingCallback", "spare_input_gradients"],
}
AXOLOTL = ["BoostedArgs", "BoostedPlugin"]
COMMANDS = [
    "ablation",
    "causal",
    "ceiling",
    "compiled",
    "cost",
    "distributed",
    "dynamics",
    "efficiency",
    "family",
    "frontier",
    "glue",
    "merge_cost",
    "merge_precision",
    "on_gpu",
    "papers_cards",
    "plan_check",
    "quantised",
    "rates",
    "regime",
    "reliability",
    "report",
    "scaling",
    "speed",
    "syncs",
    "theory",
    "zero_arc",
    "zoo",
]


def test_the_library() -> None:
    assert sorted(torch_xgb.__all__) == LIBRARY
    assert all(hasattr(torch_xgb, name) for name in LIBRARY)


@pytest.mark.parametrize("module", INTEGRATIONS)
def test_an_integration(module: str) -> None:
    pytest.importorskip(
        module if module in ("accelerate", "deepspeed") else "transformers",
        reason="an extra of its own",
    )
    found = importlib.import_module(f"torch_xgb.integrations.{module}")
    assert sorted(found.__all__) == INTEGRATIONS[module]
    assert all(hasattr(found, name) for name in INTEGRATIONS[module])


def test_axolotl() -> None:
    """Read, not imported: axolotl is not in the development environment."""
    spec = importlib.util.find_spec("torch_xgb.integrations.axolotl")
    assert spec is not None and spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    (listed,) = [
        ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    defined = {node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    defined |= {
        ast.unparse(target) for n in body if isinstance(n, ast.Assign) for target in n.targets
    }
    assert sorted(listed) == AXOLOTL
    assert defined >= set(AXOLOTL)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ([], ["plot", "plan", "export", "rollback", "env", "--version"]),
        (["plan"], ["MODEL", "--batch", "--length", "--dtype", "--checkpointing", "--card", "--r"]),
        (["plot"], ["RUN", "--out"]),
        (["export"], ["RUN", "--out", "--rank", "--to", "--base-model", "--json"]),
        (["rollback"], ["RUN", "--model", "--out", "--to"]),
        (["env"], ["--json"]),
        (["finetune"], ["--task", "--model", "--train", "--dev", "--out", "--carry", "--lr"]),
    ],
    ids=lambda value: value[0] if value else "torch-xgb",
)
def test_the_command_line(
    command: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in says)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_is_a_command(name: str) -> None:
    """Found under its name, and doing something when it is run."""
    spec = importlib.util.find_spec(f"benchmarks.{name}")
    if spec is not None and spec.submodule_search_locations is not None:  # a command in parts
        spec = importlib.util.find_spec(f"benchmarks.{name}.__main__")
    assert spec is not None and spec.origin is not None
    source = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    tests = [ast.unparse(node.test) for node in source.body if isinstance(node, ast.If)]
    assert "__name__ == '__main__'" in tests


def test_every_command_of_the_benchmarks_is_listed() -> None:
    folder = ROOT / "benchmarks"
    found = [p.stem for p in folder.glob("*.py") if "__main__" in p.read_text(encoding="utf-8")]
    found += [p.parent.name for p in folder.glob("*/__main__.py")]
    assert sorted(found) == COMMANDS
