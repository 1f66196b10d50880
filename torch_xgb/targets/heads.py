"""The modules trained in full beside the boosters: named by the user, or found."""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Iterable, Iterator

from torch import nn

from torch_xgb.targets.backbones import bare_of, heads_of, is_backbone
from torch_xgb.targets.embeddings import Embeddings
from torch_xgb.targets.names import Names, matcher
from torch_xgb.targets.structure import after_blocks, holds, outside_blocks

__all__ = [
    "find_heads",
    "left_out",
    "named_modules",
    "unnamed",
    "warn_of_frozen",
    "warn_of_unnamed",
]

Named = tuple[str, nn.Module]

_SHOWN = 6  # names in a warning
# A second body beside a pretrained one is of its order of size; a head is not.
_SECOND_BODY = 0.25


def named_modules(model: nn.Module, modules_to_save: Names) -> dict[str, nn.Module]:
    """Return the modules that ``modules_to_save`` names.

    Its endings end at a dot, as those of ``target_modules`` do; PEFT's "head" is "lm_head" too.

    Raises:
        TypeError: If it is neither string nor list of strings.
        ValueError: If it is no regular expression, or an entry matches no module with parameters.
    """
    matcher(modules_to_save, "modules_to_save")
    listed = not isinstance(modules_to_save, str)
    saved: dict[str, nn.Module] = {}
    held = {n: m for n, m in model.named_modules() if any(True for _ in m.parameters())}
    for entry in (modules_to_save,) if isinstance(modules_to_save, str) else modules_to_save:
        matches = matcher([entry] if listed else entry, "modules_to_save")
        found = {n: m for n, m in held.items() if matches(n)}
        if not found:
            known = ", ".join(n for n, _ in model.named_children() if n in held)
            raise ValueError(
                f"modules_to_save: no module with parameters matches {entry!r}; top level: {known}"
            )
        deeper = [n for n in found if n != entry and not n.startswith(f"{entry}.")]
        if listed and entry in found and deeper:
            warnings.warn(
                f"modules_to_save: {entry!r} is a module's name, and the ending of "
                f"{_listed(deeper)}: all of them are trained in full, as with PEFT. A string, "
                f"{re.escape(entry)!r}, is a regular expression for whole names: that one alone",
                stacklevel=5,
            )
        saved |= found
    return saved


def find_heads(model: nn.Module, blocks: Container[nn.Module]) -> dict[str, nn.Module]:
    """Return what of a model was made for a run like this one, and is trained in full.

    Of a model of transformers, timm or torchvision its task head, and what ``from_pretrained`` made
    because the checkpoint did not hold it; of somebody's own module around such a model, whatever
    is outside it; of any other model with repeated blocks, the maps that follow them. Never an
    embedding or an output embedding, nor what was frozen by hand in a model that is not.

    Args:
        model: The model.
        blocks: Its repeated blocks.
    """
    return dict(_not_frozen(model, _around(model, "", blocks)))


def left_out(model: nn.Module, blocks: Container[nn.Module]) -> dict[str, nn.Module]:
    """Return the maps in no block that may be new: all of a model of no known library.

    In a pretrained model they were pretrained as its blocks were, and stay frozen as their weights
    do; so do output embeddings anywhere, and what was frozen by hand.
    """
    if holds(model, is_backbone) or not any(p.requires_grad for p in model.parameters()):
        return {}
    return dict(_not_frozen(model, outside_blocks(model, blocks)))


def unnamed(
    model: nn.Module, blocks: Container[nn.Module], everything: bool
) -> dict[str, nn.Parameter]:
    """Return the Parameters that may be new beside the blocks, and are in no module of their own.

    They belong to a module that holds the blocks too, or were made for a task in a library's model.

    Args:
        model: The model.
        blocks: Its repeated blocks.
        everything: Whether also of a model without a pretrained one inside.
    """
    if not everything and not holds(model, is_backbone):
        return {}
    found = {name: p for name, p in _bare(model, "", blocks) if p.requires_grad}
    embeddings = Embeddings(model)
    return {name: p for name, p in found.items() if not embeddings.hold(p)}


