"""Who else reads a target's weight: a tied decoder, a penalty, a kernel beside the module's call.

Such a reader would see the weight without the pair in training and with it after the merge, and
send its gradient to a frozen tensor. So for the first step of each target's first booster, reading
the weight from anywhere but the module's own forward gives a twin that shares its memory, and asks
autograd whether the loss depends on it.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.formulas.lowrank import is_followed
from torch_xgb.targets.compiled import is_compiled

__all__ = ["Readers"]


class Readers:
    """Watches the drawn targets that no step has been taken with yet.

    Args:
        adapters: Those of all layers.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = adapters
        self._known: set[str] = set()
        self._found: dict[str, None] = {}
        self._watched: list[tuple[nn.Module, Any, Adapter]] = []
        self._handle: RemovableHandle | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Readers:
        """Watch nobody in a copy of a model, which may have been looked at half-way."""
        twin = Readers([])
        twin._handle = copy.deepcopy(self._handle, memo)
        return twin

    def attach(self, model: nn.Module) -> None:
        """Begin to watch, at each call of a model."""
        self._handle = model.register_forward_pre_hook(self)

    def detach(self) -> None:
        """End it."""
        self.rest()
        if self._handle is not None:
            self._handle.remove()

    def __call__(self, module: nn.Module, args: object) -> None:
        """Watch the weights of targets that are new, if gradients are to be found."""
        if torch.compiler.is_compiling() or is_followed() or not torch.is_grad_enabled():
            return
        self.rest()
        drawn = [adapter for adapter in self._adapters if adapter.bound is not None]
        fresh = [adapter for adapter in drawn if adapter.target.name not in self._known]
        if not fresh or any(a.tracing.seen for a in fresh) or is_compiled(module):
            return
        for adapter in fresh:
            report = _Report(adapter.target.name, self._found)
            for holder in adapter.target.modules:
                kept = holder.__dict__["_parameters"]
                own = kept.get(adapter.target.weight.attribute)
                if type(kept) in (dict, OrderedDict) and type(own) is nn.Parameter:
                    holder.__dict__["_parameters"] = _Watched(kept, holder)
                elif not isinstance(kept, _Watched):
                    continue
                self._watched.append((holder, kept, adapter))
                watched = holder.__dict__["_parameters"]
                watched.reports |= {weight.attribute: report for weight in adapter.weights}

    def rest(self) -> None:
        """Stop watching until the next call."""
        for holder, kept, _ in self._watched:
            watched = holder.__dict__["_parameters"]
            if isinstance(kept, _Watched):  # by another target in the same module
                continue
            if isinstance(watched, _Watched):
                watched.settle()
            values = dict(watched)
            kept.clear()
            kept.update(values)
            holder.__dict__["_parameters"] = kept
        self._watched = []

    def before_step(self) -> None:
        """Look at what was found.

        Raises:
            RuntimeError: If a weight is read by somebody else, on whom the loss depends.
        """
        self._known.update(adapter.target.name for _, _, adapter in self._watched)
        self.rest()
        if len(self._known) == len(self._adapters):
            self.detach()
        # One that is only read gets no gradient, which is said elsewhere.
        found = [a.target.name for a in self._adapters if self._found and self._is_found(a)]
        if found:
            names = ", ".join(map(repr, found[:5])) + (", …" if len(found) > 5 else "")
            raise RuntimeError(
                f"the loss depends on the weights of {names} by another way than these modules' "
                "own forward: a decoder tied through F.linear(…, module.weight), a penalty on "
                "weights, or a kernel that reads them. There the booster would be missing until "
                "it is merged, and would get no gradient; nothing was trained. Build the "
                f"optimizer anew with exclude_modules=[{names}], or call the module instead"
            )

    def _is_found(self, adapter: Adapter) -> bool:
        """Tell a target whose weight is read by others, and whose pair is trained."""
        if adapter.target.name not in self._found or adapter.bound is None:
            return False
        gradients = [factor.grad for factor in adapter.parameters]
        return any(g is not None and bool(g.count_nonzero()) for g in gradients)


class _Twin(nn.Parameter):
    """Requires a gradient, and passes for what it is of with whoever asks or turns that on."""

    of: nn.Parameter

    @property
    def requires_grad(self) -> bool:
        return self.of.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.of.requires_grad = value

    def requires_grad_(self, requires_grad: bool = True) -> _Twin:
        self.of.requires_grad_(requires_grad)
        return self


class _Report:
    """Notes down that a gradient has come to a twin."""

    def __init__(self, name: str, found: dict[str, None]) -> None:
        self.name, self.found = name, found

    def __call__(self, gradient: object) -> None:
        self.found[self.name] = None


class _Watched(dict[str, Any]):
    """A module's Parameters; whoever is not its own forward gets a twin of a weight.

    Torch's own insides, which read the dictionary and not the module, get what is in it.

    Attributes:
        reports: Of the weights that are watched, by their names in the module.
    """

    def __init__(self, kept: Any, module: nn.Module) -> None:  # noqa: ANN401
        super().__init__(kept)
        self._own = type(module).forward.__code__
        self.reports: dict[str, _Report] = {}
        self._twins: dict[str, tuple[nn.Parameter, nn.Parameter, int]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and pickled as what it stands in for."""
        return dict, (dict(self),)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        value = super().__getitem__(name)
        caller = sys._getframe(1)
        reader = caller.f_back if caller.f_code is _GETATTR else None
        if reader is None or reader.f_code is self._own:
            self.settle()
            return super().__getitem__(name)
        return self._twin(name, value)

    def items(self) -> Any:  # noqa: ANN401
        """Give twins to ``model.parameters()``, of which penalties are made."""
        caller = sys._getframe(1).f_back
        if caller is None or caller.f_code is not _MEMBERS:
            return super().items()
        return self._members()

    def settle(self) -> None:
        """Take over what was assigned to ``.data`` of a twin, and forget twins of what was before.

        Whoever reads without gradients assigns to the Parameter itself.
        """
        for name, (twin, value, shared) in list(self._twins.items()):
            if twin.data_ptr() != shared:
                value.data = twin.data
            if value.data_ptr() != shared:
                del self._twins[name]

    def _members(self) -> Iterator[tuple[str, Any]]:
        return ((name, self._twin(name, value)) for name, value in super().items())

    def _twin(self, name: str, value: Any) -> Any:  # noqa: ANN401
        watched = name in self.reports and type(value) is nn.Parameter and not value.requires_grad
        if not watched or is_followed() or not torch.is_grad_enabled():
            return value
        self.settle()
        twin, of, _ = self._twins.get(name, (None, None, 0))
        if twin is None or of is not value:
            twin = nn.Parameter(value.detach())
            twin.__dict__.update(value.__dict__)
            twin.register_hook(self.reports[name])
            twin.__class__ = _Twin
            twin.of = value  # type: ignore[attr-defined]
            self._twins[name] = (twin, value, value.data_ptr())
        return twin


_GETATTR = nn.Module.__getattr__.__code__
_MEMBERS = nn.Module._named_members.__code__
