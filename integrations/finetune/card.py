"""The model card of a run."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .recipe import Recipe

__all__ = ["write_card"]

_CLASSES = {
    "classification": ("AutoModelForSequenceClassification", "text-classification"),
    "regression": ("AutoModelForSequenceClassification", "text-classification"),
    "causal-lm": ("AutoModelForCausalLM", "text-generation"),
}
_ELSEWHERE = {"settings", "base_settings", "optimizer", "model", "task", "train", "dev", "text"}
_ELSEWHERE |= {"dataset", "dataset_config", "train_split", "dev_split", "label", "prompt"}
_ELSEWHERE |= {"completion"}
_PACKAGES = ("torch-xgb", "torch", "transformers", "accelerate", "tokenizers")


def write_card(file: Path, recipe: Recipe, result: Mapping[str, Any]) -> None:
    """Write what a model is, what it was trained on and how, its scores, and the versions.

    Args:
        file: Where to.
        recipe: What the run was told.
        result: What came of it.
    """
    file.write_text("\n".join(_lines(recipe, result)) + "\n", encoding="utf-8")


def _lines(recipe: Recipe, result: Mapping[str, Any]) -> Iterator[str]:
    kind, pipeline = _CLASSES[recipe.task]
    facts = {
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        **({} if Path(recipe.model).exists() else {"base_model": recipe.model}),
        **({} if recipe.dataset is None else {"datasets": [recipe.dataset]}),
        "tags": ["torch-xgb", recipe.task],
    }
    yield from (
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in facts.items()),
        "---",
        "",
    )
    yield f"# {Path(recipe.model).name}, fine-tuned for {recipe.task}"
    yield from ("", _said_of_training(recipe, result), "")
    yield from ("```python", f"from transformers import AutoTokenizer, {kind}", "")
    yield f"model = {kind}.from_pretrained({recipe.folder.name!r})"
    yield f"tokenizer = AutoTokenizer.from_pretrained({recipe.folder.name!r})"
    yield from ("```", "", "## Scores", "")
    rows = {name: f"{value:.4g}" for name, value in result["scores"].items()}
    yield from _table("on the dev data", "", rows)
    yield from ("", "## Data", "")
    yield from _table("", "", dict(_data(recipe, result)))
    yield from ("", "## Settings", "")
    told = {**recipe.plain, **recipe.boosted}
    kept = {name: value for name, value in told.items() if name not in _ELSEWHERE}
    yield from _table("", "", {n: f"`{v}`" for n, v in kept.items() if v is not None})
    yield from ("", "## Versions", "")
    yield from _table("", "", {"Python": platform.python_version(), **dict(_versions())})
    if result["picture"] is not None:
        yield from ("", f"![loss, scores and boosters over the run]({result['picture']})")


def _said_of_training(recipe: Recipe, result: Mapping[str, Any]) -> str:
    share = 100 * result["trained"] / result["parameters"]
    return (
        f"Trained by torch-xgb for {result['steps']} steps as a [chain of low-rank boosters]"
        "(https://arxiv.org/abs/2410.19694) merged into the weights: "
        f"{result['trained']:,} of {result['parameters']:,} parameters ({share:.3g} %) at a time. "
        f"It is a plain model of transformers, without adapters. The original is `{recipe.model}`."
    )


def _data(recipe: Recipe, result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "train", f"`{recipe.train or recipe.dataset}`, {result['rows']['train']:,} rows"
    held_out = recipe.dev is None and recipe.dataset is None
    source = "held out of it" if held_out else f"`{recipe.dev or recipe.dataset}`"
    yield "dev", f"{source}, {result['rows']['dev']:,} rows"
    for name in ("labels", "text", "learned"):
        if name in result:
            value = result[name]
            yield name, ", ".join(value) if isinstance(value, list) else str(value)


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"


def _table(first: str, second: str, rows: Mapping[str, str]) -> Iterator[str]:
    yield f"| {first} | {second} |"
    yield "|:--|:--|"
    yield from (f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items())
