"""What an optimizer found in its model and trains of it, to be read by people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from torch_xgb.boosting.handle import Boosting
from torch_xgb.settings import Settings
from torch_xgb.weights.merge import carries_over
from torch_xgb.weights.places import place_of

__all__ = ["Summary", "shortened", "summarised"]

_MOST = 8  # frozen modules that are listed by name


@dataclass(frozen=True)
class Summary:
    """What was found, what is trained, what stays frozen, and what that takes; prints as a table.

    Attributes:
        base: The base optimizer's class.
        model: The model's class.
        parameters: How many the model has, in all processes together.
        blocks: How many blocks may be drawn.
        targets: How many targets they hold: linear maps, and bare Parameters that were named.
        bare: How many of these are bare Parameters.
        designated: Parameters of these, which boosters change.
        drawn: Names of the blocks the active booster holds; none after ``finalize()``.
        factors: Parameters of its pairs.
        in_full: The modules trained in full, with their parameters; none after ``finalize()``.
        frozen: What stays frozen outside the blocks, with its parameters.
        told: The settings that say what a booster is.
        booster_index: t.
        booster_step: Steps taken in the active booster.
        rates: Learning rates by what they are of.
        memory: Bytes this process holds beside the model at present: factors with gradients, the
            base's state, and what is kept from booster to booster (residuals, pairs, and the sums
            beside quantised weights).
        most_residual: Bytes that residuals will take once every block has been drawn.
    """

    base: str
    model: str
    parameters: int
    blocks: int
    targets: int
    bare: int
    designated: int
    drawn: tuple[str, ...]
    factors: int
    in_full: Mapping[str, int]
    frozen: Mapping[str, int]
    told: Mapping[str, str]
    booster_index: int
    booster_step: int
    rates: Mapping[str, float]
    memory: Mapping[str, int]
    most_residual: int

    @property
    def trained(self) -> int:
        """Parameters trained at present: the pairs, and the modules trained in full."""
        return self.factors + sum(self.in_full.values())

    @property
    def share(self) -> float:
        """The same as a share of the model's parameters."""
        return self.trained / self.parameters

    @property
    def short(self) -> str:
        """It in torch's style for optimizers, in five lines."""
        rates = ", ".join(f"{rate:g} ({of})" for of, rate in self.rates.items())
        lines = {
            "base": f"{self.base}, lr {rates}" if rates else self.base,
            "boosters": ", ".join(f"{name}={value}" for name, value in self.told.items()),
            "found": f"{self.targets} targets in {self.blocks} blocks of {self.model}",
            "drawn": f"{self._place}: {self._drawn}",
            "trained": self._trained,
        }
        inside = "\n".join(f"    {name}: {text}" for name, text in lines.items())
        return f"BoostedLowRankOptimizer (\n{inside}\n)"

    def __str__(self) -> str:
        rows = [*self._found(), *self._taken()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {text}".rstrip() for name, text in rows)

    @property
    def _place(self) -> str:
        return f"booster {self.booster_index}, step {self.booster_step}"

    @property
    def _drawn(self) -> str:
        return shortened(self.drawn) or "nothing, the model is plain again"

    @property
    def _trained(self) -> str:
        return f"{self.trained:,} of {self.parameters:,} parameters ({100 * self.share:.3g} %)"

    def _found(self) -> Iterator[tuple[str, str]]:
        yield "model", f"{self.model}, {self.parameters:,} parameters"
        kinds = {"linear maps": self.targets - self.bare, "bare Parameters": self.bare}
        found = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        yield "targets", f"{found} in {self.blocks} blocks, {self.designated:,} parameters"
        yield "drawn now", f"{len(self.drawn)} of {self.blocks} ({self._place})"
        yield "", self._drawn
        yield "trained now", self._trained
        yield "  pairs", f"{self.factors:,}"
        yield from ((f"  {n or 'the model'}, in full", f"{s:,}") for n, s in self.in_full.items())
        yield "frozen outside the blocks", f"{sum(self.frozen.values()):,}"
        shown = sorted(self.frozen.items(), key=lambda item: -item[1])[:_MOST]
        yield from ((f"  {name}", f"{size:,}") for name, size in shown)
        if len(self.frozen) > _MOST:
            yield f"  and {len(self.frozen) - _MOST} more", ""

    def _taken(self) -> Iterator[tuple[str, str]]:
        yield "base", self.base
        yield from ((f"  lr, {of}", f"{rate:g}") for of, rate in self.rates.items())
        yield "boosters", ""
        yield from ((f"  {name}", value) for name, value in self.told.items())
        yield "memory beside the model", _size(sum(self.memory.values()))
        yield from ((f"  {name}", _size(held)) for name, held in self.memory.items() if held)
        if self.most_residual:
            yield "  residuals, at most", _size(self.most_residual)


def summarised(boosting: Boosting, base: Optimizer) -> Summary:
    """Look at a run as it stands, changing nothing."""
    selection, booster = boosting.selection, boosting.booster
    own = {id(factor) for factor in boosting.factors}
    known = [p for p in boosting.model.parameters() if id(p) not in own]
    progress = boosting.course.progress
    pairs = booster.active_pairs.values() if boosting.attached else ()
    heads = selection.heads if boosting.attached else {}
    added = _added(boosting, base) if boosting.attached else {}
    return Summary(
        base=type(getattr(base, "first", base)).__name__,
        model=type(boosting.model).__name__,
        parameters=_count(known),
        blocks=len(selection.layers),
        targets=len(selection.targets),
        bare=sum(target.weight.bare for target in selection.targets),
        designated=sum(math.prod(target.shape) for target in selection.targets),
        drawn=booster.active_layers if boosting.attached else (),
        factors=sum(factor.numel() for pair in pairs for factor in pair),
        in_full={
            **{name: _count(head.parameters()) for name, head in heads.items()},
            **{name: _count([p]) for name, p in added.items()},
        },
        frozen=_frozen(boosting, added.values()),
        told=_told(boosting.settings),
        booster_index=progress.booster_index,
        booster_step=progress.booster_step,
        rates=_rates(base),
        memory=_memory(boosting, base),
        most_residual=_most_residual(boosting),
    )


def shortened(names: Sequence[str]) -> str:
    """Return dotted names on one line, what they share said once: ``encoder.layer: 0, 3``."""
    heads = {name.rpartition(".")[0] for name in names}
    if len(heads) != 1 or len(names) < 2 or not (shared := heads.pop()):
        return ", ".join(names)
    return f"{shared}: " + ", ".join(name.rpartition(".")[2] for name in names)


def _added(boosting: Boosting, base: Optimizer) -> dict[str, Tensor]:
    """Return the model's Parameters that somebody has given to ``add_param_group``."""
    known = {id(p) for p in (*boosting.factors, *boosting.trained)}
    given = {id(p) for group in base.param_groups for p in group["params"]} - known
    return {name: p for name, p in boosting.model.named_parameters() if id(p) in given}


def _frozen(boosting: Boosting, added: Iterable[Tensor]) -> dict[str, int]:
    """Return the largest modules outside of blocks and heads that hold Parameters, with those."""
    model, selection = boosting.model, boosting.selection
    inside = [model.get_submodule(layer.name) for layer in selection.layers]
    inside += [*selection.heads.values(), boosting.booster.slots]
    taken = {id(p) for module in inside for p in module.parameters()}
    taken |= {id(weight.parameter) for weight in boosting.weights} | set(map(id, added))
    found: dict[str, int] = {}

    def look(name: str, module: nn.Module) -> None:
        held = {id(p): p for p in module.parameters()}
        rest = held.keys() - taken
        if rest == held.keys() and name:
            if held:
                found[name] = _count(held.values())
                taken.update(held)
            return
        for child, inner in module.named_children() if rest else ():
            look(f"{name}.{child}" if name else child, inner)
        for own, p in module._parameters.items():
            if p is not None and id(p) not in taken:
                found[f"{name}.{own}" if name else own] = _count([p])
                taken.add(id(p))

    look("", model)
    return found


def _told(settings: Settings) -> dict[str, str]:
    """Return what a booster is, and whatever was told otherwise than by default."""
    always = ("r", "kappa", "layers_per_booster", "lora_alpha")
    defaults = Settings()
    names = [n for n in vars(settings) if not n.startswith("_") and n != "optimizer_kwargs"]
    told = [n for n in names if n in always or getattr(settings, n) != getattr(defaults, n)]
    return {name: _said(getattr(settings, name)) for name in told}


def _said(value: Any) -> str:  # noqa: ANN401
    if value is None or isinstance(value, (str, int, float, list, tuple)):
        return str(value)
    return str(getattr(value, "__name__", None) or type(value).__name__)


def _rates(base: Optimizer) -> dict[str, float]:
    names = ["pairs", "in full"]
    names += [f"group {g}" for g in range(2, len(base.param_groups))]
    groups = zip(names, base.param_groups, strict=False)
    return {name: float(group["lr"]) for name, group in groups if group.get("lr") is not None}


def _memory(boosting: Boosting, base: Optimizer) -> dict[str, int]:
    factors = [*boosting.factors, *boosting.trained]
    gradients = [p.grad for p in factors if p.grad is not None]
    state = [t for t in tree_leaves([*base.state.values()]) if isinstance(t, Tensor)]
    return {
        "pairs": _bytes(boosting.factors),
        "gradients": _bytes(gradients),
        "the base's state": _bytes(state),
        "residuals, carried pairs, sums beside": _bytes(boosting.entry.remembered),
    }


def _most_residual(boosting: Boosting) -> int:
    precision = boosting.settings.merge_precision
    kept = [weight.place.local for weight in boosting.weights if boosting.attached]
    return _bytes(W for W in kept if carries_over(precision, W.element_size()))


def _count(parameters: Iterable[Tensor]) -> int:
    """Count entries of whole Parameters, each once, wherever they are kept."""
    each = {id(p): p for p in parameters}.values()
    return sum(math.prod(_shape(p)) for p in each)


def _shape(parameter: Tensor) -> Sequence[int]:
    """Return a Parameter's, or that of the weight which bitsandbytes has packed into it."""
    packed = getattr(parameter, "quant_state", None)
    return place_of(parameter).shape if packed is None else packed.shape


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in (place_of(t).local for t in tensors))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
