"""FLOPs of matrix products, as torch counts them and where it does not."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Shape = Sequence[int]


def _addmm_flop(y: Shape, a: Shape, b: Shape, **_: Any) -> int:
    """Count a product (m, k) by (k, n) added to y."""
    return 2 * a[0] * a[1] * b[1]


def _addcmul_flop(y: Shape, *_: Any, **__: Any) -> int:
    """Count a product added to y entry by entry, as of rank 1."""
    return 2 * math.prod(y)


def _mul_flop(a: Shape, b: object, *_: Any, **__: Any) -> int:
    """Count a column times a row, a matrix product of one inner column; of others nothing."""
    outer = isinstance(b, Sequence) and len(b) == 1 < len(a) and a[-1] == 1
    return 2 * math.prod(a) * math.prod(b) if outer else 0  # type: ignore[arg-type]


def _attention_flop(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flop(g: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(g, q, k, v)


_UNKNOWN_TO_TORCH: dict[Any, Callable[..., int]] = {
    torch.ops.aten.addmm_: _addmm_flop,
    torch.ops.aten.addcmul_: _addcmul_flop,
    torch.ops.aten.mul: _mul_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
}


def count_flops(run: Callable[[], object]) -> Counter[str]:
    """Count the FLOPs of all matrix products during ``run``, by operator."""
    with FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH) as counter:
        run()
    return Counter({str(op): n for op, n in counter.get_flop_counts().get("Global", {}).items()})
