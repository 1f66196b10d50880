"""The factor Parameters: a fixed set, lent to whatever layers a booster draws."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from torch_xgb.boosters.pair import Pair, Shapes
from torch_xgb.targets.layers import Layer, Target
from torch_xgb.weights.dtensors import computes_on
from torch_xgb.weights.wrappers import said_of_fsdp1

__all__ = ["Lent", "ShapesOf", "Slots", "require_plain"]

ShapesOf = Callable[[Target], Shapes]


class Slots(nn.Module):
    """The factor Parameters, at home in the user's model but absent from every ``state_dict``.

    For each shape of pair there are as many as the L_s layers richest in it hold: L_s layers' worth
    where layers are alike, and never too few where they are not.

    Args:
        layers: All layers that may be drawn.
        num_layers: L_s, how many are drawn at a time, at most.
        shapes_of: Returns the shapes of a target's pair.
    """

    def __init__(self, layers: Sequence[Layer], num_layers: int, shapes_of: ShapesOf) -> None:
        super().__init__()
        targets = [target for layer in layers for target in layer.targets]
        device = computes_on(targets[0].weight.parameter)
        dtype = reduce(torch.promote_types, (t.dtype for t in targets), torch.float32)
        self.shapes_of = shapes_of
        self.names: dict[Shapes, list[Pair[str]]] = {}
        for kind, (shapes, count) in enumerate(_most_needed(layers, num_layers, shapes_of).items()):
            letters = [x for x, shape in shapes._asdict().items() if shape is not None]
            self.names[shapes] = [Pair(*(f"{x}{kind}_{i}" for x in letters)) for i in range(count)]
            for names in self.names[shapes]:
                for name, shape in zip(names, Pair(*shapes), strict=True):
                    values = torch.zeros(shape, dtype=dtype, device=device)
                    self.register_parameter(name, nn.Parameter(values))

    def lend(self, targets: Iterable[Target]) -> list[Lent]:
        """Return a pair of each target's shapes, none twice."""
        free = {shapes: iter(names) for shapes, names in self.names.items()}
        named = [next(free[self.shapes_of(target)]) for target in targets]
        return [Lent(self, names, names.map(self.get_parameter)) for names in named]

    def with_parameters(self, parameters: Iterable[nn.Parameter]) -> Slots:
        """Return slots like these that hold the given Parameters, in the order of these."""
        twin = copy.copy(self)
        names = [name for name, _ in self.named_parameters()]
        twin._parameters = dict(zip(names, parameters, strict=True))
        return twin

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Refuse to be wrapped by FSDP1, which marks all it is about to flatten before it begins.

        FSDP2 sets the same mark, from elsewhere.

        Raises:
            RuntimeError: If that is what sets it.
        """
        if name == "_is_fsdp_managed_module":
            marking = sys._getframe(1).f_globals.get("__name__")
            if marking == "torch.distributed.fsdp._dynamo_utils":
                raise RuntimeError(said_of_fsdp1("a model that an optimizer trains is given to"))
        super().__setattr__(name, value)

    def _save_to_state_dict(self, *args: Any) -> None:
        """Save nothing: a checkpoint holds the plain model's keys."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Expect nothing."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Slots:
        """Follow the model to another device, but not to a lower precision."""
        own = next(self.parameters())
        moved = fn(torch.empty(0, dtype=own.dtype, device=own.device))
        if moved.dtype == own.dtype:
            return super()._apply(fn, recurse)  # type: ignore
        return super()._apply(lambda p: p.to(moved.device), recurse)  # type: ignore


@dataclass(frozen=True, eq=False)
class Lent:
    """A pair that is lent to a target.

    Attributes:
        slots: Where it is kept.
        names: The names it has there.
        parameters: The pair.
    """

    slots: Slots
    names: Pair[str]
    parameters: Pair[nn.Parameter]

    def here(self) -> Pair[Tensor] | None:
        """Return what stands in the Parameters' places for a while, if others do."""
        found = self.found
        if all(isinstance(tensor, nn.Parameter) for tensor in found):  # or what a shard has of them
            return None
        return found  # type: ignore[return-value]

    def others(self) -> Pair[Tensor] | None:
        """Return the Parameters of somebody else that do; None if there is nothing to add.

        So it is where these stay and other weights are put in, or those of a copy at rest, whose
        weights hold its pairs.
        """
        found = self.found
        own = all(a is b for a, b in zip(found, self.parameters, strict=True))
        at_rest = any(getattr(tensor, "at_rest", False) for tensor in found)
        return None if own or at_rest else found  # type: ignore[return-value]

    @property
    def found(self) -> Pair[Tensor | None]:
        """What stands under the names now."""
        return self.names.map(self.slots._parameters.get)


def require_plain(model: nn.Module) -> None:
    """Refuse a model that boosters are in.

    Raises:
        RuntimeError: If they are.
    """
    if taken := [name for name, m in model.named_modules() if isinstance(m, Slots)]:
        raise RuntimeError(
            "the model already belongs to a BoostedLowRankOptimizer (its factors are at "
            f"{taken[0]!r}, and its pending booster belongs to the present weights): call "
            "finalize() on that optimizer first, or torch_xgb.release(model) if it is gone"
        )


def _most_needed(
    layers: Sequence[Layer], num_layers: int, shapes_of: ShapesOf
) -> dict[Shapes, int]:
    """Return, for each shape of pair, how many of them ``num_layers`` layers can hold at most."""
    per_layer = [Counter(shapes_of(target) for target in layer.targets) for layer in layers]
    kinds = dict.fromkeys(shapes_of(target) for layer in layers for target in layer.targets)
    counts = {kind: sorted((c[kind] for c in per_layer), reverse=True) for kind in kinds}
    return {kind: sum(count[:num_layers]) for kind, count in counts.items()}
