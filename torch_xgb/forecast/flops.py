"""FLOPs of matrix products that torch does not count, by their shapes.

Products in place and in groups, those of one inner column that are written entry by entry, and the
CPU's attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["UNKNOWN_TO_TORCH"]

Shape = Sequence[int]


def _product(y: Shape, a: Shape, b: Shape, **_: object) -> int:
    return 2 * a[0] * a[1] * b[1]


def _entries(y: Shape, *_: object, **__: object) -> int:
    return 2 * math.prod(y)  # added entry by entry, as of rank 1


def _outer(a: Shape, b: Shape | float, *_: object, **__: object) -> int:
    # A column times a row, which is a product of one inner column; other factors are none.
    if not isinstance(b, Sequence) or not len(b) == 1 < len(a) or a[-1] != 1:
        return 0
    return 2 * math.prod(a) * b[0]


def _attention(q: Shape, k: Shape, v: Shape, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_backward(g: Shape, q: Shape, k: Shape, v: Shape, *_: object, **__: object) -> int:
    return int(sdpa_backward_flop_count(g, q, k, v))


def _grouped(a: Shape, b: Shape, *_: object, **__: object) -> int:
    # Experts side by side: of two matrices, what is shared or contracted is cut into groups.
    return 2 * a[-2] * a[-1] * b[-1] * (a[0] if len(a) == len(b) == 3 else 1)


_aten = torch.ops.aten
UNKNOWN_TO_TORCH: dict[Any, Callable[..., int]] = {
    _aten._grouped_mm: _grouped,
    _aten.addmm_: _product,
    _aten.addcmul_: _entries,
    _aten.mul: _outer,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
