"""Models that come pretrained: known by what their libraries' models all carry, with their heads.

Whatever a model class brings itself was pretrained with it, but for the parts it says are of a task
of its user's, and those that a checkpoint did not hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator

from torch import nn

from torch_xgb.targets.embeddings import Embeddings
from torch_xgb.targets.structure import after_blocks, holds

__all__ = ["bare_of", "heads_of", "is_backbone"]

Named = tuple[str, nn.Module]


def is_backbone(module: nn.Module) -> bool:
    """Tell a model of transformers, timm, torchvision or diffusers."""
    return any(known(module) for known in _HEADS)


def heads_of(model: nn.Module, blocks: Container[nn.Module]) -> dict[str, nn.Module]:
    """Return what of a library's model is made for a task, by its name in the model.

    Args:
        model: One that ``is_backbone``.
        blocks: The repeated blocks.
    """
    found = next(heads for known, heads in _HEADS.items() if known(model))
    return dict(found(model, blocks))


def bare_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the Parameters that may be made for a task and are in no module of their own.

    As the head of a Tapas is; of transformers' models alone, and no bias over a vocabulary.

    Args:
        model: One that ``is_backbone``.
    """
    loaded = _loaded(model) if _of_transformers(model) else set()
    embeddings = Embeddings(model)
    own = model._parameters if _of_transformers(model) and _is_of_a_task(model) else {}
    named = model.named_parameters() if loaded else own.items()
    return {
        name: p
        for name, p in named
        if p is not None
        and id(p) not in loaded
        and p.is_floating_point()
        and not (embeddings.hold(p) or embeddings.bias(p))
    }


def _of_transformers(model: nn.Module) -> bool:
    return isinstance(getattr(model, "base_model_prefix", None), str) and hasattr(
        model, "get_output_embeddings"
    )


def _of_timm(model: nn.Module) -> bool:
    return hasattr(model, "get_classifier") and hasattr(model, "reset_classifier")


def _of_torchvision(model: nn.Module) -> bool:
    return type(model).__module__.startswith("torchvision.models.")


def _of_diffusers(model: nn.Module) -> bool:
    return hasattr(model, "register_to_config") and hasattr(model, "config_name")


def _transformers_heads(model: nn.Module, blocks: Container[nn.Module]) -> Iterator[Named]:
    made_new = dict(_made_new(model, blocks))
    for name, module in _task_heads(model, blocks):
        if not any(name.startswith(f"{outer}.") for outer in made_new):
            yield name, module
    yield from made_new.items()


def _task_heads(model: nn.Module, blocks: Container[nn.Module]) -> Iterator[Named]:
    """What stands beside the base model, or of a task's model without one, beside its bodies."""
    embeddings = Embeddings(model)
    base = model._modules.get(str(model.base_model_prefix))
    if not _is_of_a_task(model):
        return
    inside = {id(p) for p in base.parameters()} if base is not None else set()
    output = model.get_output_embeddings()  # type: ignore[operator]
    generates = base is None and getattr(model, "can_generate", bool)()
    for name, child in model.named_children():
        own = any(id(p) not in inside for p in child.parameters())
        body = child is base or (base is None and _is_body(child, blocks))
        speaks = any(m is output or embeddings.are_put_out_by(m) for m in child.modules())
        if own and not (body or speaks or generates):
            yield name, child


def _is_of_a_task(model: nn.Module) -> bool:
    based = model._modules.get(str(model.base_model_prefix)) is not None
    return based or re.search("For[A-Z]", type(model).__name__) is not None


def _is_body(module: nn.Module, blocks: Container[nn.Module]) -> bool:
    return any(
        m in blocks or isinstance(m, nn.Embedding) or _of_transformers(m) for m in module.modules()
    )


def _made_new(model: nn.Module, blocks: Container[nn.Module]) -> Iterator[Named]:
    """What ``from_pretrained`` had to make because the checkpoint did not hold it."""
    loaded, embeddings = _loaded(model), Embeddings(model)
    if not loaded:
        return

    def is_new(module: nn.Module) -> bool:
        parameters = list(module.parameters())
        return bool(parameters) and not any(
            id(p) in loaded or embeddings.hold(p) or not p.is_floating_point() for p in parameters
        )

    yield from _outermost(
        model,
        lambda m: is_new(m) and not holds(m, blocks.__contains__) and not embeddings.within(m),
    )


def _loaded(model: nn.Module) -> set[int]:
    """Return the Parameters that ``from_pretrained`` has loaded, or none if that is not known.

    transformers marks every one that it loads. Where most of a model carries no mark, the marks
    went with a copy or a conversion, and say nothing.
    """
    loaded = {id(p) for p in model.parameters() if getattr(p, "_is_hf_initialized", False)}
    embeddings = Embeddings(model)
    counted = [p for p in model.parameters() if not embeddings.hold(p)]
    missing = sum(p.numel() for p in counted if id(p) not in loaded)
    return loaded if 2 * missing <= sum(p.numel() for p in counted) else set()


def _outermost(
    module: nn.Module, wanted: Callable[[nn.Module], bool], prefix: str = ""
) -> Iterator[Named]:
    for name, child in module.named_children():
        if wanted(child):
            yield prefix + name, child
        else:
            yield from _outermost(child, wanted, f"{prefix}{name}.")


def _timm_heads(model: nn.Module, blocks: Container[nn.Module]) -> Iterator[Named]:
    given = model.get_classifier()  # type: ignore[operator]
    classifiers = given if isinstance(given, (tuple, list)) else (given,)
    for name, module in model.named_modules():
        if any(module is one for one in classifiers) and any(True for _ in module.parameters()):
            yield name, module


def _no_heads(model: nn.Module, blocks: Container[nn.Module]) -> Iterator[Named]:
    return iter(())


_HEADS: dict[
    Callable[[nn.Module], bool], Callable[[nn.Module, Container[nn.Module]], Iterator[Named]]
] = {
    _of_transformers: _transformers_heads,
    _of_timm: _timm_heads,
    _of_torchvision: after_blocks,
    _of_diffusers: _no_heads,
}
