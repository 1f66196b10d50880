"""Models whose linear maps are quantised: by a stand-in that is always there, or for real."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tiny import Stack, stack


class Int8Linear(nn.Linear):
    """What int8 with a scale a row comes to: the weight is dequantised in each forward."""

    scale: Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> nn.Linear:
        made = cls(linear.in_features, linear.out_features, dtype=linear.weight.dtype)
        W = linear.weight.detach()
        scale = W.abs().amax(1, keepdim=True) / 127
        made.weight = nn.Parameter((W / scale).round().to(torch.int8), requires_grad=False)
        made.register_buffer("scale", scale)
        made.bias = linear.bias
        return made

    @property
    def dequantised(self) -> Tensor:
        return self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantised.to(x.dtype), self.bias)


def _of_bitsandbytes(name: str, **given: object) -> Callable[[nn.Linear], nn.Linear]:
    def make(linear: nn.Linear) -> nn.Linear:
        maps = pytest.importorskip("bitsandbytes").nn
        made = getattr(maps, name)(linear.in_features, linear.out_features, **given)
        made.load_state_dict(linear.state_dict())
        return made.to("cpu")  # it quantises when it is moved

    return make


def _of_torchao(linear: nn.Linear) -> nn.Linear:
    found = pytest.importorskip("torchao.quantization")
    found.quantize_(linear, found.Int8WeightOnlyConfig())
    return linear


QUANTISERS: dict[str, Callable[[nn.Linear], nn.Linear]] = {
    "stand-in": Int8Linear.of,
    "Linear4bit": _of_bitsandbytes("Linear4bit", quant_type="nf4", compute_dtype=torch.float32),
    "Linear8bitLt": _of_bitsandbytes("Linear8bitLt", has_fp16_weights=False),
    "torchao": _of_torchao,
}


def quantised(model: nn.Module, kind: str = "stand-in") -> nn.Module:
    """Quantise the linear maps of a model's blocks, in place."""
    for block in model.blocks:
        for name, child in list(block.named_children()):
            if isinstance(child, nn.Linear):
                setattr(block, name, QUANTISERS[kind](child))
    return model


def quantised_stack(kind: str = "stand-in", dtype: torch.dtype = torch.float64) -> Stack:
    """A ``tiny.Stack`` whose blocks are quantised; packages' own compute in float32."""
    model = stack(3, dtype=dtype, hiddens=(10, 10, 10))
    return quantised(model, kind)  # type: ignore[return-value]
