"""The repeated blocks of a model: what the papers call its layers.

Found by structure alone. A stack is an ``nn.ModuleList`` or ``nn.Sequential`` whose elements repeat
a class and hold linear maps, an ``nn.ModuleList`` of descendants of one class, or an
``nn.ModuleDict`` or any module whose numbered children do (``block_0``, ``block_1``); its elements
are blocks. Where an element is itself little more than another stack (the stages of a Swin, a group
of shared layers in ALBERT, the encoder in a list of encoders), the inner elements are the blocks;
where much of it lies outside inner stacks (a mixture-of-experts block), it is one block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from torch import nn

__all__ = ["find_blocks"]

Predicate = Callable[[nn.Module], bool]

# A downsampling projection in a stage, or a pooler beside an encoder, makes no block of it.
_STRAY_LINEARS = 1


def find_blocks(model: nn.Module, is_linear: Predicate) -> list[tuple[str, nn.Module]]:
    """Return the blocks of a model with their names, in the order of definition.

    Args:
        model: Any module; shared modules are met once, under their first name.
        is_linear: Tells which modules are linear maps; a block holds at least one and is none.

    Returns:
        ``(name, block)`` pairs, e.g. ``("encoder.layer.3", BertLayer)``; empty for a model without
        repeated blocks.

    Example:
        >>> blocks = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)]
        >>> model = nn.Sequential(nn.Linear(4, 4), *blocks)
        >>> [name for name, _ in find_blocks(model, lambda m: isinstance(m, nn.Linear))]
        ['1', '2']
    """
    return list(_walk(model, "", is_linear))


def _walk(module: nn.Module, name: str, is_linear: Predicate) -> Iterator[tuple[str, nn.Module]]:
    elements = _stack(module, is_linear)
    inner = {
        key: list(_walk(child, _join(name, key), is_linear))
        for key, child in module.named_children()
    }
    staged = all(_is_stage(m, inner[key], is_linear) for key, m in elements.items())
    for key in inner:
        if key in elements and not staged:
            yield _join(name, key), elements[key]
        else:
            yield from inner[key]


def _stack(module: nn.Module, is_linear: Predicate) -> dict[str, nn.Module]:
    """Return the elements of a stack by their names in it, or nothing when the module is none."""
    elements = {
        k: m for k, m in module.named_children() if not is_linear(m) and _count(m, is_linear)
    }
    if isinstance(module, nn.ModuleList):
        # A hybrid stack mixes classes; a list of one is a model of one layer, or one shared by all.
        kinds = [type(element) for element in elements.values()]
        repeats = len(kinds) == 1 or len(set(kinds)) < len(kinds) or _are_kin(kinds)
        return elements if repeats else {}
    row = isinstance(module, nn.Sequential)
    series = {key: "" if row else _series(key, element) for key, element in elements.items()}
    of_a_kind: Counter[tuple[type, str | None]] = Counter(
        (type(elements[k]), s) for k, s in series.items() if s is not None
    )
    return {k: m for k, m in elements.items() if of_a_kind[type(m), series[k]] > 1}


def _are_kin(kinds: list[type[nn.Module]]) -> bool:
    """Tell classes that descend from one that is not torch's: layers of two kinds, each once."""
    shared = set.intersection(*(set(kind.__mro__) for kind in kinds)) if kinds else set()
    return any(issubclass(c, nn.Module) and not c.__module__.startswith("torch.") for c in shared)


def _series(name: str, element: nn.Module) -> str | None:
    """Return what a numbered name is before its number: the blocks of a series share it."""
    if isinstance(element, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return None  # a few maps in a row, or a stage with blocks inside
    numbered = re.fullmatch(r"(.*?)\d+", name)
    return None if numbered is None else numbered[1]


def _is_stage(
    element: nn.Module, blocks: list[tuple[str, nn.Module]], is_linear: Predicate
) -> bool:
    inside = sum(_count(block, is_linear) for _, block in blocks)
    return bool(blocks) and _count(element, is_linear) - inside <= _STRAY_LINEARS


def _count(module: nn.Module, is_linear: Predicate) -> int:
    return sum(is_linear(m) for m in module.modules())


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
