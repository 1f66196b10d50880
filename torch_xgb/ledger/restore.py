"""A model that is given the boosters of a ledger again, found by a header's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from torch_xgb.boosters.slots import require_plain
from torch_xgb.ledger.archive import Archive
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.ledger.records import BoosterRecord
from torch_xgb.targets.compiled import plain_name
from torch_xgb.weights.merge import Merger, add_product
from torch_xgb.weights.weight import Weight

__all__ = ["Restoration"]

Found = tuple[dict[str, Weight], dict[str, nn.Parameter]]


class Restoration:
    """A model, and what of it a ledger restores: looked at in full before anything is changed.

    Args:
        model: To be changed in place.
        archive: What it is given.

    Raises:
        RuntimeError: If an optimizer is still attached to the model, or nothing was recorded.
        ValueError: If the ledger belongs to another model.
    """

    def __init__(self, model: nn.Module, archive: Archive) -> None:
        require_plain(model)
        self._weights, self._saved = _find(model, archive.header)
        archive.require_begun()
        self._archive, self._header = archive, archive.header

    @torch.no_grad()
    def roll_back(self, to: int) -> None:
        """Put the original weights back, and merge boosters 0 to ``to`` anew.

        Raises:
            ValueError: If anything that is needed is damaged. Nothing is changed.
        """
        sections = self._archive.sections
        sections.verify(to, originals=True)
        for name, original in sections.originals(self._weights):
            self._weights[name].parameter.copy_(original)
        _replay(sections.records(to), self._weights, self._header)
        self._restore_saved(to)

    @torch.no_grad()
    def apply(self, to: int, exact: bool | None) -> None:
        """Bring the original weights to where boosters 0 to ``to`` brought them.

        Args:
            to: The last booster.
            exact: Whether all boosters are summed and rounded once; None does so in 16 bits.

        Raises:
            ValueError: If the weights are not the original ones, or anything that is needed is
                damaged. Nothing is changed.
        """
        weights, sections = self._weights, self._archive.sections
        _require_original(weights, self._header)
        sections.verify(to, originals=False)
        narrow = {n for n, w in weights.items() if w.parameter.element_size() < 4}
        summed = narrow if exact is None else set(weights) if exact else set()
        if merged := {name: weights[name] for name in weights if name not in summed}:
            _replay(sections.records(to), merged, self._header)
        for name in summed:
            W = weights[name].place.local
            W.copy_(add_product(weights[name], W, *self._archive.delta(name, to), 1.0))
        self._restore_saved(to)

    def _restore_saved(self, t: int) -> None:
        for name, tensor in self._archive.sections.saved(t).items():
            self._saved[name].copy_(tensor)


def _find(model: nn.Module, header: ChainHeader) -> Found:
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


def _require_original(weights: Mapping[str, Weight], header: ChainHeader) -> None:
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


def _replay(
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
