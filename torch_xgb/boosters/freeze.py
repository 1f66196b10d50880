"""``requires_grad``, taken from all of a model but the modules trained in full, and given back."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["Freeze"]


class Freeze:
    """Remembers what required gradients."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, str, bool]] = []

    def attach(self, model: nn.Module, saved: Iterable[nn.Module]) -> None:
        """Freeze a model but for the ``saved`` modules, and drop its gradients."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._before.append((module, name, parameter.requires_grad))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in (p for module in saved for p in module.parameters()):
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())

    def detach(self) -> None:
        """Give ``requires_grad`` back."""
        for module, name, requires_grad in self._before:
            for parameter in _present(module, name):
                if parameter.is_floating_point() or parameter.is_complex():  # quantised since
                    parameter.requires_grad_(requires_grad)
        self._before = []


def _present(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Return a Parameter, or those that it is computed from since."""
    if (parameter := module._parameters.get(name)) is not None:
        return [parameter]
    prefixes = (f"{name}_", f"parametrizations.{name}.")  # old and new names of torch's own
    return [p for n, p in module.named_parameters() if n.startswith(prefixes)]
