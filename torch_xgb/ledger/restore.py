"""From a header's names back to a model's weights, and boosters merged into them once more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from torch_xgb.ledger.header import ChainHeader
from torch_xgb.ledger.records import BoosterRecord
from torch_xgb.targets.compiled import plain_name
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.weight import Weight

__all__ = ["find", "replay", "require_original"]

Found = tuple[dict[str, Weight], dict[str, nn.Parameter]]


def find(model: nn.Module, header: ChainHeader) -> Found:
    """Return the weights and the fully trained Parameters that a header names, changing nothing.

    Raises:
        ValueError: If the model lacks one, or has it in another shape or dtype.
    """
    modules = {plain_name(name): module for name, module in model.named_modules()}
    weights, saved, problems = {}, {}, []
    for name, facts in header.weights.items():
        parameter = _parameter(modules, name)
        holder, _, attribute = name.rpartition(".")
        of_bias = attribute == "bias" and not facts.bare
        stored = facts.shape[:1] if of_bias else facts.stored
        if problem := _problem(name, parameter, (stored, facts.dtype)):
            problems.append(problem)
            continue
        module = modules[plain_name(holder)]
        weights[name] = Weight(name, (module,), attribute, facts.transposed, facts.bare)
    for name, shape in header.saved.items():
        parameter = _parameter(modules, name)
        if problem := _problem(name, parameter, (shape, None)):
            problems.append(problem)
        elif parameter is not None:
            saved[name] = parameter
    if problems:
        raise ValueError(
            f"the ledger belongs to another model: {len(problems)} of its "
            f"{len(header.weights) + len(header.saved)} parameters do not match, first "
            f"{problems[0]}. Give a model of the same architecture and dtype"
        )
    return weights, saved


def require_original(weights: Mapping[str, Weight], header: ChainHeader) -> None:
    """Refuse weights that are not bitwise those the run began with.

    Raises:
        ValueError: If one differs.
    """
    differing = [n for n, w in weights.items() if not header.is_original(n, w.matrix)]
    if differing:
        raise ValueError(
            f"the model's weights are not the ones the run began with: {len(differing)} of "
            f"{len(weights)} differ, first {differing[0]!r}. Load the original model, or use "
            "chain.rollback(model, to=t), which brings the original weights itself"
        )


@torch.no_grad()
def replay(
    records: Iterable[BoosterRecord], weights: Mapping[str, Weight], header: ChainHeader
) -> None:
    """Merge boosters in order, under the policy they were first merged with.

    What one took out when it began is taken out once more, so that everything rounds alike.
    """
    merger = Merger(header.precision, header.seed)
    for record in records:
        t = record.booster_index
        for name in (name for name in record.updates if name in weights):
            if name in record.taken:
                left, right, scale = record.taken[name]
                merger.merge(weights[name], left, right, -scale, -1 - t)
            merger.merge(weights[name], *record.merged(name), t)


def _parameter(modules: Mapping[str, nn.Module], name: str) -> nn.Parameter | None:
    holder, _, attribute = name.rpartition(".")
    module = modules.get(plain_name(holder))
    return None if module is None else module._parameters.get(attribute)


def _problem(
    name: str, parameter: Tensor | None, wanted: tuple[tuple[int, ...], str | None]
) -> str | None:
    if parameter is None:
        return f"{name!r} is missing"
    shape, dtype = tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")
    if shape != wanted[0]:
        return f"{name!r} has the shape {shape} for {wanted[0]}"
    return None if wanted[1] in (None, dtype) else f"{name!r} is {dtype}, not {wanted[1]}"
