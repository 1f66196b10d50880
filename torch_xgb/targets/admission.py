"""Whether a model can be adapted at all: said before anything of it is touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_xgb.weights.dtensors import is_dtensor
from torch_xgb.weights.places import Whole, is_plain, place_of
from torch_xgb.weights.sharded import is_sharded
from torch_xgb.weights.wrappers import refuse_fsdp1

__all__ = ["admit"]

Obstacle = tuple[Iterable[str], str, str]  # names, what is wrong with them, what to do

_QUANTISERS = (
    "bitsandbytes.",
    "torchao.",
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
)


def admit(model: nn.Module) -> None:
    """Refuse a model whose weights cannot be adapted or merged into.

    Raises:
        TypeError: If ``model`` is no ``nn.Module``.
        RuntimeError: If it is wrapped for data parallelism already, or something in it is, or if
            FSDP1 has it.
        ValueError: If it carries PEFT adapters, quantised weights, weights sharded by anything but
            FSDP2 or a registered place, or parameters on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, {_given(model)}")
    _refuse_wrapped(model)
    refuse_fsdp1(model)
    for names, what, remedy in (*_modules(model), *_parameters(model)):
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


def _modules(model: nn.Module) -> Iterator[Obstacle]:
    named = list(model.named_modules())
    yield (
        (name for name, m in named if type(m).__module__.split(".")[0] == "peft"),
        "carries PEFT adapters",
        "merge them first: model = peft_model.merge_and_unload()",
    )
    yield (
        (name for name, m in named if _is_quantised(m)),
        "is quantised",
        "quantising anew at each merge rounds almost all of it away. Train the model in bfloat16, "
        "float16 or float32 and quantise what finalize() returns; or keep the quantised one for "
        "inference, train with record=, and load the adapter that chain.to_peft(folder) writes "
        "beside it",
    )


def _parameters(model: nn.Module) -> Iterator[Obstacle]:
    named, sharded = list(model.named_parameters()), is_sharded(model)
    yield (
        (n for n, p in named if not p.is_meta and not (sharded if is_dtensor(p) else is_plain(p))),
        "has weights that are neither plain tensors nor FSDP2's shards (another sharding or tensor "
        "parallelism)",
        "build the optimizer on a model of plain tensors, or shard it by fully_shard",
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


def _is_quantised(module: nn.Module) -> bool:
    # By name, since a weight that bitsandbytes has not quantised yet is a floating one, and one of
    # torchao's passes for one.
    classes = (type(module), *(type(p) for p in module._parameters.values()))
    if any(cls.__module__.startswith(_QUANTISERS) for cls in classes):
        return True
    if any(hasattr(module, name) for name in ("qweight", "W_q")):
        return True
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_complex():
        return False
    return not weight.is_floating_point() or weight.element_size() < 2
