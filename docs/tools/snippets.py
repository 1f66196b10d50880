"""The code on the pages: Python that compiles, with names and arguments that the library has."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import torch
import yaml

import torch_xgb

_BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(markdown: str) -> list[tuple[str, str]]:
    """Return the language and the text of every block of Python, JSON or YAML."""
    found = [(m[2], textwrap.dedent(m[3])) for m in _BLOCK.finditer(markdown)]
    return [(language, text) for language, text in found if language in ("python", "json", "yaml")]


def problems(markdown: str) -> Iterator[str]:
    """Say of every block what is wrong with it."""
    for language, text in blocks(markdown):
        try:
            if language == "python":
                tree = ast.parse(text)
                yield from (f"{what} in {_first(text)}" for what in _wrong(tree))
            elif language == "json":
                json.loads(text)
            else:
                yaml.safe_load(text)
        except (SyntaxError, ValueError, yaml.YAMLError) as error:
            yield f"{error} in {_first(text)}"


def _first(text: str) -> str:
    return repr(text.strip().splitlines()[0] if text.strip() else text)


def _wrong(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch_xgb"):
            yield from _not_there(node)
        elif isinstance(node, ast.Call):
            yield from _unknown(node)


def _not_there(node: ast.ImportFrom) -> Iterator[str]:
    """Say which imported names there are not; modules whose framework is missing are left alone."""
    try:
        module = importlib.import_module(node.module or "")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("torch_xgb"):
            return
        yield f"there is no module {node.module}"
        return
    yield from (f"{node.module} has no {n.name}" for n in node.names if not hasattr(module, n.name))


def _unknown(node: ast.Call) -> Iterator[str]:
    """Say which keyword arguments of a public callable there are not."""
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    called = getattr(torch_xgb, name, None) if name in torch_xgb.__all__ else None
    if not callable(called):
        return
    allowed = _keywords(called)
    if called is torch_xgb.BoostedLowRankOptimizer:
        allowed |= _keywords(torch.optim.AdamW)
    if called is torch_xgb.plan:
        allowed |= _keywords(torch_xgb.BoostedLowRankOptimizer)
    yield from (
        f"{name} has no argument {keyword.arg}"
        for keyword in node.keywords
        if keyword.arg is not None and keyword.arg not in allowed
    )


def _keywords(called: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(called).parameters)
