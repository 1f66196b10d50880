"""One gradient of an input that a linear map and its pair share.

Autograd would keep the pair's share of it in a tensor of the input's size, and read and write three
of those to add it to the map's own. Here it is added to the map's own, in place, as that comes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from torch_xgb.formulas.unrounded import unrounded

__all__ = ["Joint", "joint_of"]

# The products whose gradient of a left factor is fresh memory, and where among theirs it stands.
_PRODUCTS = {"AddmmBackward0": 1, "MmBackward0": 0}
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0")


class Joint:
    """What is added to the gradient that a map passes to its input, in the backward pass under way.

    Attributes:
        share: gB ``(rows, r)`` and A ``(r, in)``, whose product is the pair's share; None if the
            share goes its own way.
    """

    def __init__(self, place: int) -> None:
        self.share: tuple[Tensor, Tensor] | None = None
        self._place = place

    def __call__(self, gradients: tuple[Tensor | None, ...], _: object) -> None:
        """Add it to what the map's product has computed."""
        share, self.share = self.share, None
        dx = gradients[self._place]
        if share is not None and dx is not None:
            with unrounded(dx):
                add_product(dx, *share, 1.0)


def joint_of(y: Tensor, x: Tensor) -> Joint | None:
    """Find where a map passes the gradient of its output on to its input.

    The graph says it: y is a product of matrices, or a view of one, whose left factor is x, or a
    view of it.

    Args:
        y: The map's fresh output ``(..., out_features)``.
        x: Its input ``(..., in_features)``.

    Returns:
        What the pair's share is put into before the product's turn comes in backward; None where
        the map is another computation, or x wants no gradient.
    """
    if y.grad_fn is None or not x.requires_grad:
        return None
    node = _through_views(y.grad_fn)
    place = _PRODUCTS.get(node.name())
    if place is None:
        return None
    source, number = node.next_functions[place]
    if source is not None and source is not x.grad_fn and source.name() in _VIEWS:
        source, number = source.next_functions[0]
    leaf = getattr(source, "variable", None) is x
    if not leaf and (source is not x.grad_fn or number != x.output_nr):
        return None
    joint = Joint(place)
    node.register_hook(joint)
    return joint


def add_product(y: Tensor, h: Tensor, rows: Tensor, s: float) -> None:
    """Add s·h·rows to y: of rank 1 entry by entry, as memory is read and written.

    A matrix product with one inner column takes up to twice that, and in bfloat16 on a CPU without
    instructions for it a hundred times.
    """
    if len(rows) == 1:
        y.addcmul_(h, rows, value=s)
    else:
        y.addmm_(h, rows, alpha=s)


def _through_views(node: Node) -> Node:
    while node.name() in _VIEWS:
        below: Any = node.next_functions[0][0]
        node = below
    return node
