"""Whether a model can be adapted at all: said before anything of it is touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from torch_xgb.targets.quantised import is_quantised, is_quantised_linear
from torch_xgb.weights.places import Whole, is_plain, place_of
from torch_xgb.weights.sharded import is_parallel, is_sharded
from torch_xgb.weights.wrappers import refuse_fsdp1

__all__ = ["admit"]

Obstacle = tuple[Iterable[str], str, str]  # names, what is wrong with them, what to do


def admit(model: nn.Module) -> None:
    """Refuse a model whose weights cannot be adapted or merged into.

    Raises:
        TypeError: If ``model`` is no ``nn.Module``.
        RuntimeError: If it is wrapped for data parallelism already, or something in it is, or if
            FSDP1 has it; or inside ``torch.inference_mode()``.
        ValueError: If it carries PEFT adapters, quantised weights that no booster can stand beside,
            weights shared out in a way that merges cannot follow, or parameters that are on the
            meta device, made in inference mode or not made yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, {_given(model)}")
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "an optimizer cannot be built inside torch.inference_mode(): what is made there cannot "
            "be trained. Build it outside; torch.no_grad() does no harm"
        )
    _refuse_wrapped(model)
    refuse_fsdp1(model)
    for names, what, remedy in chain(_unmade(model), _modules(model), _parameters(model)):
        if found := list(names):
            first = found[0] or type(model).__name__  # the model itself has no name
            raise ValueError(f"the model {what} ({len(found)} found, first {first!r}); {remedy}")
    for parameter in model.parameters():
        place_of(parameter)  # says so if it is sharded in a way that merges cannot follow


def _refuse_wrapped(model: nn.Module) -> None:
    """Refuse wrappers within: names would have their prefix, and finalize() return them."""
    for name, module in model.named_modules():
        if isinstance(module, (DistributedDataParallel, nn.DataParallel)):
            where = f"the model's {name!r}" if name else "the model"
            ddp = isinstance(module, DistributedDataParallel)
            raise RuntimeError(
                f"{where} is wrapped in {type(module).__name__} already; build the optimizer on "
                "the plain model first, then wrap it"
                + ("; or give the optimizer the wrapper's .module" if ddp else "")
            )


def _given(model: object) -> str:
    if isinstance(model, type):
        return f"got the class {model.__name__}: make one of it, {model.__name__}(…)"
    if isinstance(model, Iterable):
        return (
            f"got a {type(model).__name__}: pass the model itself, not model.parameters(); it is "
            "adapted in place"
        )
    return f"got {type(model).__name__}"


def _unmade(model: nn.Module) -> Iterator[Obstacle]:
    yield (
        (n for n, p in model.named_parameters() if is_lazy(p)),
        "has parameters that its first forward pass is to make",
        "call it once before, on any batch",
    )


def _modules(model: nn.Module) -> Iterator[Obstacle]:
    named = list(model.named_modules())
    yield (
        (name for name, m in named if type(m).__module__.split(".")[0] == "peft"),
        "carries PEFT adapters",
        "leave get_peft_model() out; or merge what is trained, model = model.merge_and_unload()",
    )
    others = [(n, m) for n, m in named if is_quantised(m) and not is_quantised_linear(m)]
    early = [n for n, m in others if isinstance(m, nn.Linear) and _is_bitsandbytes(m)]
    yield (
        early,
        "has linear maps of bitsandbytes that are not quantised yet",
        "move it to its device first, model.to(device), a Linear8bitLt with has_fp16_weights=False",
    )
    yield (
        (n for n, m in others if n not in early and not isinstance(m, nn.Embedding)),
        "is quantised in a way that boosters cannot stand beside",
        "they can beside linear maps of bitsandbytes and torchao, and other subclasses of "
        "nn.Linear that compute with what they keep. Or train the model in bfloat16, float16 or "
        "float32 and quantise what finalize() returns; or keep the quantised one for inference, "
        "train with record=, and load the adapter that chain.to_peft(folder) writes beside it",
    )


def _parameters(model: nn.Module) -> Iterator[Obstacle]:
    named, shared = list(model.named_parameters()), is_sharded(model) or is_parallel(model)
    quantised = [m for m in model.modules() if is_quantised(m)]
    own = {id(p) for module in quantised for p in module._parameters.values()}
    yield (
        (n for n, p in named if shared and id(p) in own),
        "is quantised and sharded over processes",
        "boosters stand beside quantised weights that each process keeps whole: train it under "
        "DistributedDataParallel, or shard a model of plain weights",
    )
    yield (
        (n for n, p in named if id(p) not in own and not p.is_meta and not is_plain(p)),
        "has weights that are neither plain tensors nor DTensors",
        "build the optimizer on a model of plain tensors, or share it out by fully_shard or "
        "parallelize_module",
    )
    yield (
        (n for n, p in named if hasattr(p, "ds_tensor") and type(place_of(p)) is Whole),
        "is partitioned by DeepSpeed's ZeRO-3",
        "import torch_xgb.integrations.deepspeed first",
    )
    yield (
        (n for n, p in named if p.is_meta),
        "has parameters on the meta device",
        "materialise them first, e.g. load the model without device_map or init_empty_weights",
    )
    yield (
        (n for n, p in named if p.is_inference()),
        "has parameters that were made in torch.inference_mode(), and those cannot be trained",
        "make the model, or load its weights, outside of it",
    )


def _is_bitsandbytes(module: nn.Module) -> bool:
    return type(module).__module__.startswith("bitsandbytes.")