def _bare(
    module: nn.Module, prefix: str, blocks: Container[nn.Module]
) -> Iterator[tuple[str, nn.Parameter]]:
    own: Iterable[tuple[str, nn.Parameter | None]] = ()
    children: Iterable[Named] = ()
    if is_backbone(module):
        own = bare_of(module).items()
    elif module not in blocks and holds(module, blocks.__contains__):
        own, children = module._parameters.items(), module.named_children()
    yield from ((prefix + key, parameter) for key, parameter in own if parameter is not None)
    for key, child in children:
        yield from _bare(child, f"{prefix}{key}.", blocks)


def warn_of_unnamed(names: list[str]) -> None:
    """Warn, once, of Parameters beside the blocks that stay frozen, if there are any."""
    if names:
        warnings.warn(
            f"outside the repeated blocks these Parameters stay frozen: {_listed(names)}. "
            "modules_to_save names modules, and they are in none of their own: keep each in one, "
            "as in self.w = nn.ParameterList([nn.Parameter(…)]), and name that; or, in a class "
            "that is not yours, call requires_grad_(True) on them once the optimizer is built, and "
            "give them to its add_param_group(); exclude_modules or modules_to_save=[] leaves them "
            "frozen silently",
            stacklevel=5,
        )


def _not_frozen(model: nn.Module, named: Iterable[Named]) -> Iterator[Named]:
    """Leave out what was frozen by hand, in a model that is not."""
    by_hand = any(p.requires_grad for p in model.parameters())
    for name, module in named:
        if not by_hand or any(p.requires_grad for p in module.parameters()):
            yield name, module


def warn_of_frozen(names: Iterable[str], trained: Iterable[str]) -> None:
    """Warn, once, of maps outside the blocks that stay frozen, if there are any.

    Args:
        names: Theirs.
        trained: Those of the modules trained in full, which are to be named beside them.
    """
    if names := list(names):
        warnings.warn(
            f"outside the repeated blocks these stay frozen: {_listed(names)}. Train them in full "
            f"by modules_to_save=[{_listed([*names, *trained])}], or have linear maps adapted by "
            "naming them in target_modules; exclude_modules or modules_to_save=[] leaves them "
            "frozen silently",
            stacklevel=5,
        )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names[:_SHOWN]) + ", …" * (len(names) > _SHOWN)


def _around(module: nn.Module, name: str, blocks: Container[nn.Module]) -> Iterator[Named]:
    """What is outside the pretrained models in a module, and their own heads."""
    prefix = f"{name}." if name else ""
    if is_backbone(module):
        heads: Iterable[Named] = heads_of(module, blocks).items()
        yield from ((prefix + inner, head) for inner, head in heads)
    elif not holds(module, is_backbone):
        heads = after_blocks(module, blocks) if holds(module, blocks.__contains__) else ()
        yield from ((prefix + inner, head) for inner, head in heads)
    else:
        bodies = [child for child in module.children() if holds(child, is_backbone)]
        pretrained = {id(p): p.numel() for child in bodies for p in child.parameters()}
        for child_name, child in module.named_children():
            if child in bodies:
                yield from _around(child, prefix + child_name, blocks)
            else:
                yield from _beside(child, prefix + child_name, blocks, pretrained)


def _beside(
    module: nn.Module, name: str, blocks: Container[nn.Module], pretrained: dict[int, int]
) -> Iterator[Named]:
    """A module beside a pretrained one: new in full, but for what the two share."""
    parameters = list(module.parameters())
    size = sum(p.numel() for p in parameters)
    if holds(module, blocks.__contains__) and size > _SECOND_BODY * sum(pretrained.values()):
        yield from _around(module, name, blocks)
    elif any(id(p) in pretrained for p in parameters):
        for child_name, child in module.named_children():
            yield from _beside(child, f"{name}.{child_name}", blocks, pretrained)
    elif parameters:
        yield name, module
