"""Hooks in a module, found by whom they call.

A handle that an interrupt has kept from being noted is lost; who looks for the hook itself enters
once, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from torch import nn

__all__ = ["calls", "hooks_in", "unhook"]


def hooks_in(module: nn.Module) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Return whom each of a module's hooks calls, of a method its object; and what removes it."""
    for kind in (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._state_dict_hooks,
        module._state_dict_pre_hooks,
        module._load_state_dict_pre_hooks,
        module._load_state_dict_post_hooks,
    ):
        for key, hook in list(kind.items()):
            found = getattr(hook, "hook", hook)  # torch wraps some
            yield getattr(found, "__self__", found), _remover(module, kind, key)


def calls(module: nn.Module, who: object) -> int:
    """Return how many of a module's hooks call somebody."""
    return sum(found is who for found, _ in hooks_in(module))


def unhook(module: nn.Module, who: object) -> None:
    """Remove a module's hooks that call somebody."""
    for found, remove in hooks_in(module):
        if found is who:
            remove()


def _remover(module: nn.Module, kind: MutableMapping[int, Any], key: int) -> Callable[[], None]:
    def remove() -> None:
        for place in (
            module._forward_hooks_with_kwargs,
            module._forward_pre_hooks_with_kwargs,
            module._forward_hooks_always_called,
            kind,  # last: by it the hook is found
        ):
            place.pop(key, None)

    return remove
