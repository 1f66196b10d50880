"""Bare Parameters in PEFT's format: it wraps their modules, once for each Parameter of a module.

What a wrapper holds is named after the module; the one inside it, ``base_layer``, and so is all
that the module itself holds. The pairs of a stack of E matrices stand side by side: A (E, r, in)
as (E·r, in), and B (E, out, r) as (out, r·E), a member's columns E apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from torch import Tensor

from torch_xgb.ledger.header import WeightFacts

__all__ = ["Wrapped", "side_by_side"]


class Wrapped:
    """The bare Parameters among what an adapter holds.

    Args:
        weights: What it holds, in the model's order.

    Attributes:
        parameters: Their names.

    Raises:
        ValueError: If PEFT cannot wrap them.
    """

    def __init__(self, weights: Mapping[str, WeightFacts]) -> None:
        self.parameters = [name for name, facts in weights.items() if facts.bare]
        self._held: defaultdict[str, list[str]] = defaultdict(list)
        for name in self.parameters:
            self._held[name.rpartition(".")[0]].append(name)
        if self.parameters:
            self._refuse(weights)

    def place(self, target: str) -> str:
        """Return under what name the factors of a module or of a bare Parameter are kept."""
        bare = target in self.parameters
        module = target.rpartition(".")[0] if bare else target
        parts = module.split(".")
        found = []
        for i, part in enumerate(parts):
            found.append(part)
            if i + 1 < len(parts):
                found += ["base_layer"] * len(self._held.get(".".join(parts[: i + 1]), ()))
        if bare:  # the first of a module's Parameters is wrapped first, and lies innermost
            held = self._held[module]
            found += ["base_layer"] * (len(held) - 1 - held.index(target))
        return ".".join(found)

    def _refuse(self, weights: Mapping[str, WeightFacts]) -> None:
        saying = "save the trained model instead (save_pretrained)"
        if rootless := [name for name in self.parameters if "." not in name]:
            raise ValueError(
                f"PEFT cannot wrap the model itself, which holds {rootless[0]!r}: {saying}"
            )
        if any(facts.transposed and not facts.bare for facts in weights.values()):
            raise ValueError(
                "PEFT holds no Parameters beside maps of transformers' Conv1D (fan_in_fan_out): "
                f"{saying}"
            )
        for name in self.parameters:
            if weights[name].transposed and weights[name].shape[0] == 1:
                raise ValueError(
                    f"PEFT takes {name!r}, a stack of one matrix stored (in, out), for a matrix: "
                    f"{saying}"
                )
            if longer := _ending_alike(name, weights):
                raise ValueError(
                    f"PEFT would take {longer!r} for {name!r}, for its name ends alike: {saying}"
                )


def side_by_side(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of a stack as PEFT keeps them; a matrix's pair as it is."""
    if A.ndim == 2:
        return A, B
    return A.reshape(-1, A.shape[-1]), B.permute(1, 2, 0).reshape(B.shape[1], -1)


def _ending_alike(name: str, others: Collection[str]) -> str | None:
    return next((other for other in others if other.endswith(f".{name}")), None)
