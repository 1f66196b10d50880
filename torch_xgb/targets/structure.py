"""What stands around the repeated blocks of a model, read off the order in which it was built."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from torch_xgb.targets.embeddings import Embeddings
from torch_xgb.targets.layers import is_linear

__all__ = ["after_blocks", "holds", "is_map", "outside_blocks"]

Named = tuple[str, nn.Module]

_NO_MAPS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def after_blocks(model: nn.Module, blocks: Container[nn.Module]) -> Iterator[Named]:
    """Yield the modules with maps that follow blocks: the heads of a model of any origin.

    Embeddings and output embeddings are none, nor is a passage between the stages of one container,
    nor one without linear maps, as of convolutions, between any.

    Args:
        model: The model.
        blocks: Its repeated blocks.

    Example:
        >>> body = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        >>> model = nn.ModuleDict({"embed": nn.Linear(2, 4), "body": body, "head": nn.Linear(4, 3)})
        >>> [name for name, _ in after_blocks(model, list(body))]
        ['head']
    """
    embeddings = Embeddings(model)
    seen = False

    def walk(module: nn.Module, prefix: str) -> Iterator[Named]:
        nonlocal seen
        children = list(module.named_children())
        bodies = [holds(child, blocks.__contains__) for _, child in children]
        for position, (name, child) in enumerate(children):
            row = isinstance(module, (nn.Sequential, nn.ModuleList)) or not holds(child, is_linear)
            passage = row and any(bodies[position:])
            if bodies[position]:
                seen = True
                if child not in blocks:
                    yield from walk(child, f"{prefix}{name}.")
            elif seen and not passage:
                yield from _heads(child, prefix + name, embeddings)

    yield from walk(model, "")


def _heads(module: nn.Module, name: str, embeddings: Embeddings) -> Iterator[Named]:
    if embeddings.within(module) or holds(module, embeddings.are_put_out_by):
        for child_name, child in module.named_children():
            yield from _heads(child, f"{name}.{child_name}", embeddings)
    elif holds(module, is_map):
        yield name, module


def outside_blocks(model: nn.Module, blocks: Container[nn.Module]) -> Iterator[Named]:
    """Yield the maps in no block, but for output embeddings."""
    inside = {inner for m in model.modules() if m in blocks for inner in m.modules()}
    embeddings = Embeddings(model)
    for name, module in model.named_modules():
        around = module in inside or holds(module, blocks.__contains__)
        if is_map(module) and not around and not embeddings.are_put_out_by(module):
            yield name, module


def is_map(module: nn.Module) -> bool:
    """Tell a linear map, or another with a matrix of its own: a convolution, a recurrent net."""
    if is_linear(module):
        return True
    own = [p for p in module._parameters.values() if p is not None and not is_lazy(p)]
    return not isinstance(module, _NO_MAPS) and any(p.ndim > 1 for p in own)


def holds(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> bool:
    """Tell a module that is wanted, or has one inside that is."""
    return any(wanted(inner) for inner in module.modules())
