"""The repeated blocks of a model: what the papers call its layers.

Found by structure alone. A stack is an ``nn.ModuleList`` or ``nn.Sequential`` whose elements repeat
a class and hold linear maps; its elements are blocks. Where an element is itself little more than
another stack (the stages of a Swin, a group of shared layers in ALBERT, the encoder in a list of
encoders), the inner elements are the blocks; where much of it lies outside inner stacks (a
mixture-of-experts block), it is one block.
"""

from __future__ import annotations

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
    if not elements:
        for child_name, child in module.named_children():
            yield from _walk(child, _join(name, child_name), is_linear)
        return
    inner = [list(_walk(element, _join(name, key), is_linear)) for key, element in elements]
    if all(
        _is_stage(element, blocks, is_linear)
        for (_, element), blocks in zip(elements, inner, strict=True)
    ):
        for blocks in inner:
            yield from blocks
    else:
        yield from ((_join(name, key), element) for key, element in elements)


def _stack(module: nn.Module, is_linear: Predicate) -> list[tuple[str, nn.Module]]:
    """Return the elements of a stack, or nothing when the module is none."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return []
    elements = [
        (k, m) for k, m in module.named_children() if not is_linear(m) and _count(m, is_linear)
    ]
    counts = Counter(type(element) for _, element in elements)
    if isinstance(module, nn.ModuleList):
        # A hybrid stack mixes classes; a list of one is a model of one layer, or one shared by all.
        repeats = len(elements) == 1 or any(count > 1 for count in counts.values())
        return elements if repeats else []
    return [(key, element) for key, element in elements if counts[type(element)] > 1]


def _is_stage(
    element: nn.Module, blocks: list[tuple[str, nn.Module]], is_linear: Predicate
) -> bool:
    inside = sum(_count(block, is_linear) for _, block in blocks)
    return bool(blocks) and _count(element, is_linear) - inside <= _STRAY_LINEARS


def _count(module: nn.Module, is_linear: Predicate) -> int:
    return sum(is_linear(m) for m in module.modules())


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
