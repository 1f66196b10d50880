"""Linear maps whose weight is quantised: boosters stand beside them, as none can be merged in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from torch_xgb.settings import Settings

__all__ = ["base_tensors", "check_beside", "dtype_of", "is_quantised", "is_quantised_linear"]

_QUANTISERS = (
    "bitsandbytes.",
    "torchao.",
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
)


def is_quantised(module: nn.Module) -> bool:
    """Tell a module whose weight is quantised, or will be once it is moved to its device."""
    # By name, since a weight that bitsandbytes has not quantised yet is a floating one, and one of
    # torchao's passes for one.
    classes = (type(module), *(type(p) for p in module._parameters.values()))
    if any(cls.__module__.startswith(_QUANTISERS) for cls in classes):
        return True
    if any(hasattr(module, name) for name in ("qweight", "W_q")):
        return True
    return _is_narrow(getattr(module, "weight", None))


def is_quantised_linear(module: nn.Module) -> bool:
    """Tell a quantised linear map that knows how to compute with its weight.

    ``nn.Linear``'s own forward does with a tensor of a class that brings its products along
    (torchao); another's with what it keeps (bitsandbytes' ``Linear4bit`` and ``Linear8bitLt``).
    """
    if not isinstance(module, nn.Linear) or not is_quantised(module):
        return False
    weight = module._parameters.get("weight")
    if weight is None or weight.is_meta:
        return False
    if type(module).forward is nn.Linear.forward:
        return not _is_narrow(weight)
    return _is_narrow(weight)


def check_beside(settings: Settings, heads: Mapping[str, nn.Module]) -> None:
    """Refuse what does not go with a base that stays as it is.

    Args:
        settings: What the run was told.
        heads: The modules trained in full, by name.

    Raises:
        ValueError: With the setting's name, and why.
    """
    whys = {
        "adapter": (settings.adapter != "lora", "it edits outputs, by products with the weight"),
        "bias": (settings.bias != "none", "a bias would be merged into the base"),
        "carry": (
            settings.carry is not None,
            "recompressed, a sum holds no pair to take out again",
        ),
        "target_parameters": (
            bool(settings.target_parameters),
            "they would be merged into the base",
        ),
        "record": (bool(settings.record), "a ledger keeps whole weights; save_adapter() does not"),
    }
    for name, (given, why) in whys.items():
        if given:
            raise ValueError(
                f"{name}={getattr(settings, name)!r} does not go with a quantised model: {why}. "
                "Leave it out, or train a model of plain weights"
            )
    for name, head in heads.items():
        if any(map(is_quantised, head.modules())):
            raise ValueError(
                f"modules_to_save has {name!r}, which is quantised and cannot be trained: quantise "
                "the model without it (llm_int8_skip_modules of a BitsAndBytesConfig, the filter "
                "of torchao's quantize_)"
            )


def base_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return the plain tensors that a module's weight is made of, by name."""
    weight = module._parameters["weight"]
    yield from _plain("weight", weight)
    scales = getattr(
        getattr(weight, "quant_state", None), "absmax", None
    )  # of bitsandbytes' 4 bits
    yield from _plain("absmax", scales)


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype that a linear map was quantised from, as far as it is known, or its own."""
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    known = (getattr(weight, "quant_state", None), weight, bias)
    dtypes = (getattr(one, "dtype", None) for one in known)
    floating = (d for d in dtypes if isinstance(d, torch.dtype) and d.is_floating_point)
    return next((d for d in floating if d.itemsize > 1), torch.float32)


def _plain(name: str, tensor: object) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(tensor, Tensor):
        return
    if hasattr(tensor, "__tensor_flatten__"):
        for inner in tensor.__tensor_flatten__()[0]:
            yield from _plain(f"{name}.{inner}", getattr(tensor, inner))
    else:
        yield name, tensor.detach().as_subclass(Tensor)


def _is_narrow(weight: object) -> bool:
    if not isinstance(weight, Tensor) or weight.is_complex():
        return False
    return not weight.is_floating_point() or weight.element_size() < torch.float16.itemsize
