"""Whether a target computes what its class computes when the pair's share is added to it.

A pair is merged into the weight, so the output it is added to must be the weight's own. A forward
on the instance or a hook that comes before ours may have changed it; many do not, as those that
move tensors between devices or look at activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_map

from torch_xgb.formulas.lowrank import is_followed
from torch_xgb.weights.dtensors import is_dtensor

__all__ = ["Conduct"]

_ENOUGH = 0.02  # of the output's norm: a wrapper may compute in another precision


class Conduct:
    """Looks at a target's output where somebody may have changed it, once for each such guest.

    Args:
        modules: The target's, as their class computes now.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._trusted: set[int] = set()
        self._forwards: set[Any] = {type(module).forward for module in modules}

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle it without functions, of which some cannot be."""
        return {"_trusted": set(), "_forwards": set()}

    def forget(self) -> None:
        """Trust nobody any more: a booster begins."""
        self._trusted.clear()

    def check(
        self, name: str, module: nn.Module, hook: object, given: tuple[Any, Any], y: Tensor
    ) -> None:
        """Make sure that an output is the module's own, and that the next is before anybody else.

        Args:
            name: The module's.
            module: That computed the output.
            hook: Ours, being called.
            given: The arguments of the call, and those by name.
            y: The output, as the hook got it.

        Raises:
            RuntimeError: If somebody has changed it.
        """
        hooks = module._forward_hooks
        ours_first = next(iter(hooks.values()), hook) is hook
        everywhere = [h for h in torch_module._global_forward_hooks.values() if not _only_looks(h)]
        now = type(module).forward
        same = now in self._forwards or not self._forwards
        if same and "forward" not in module.__dict__ and ours_first and not everywhere:
            return
        guests = {id(module.__dict__.get("forward")), *map(id, hooks.values())}
        guests |= {*map(id, everywhere), id(now)}
        forward = now if same else next(iter(self._forwards))
        if not guests <= self._trusted and not _is_own(forward, module, given, y):
            raise RuntimeError(
                f"the output of {name!r} is changed before the booster's share is added to it, by "
                "a forward put on the instance, another class, or a forward hook that comes first: "
                "merging would change what the model computes, so nothing is trained. Register "
                "that hook without prepend=True; or take it off and build the optimizer with "
                f"exclude_modules=[{name!r}]"
            )
        self._trusted |= guests
        if not ours_first:
            ours = next(key for key, value in hooks.items() if value is hook)
            hooks.move_to_end(ours, last=False)  # type: ignore[attr-defined]


def _only_looks(hook: object) -> bool:
    """Tell a hook of torch's own on every module: those count modules or FLOPs."""
    return str(getattr(hook, "__module__", "")).startswith("torch.")


@torch.no_grad()
def _is_own(
    forward: Callable[..., Tensor], module: nn.Module, given: tuple[Any, Any], y: Tensor
) -> bool:
    weight = module._parameters.get("weight")
    if is_followed() or weight is None or weight.is_meta or y.is_meta or y.is_nested:
        return True  # cannot be looked at here
    args, kwargs = given
    if is_dtensor(weight) and not any(map(is_dtensor, (*args, *kwargs.values()))):
        return True  # its forward lays its parts out: see ``Cut``
    args, kwargs = tree_map(partial(_beside, weight), (args, kwargs))
    own = forward(module, *args, **kwargs)
    if own.shape != y.shape:
        return False
    off = (own.detach().to(y.device).float() - y.detach().float()).norm()
    return not bool(off > _ENOUGH * y.detach().float().norm())


def _beside(weight: Tensor, given: Any) -> Any:  # noqa: ANN401
    """Return what was given on the weight's device, where a guest's forward has moved it."""
    return given.to(weight.device) if isinstance(given, Tensor) else given
