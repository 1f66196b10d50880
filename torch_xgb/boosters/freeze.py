"""``requires_grad``, taken from all of a model but the modules trained in full, and given back.

Loops that train two models turn it off and on for a whole model meanwhile. What is frozen stays so,
before each call of the model, so that no weight gets a gradient that clipping would count; what is
trained goes with the model: off while all of it is, and not with a block alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.owner import Owner
from torch_xgb.boosters.stand_in import in_functional_call
from torch_xgb.formulas.lowrank import is_followed

__all__ = ["Freeze"]


@dataclass(frozen=True, eq=False)
class _Place:
    """A Parameter's, and what it was before."""

    module: nn.Module
    name: str
    required: bool
    merged: bool  # a weight of a target


class Freeze:
    """Remembers what required gradients, and keeps frozen what is.

    Args:
        owner: Of the boosters; without one nothing is kept frozen.
        factors: Those of the boosters, which live in one of the model's modules.
    """

    def __init__(self, owner: Owner, factors: Sequence[nn.Parameter]) -> None:
        self.owner = owner
        self.factors = factors
        self._places: list[_Place] = []
        self._frozen: list[_Place] = []  # those that are to stay so
        self._saved: list[nn.Module] = []
        self._theirs: list[nn.Parameter] = []
        self._nesting: list[nn.TransformerEncoder] = []
        self._said = False
        self._set_apart = False
        self._handle: RemovableHandle | None = None

    def attach(
        self, model: nn.Module, saved: Iterable[nn.Module], merged: Iterable[tuple[nn.Module, str]]
    ) -> None:
        """Freeze a model but for the ``saved`` modules, and drop its gradients.

        Args:
            model: The model.
            saved: What is trained in full.
            merged: The modules and names of the weights that are merged into.
        """
        weights = {(id(module), name) for module, name in merged}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    known = (parameter.requires_grad, (id(module), name) in weights)
                    self._places.append(_Place(module, name, *known))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self._saved = list(saved)
        for parameter in self._trained():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        trained = set(map(id, self._trained()))
        self._frozen = [p for p in self._places if id(p.module._parameters[p.name]) not in trained]
        # In evaluation torch's encoder nests its input, which layers with hooks cannot take.
        encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder)]
        self._nesting = [encoder for encoder in encoders if encoder.use_nested_tensor]
        for encoder in self._nesting:
            encoder.use_nested_tensor = False
        self._handle = model.register_forward_pre_hook(self, prepend=True, with_kwargs=True)

    @property
    def __name__(self) -> str:
        """What ``torch.jit.script`` asks first of a model's hooks, none of which it can compile."""
        raise AttributeError(
            "torch.jit.script cannot compile a model that boosters are in: use torch.jit.trace or "
            "torch.export, or script a plain copy, torch_xgb.release(copy.deepcopy(model))"
        )

    @property
    def tells(self) -> bool:
        """Whether every target was trained before, so that code traced then is told by guards.

        Dynamo guards on whether a Parameter requires a gradient, and not on hooks.
        """
        return all(place.required for place in self._places if place.merged)

    def left_alone(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the Parameters that stay frozen and are not merged into, by name."""
        places = [] if self._set_apart else self._frozen
        frozen = {id(_of(place)) for place in places if not (place.merged or _required(place))}
        return {name: p for name, p in model.named_parameters() if id(p) in frozen}

    def set_apart(self) -> None:
        """Leave ``requires_grad`` to a framework, which has a Parameter of the model stand in."""
        self._set_apart = True

    def detach(self) -> None:
        """Give ``requires_grad`` back; whoever is interrupted may do it again."""
        for place in self._places:
            for parameter in _present(place.module, place.name):
                if parameter.is_floating_point() or parameter.is_complex():  # quantised since
                    parameter.requires_grad_(place.required)
        for encoder in self._nesting:
            encoder.use_nested_tensor = True
        if self._handle is not None:
            self._handle.remove()
        self._places, self._frozen, self._theirs, self._nesting = [], [], [], []

    def __call__(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        """Look at the model before it is called."""
        if not torch.compiler.is_compiling() and not is_followed() and self.owner.alive:
            self.keep(model)
            if torch.is_grad_enabled() and not self._is_off(args, kwargs):
                self._train()

    def before_step(self, model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
        """Look at it before a step: not every call of its parts is one of the model.

        Args:
            model: The model.
            groups: Of what the base trains beside the factors.

        Raises:
            RuntimeError: If somebody has added a group of what is frozen, which would not be
                trained.
        """
        trained = {id(parameter) for parameter in self._trained()}
        added = {id(p) for group in groups for p in group["params"]} - trained
        self.keep(model)
        if added:
            self._refuse(model, added)
        if others := [p for p in self._theirs if id(p) not in added]:
            self._say(model, others)
        self._train()

    def keep(self, model: nn.Module) -> None:
        """Freeze what has been unfrozen of the targets, and note what has been beside them."""
        places = [] if self._set_apart else self._frozen
        if _are_frozen(places) or not any(_required(place) for place in places):
            return
        if in_functional_call():  # what stands in the model's places is somebody's own
            return
        left = {id(p) for p in (*self._trained(), *self._theirs)}
        kept = [place for place in places if _is_kept(place, left)]
        unfrozen = [place for place in kept if _required(place)]
        everything = len(unfrozen) == len(kept)
        for place in unfrozen:
            parameter = place.module._parameters[place.name]
            if everything or place.merged:
                parameter.requires_grad_(False)  # type: ignore[union-attr]
                parameter.grad = None  # type: ignore[union-attr]
            else:
                self._theirs.append(parameter)  # type: ignore[arg-type]
                self._frozen = [other for other in self._frozen if other is not place]

    def _refuse(self, model: nn.Module, added: set[int]) -> None:
        names = [name for name, p in model.named_parameters() if id(p) in added]
        left = {id(p) for p in self._theirs}
        if any(id(p) in added and id(p) not in left for p in model.parameters()):
            raise RuntimeError(
                f"add_param_group() was given {len(names)} weights of the model, first "
                f"{names[0]!r}, that were frozen when the optimizer was built: they would get no "
                "gradient. Build it with modules_to_save=[…] to train modules in full"
            )

    def _say(self, model: nn.Module, unfrozen: Sequence[nn.Parameter]) -> None:
        if self._said:
            return
        self._said = True
        name = next((n for n, p in model.named_parameters() if p is unfrozen[0]), "?")
        warnings.warn(
            f"{len(unfrozen)} weights require gradients now, first {name!r}, that were frozen when "
            "the optimizer was built: it does not train them. To have it train modules in full, "
            "build it with modules_to_save=[…], or give them to add_param_group(); the weights "
            "that boosters are merged into stay frozen",
            stacklevel=6,
        )

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for module in self._saved for parameter in module.parameters()]

    def _is_off(self, args: Any, kwargs: Any) -> bool:  # noqa: ANN401
        """Tell a call of a model that is frozen as a whole, as while another is trained through it.

        Its heads are frozen too then; without heads, it is somebody else's gradient that it passes.
        """
        if all(factor.requires_grad for factor in self.factors):
            return False
        if trained := self._trained():
            return not any(parameter.requires_grad for parameter in trained)
        leaves = tree_leaves((args, kwargs))
        return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)

    def _train(self) -> None:
        for factor in self.factors:
            if not factor.requires_grad:  # frozen with the block they live in
                factor.requires_grad_(True)


def _are_frozen(places: Sequence[_Place]) -> bool:
    """Tell, as fast as can be, that all are there and none requires a gradient."""
    try:
        return not any(map(_REQUIRES, [place.module._parameters[place.name] for place in places]))
    except (AttributeError, KeyError):
        return False


_REQUIRES = attrgetter("requires_grad")


def _of(place: _Place) -> nn.Parameter | None:
    return place.module._parameters.get(place.name)


def _required(place: _Place) -> bool:
    parameter = _of(place)
    return parameter is not None and parameter.requires_grad


def _is_kept(place: _Place, left: set[int]) -> bool:
    """Tell the place of a Parameter that is kept frozen, and could be unfrozen."""
    parameter = place.module._parameters.get(place.name)
    return parameter is not None and id(parameter) not in left and parameter.is_floating_point()


def _present(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Return a Parameter, or those that it is computed from since."""
    if (parameter := module._parameters.get(name)) is not None:
        return [parameter]
    prefixes = (f"{name}_", f"parametrizations.{name}.")  # old and new names of torch's own
    return [p for n, p in module.named_parameters() if n.startswith(prefixes)]
