"""The gradient of an input that a map and its pair share."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.formulas.joint_gradient import joint_of
from torch_xgb.formulas.lowrank import add_low_rank


class _Sizes(TorchDispatchMode):
    """Notes how many numbers each operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        found = func(*args, **kwargs or {})
        if isinstance(found, Tensor) and found.data_ptr():
            self.seen.append((func._schema.name, found.numel()))
        return found


def tensors(r: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = (2, 3, 4), (5, 4), (5,), (r, 4), (5, r)
    x, W, c, A, B = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return x.requires_grad_(), W, c, A.requires_grad_(), B.requires_grad_()


def expected(x: Tensor, W: Tensor, A: Tensor, B: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(torch.tanh(x @ (W + 0.7 * B @ A).T).sum(), [x, A, B]))


def test_found_in_products_of_the_input_alone() -> None:
    x, W, c, *_ = tensors()
    linear, rows = nn.functional.linear, x.reshape(-1, 4)
    for y, given in (
        (linear(x, W), x),
        (linear(x, W, c), x),
        (linear(x[0], W), x[0]),
        (linear(rows, W, c), rows),
        (torch.addmm(c, x.view(-1, 4), W.T).view(2, 3, 5), x),  # as transformers' Conv1D
    ):
        if given is x or given is rows:
            assert joint_of(y, given) is not None
    doubled = 2 * x
    assert joint_of(linear(doubled, W), x) is None
    assert joint_of(linear(doubled, W), doubled) is not None
    assert joint_of(linear(x, W).tanh(), x) is None
    assert joint_of(linear(x.detach(), W), x.detach()) is None
    assert joint_of(linear(W, x[0]), x[0]) is None


@pytest.mark.parametrize("r", [1, 2])
def test_nothing_of_the_inputs_size_is_made_for_the_pair(r: int) -> None:
    x, W, c, A, B = tensors(r)
    below = x * 1
    made: dict[bool, list[str]] = {}
    for joint in (True, False):
        y = nn.functional.linear(below if joint else 1 * below, W, c)
        y = add_low_rank(y, below, A, B, 0.7)
        with _Sizes() as sizes:
            torch.autograd.grad(y.sum(), below)
        made[joint] = [n for n, size in sizes.seen if size == below.numel() and "view" not in n]
    in_place = "aten::addcmul_" if r == 1 else "aten::addmm_"
    assert made[True] == ["aten::mm", in_place]
    assert len(made[False]) > 3


@pytest.mark.parametrize("r", [1, 2])
def test_passes_of_every_kind_follow_each_other(r: int) -> None:
    """Of the factors alone, of the input, of gradients of gradients, and once more."""
    x, W, _, A, B = tensors(r)
    loss = torch.tanh(add_low_rank(nn.functional.linear(x, W), x, A, B, 0.7)).sum()
    dx, dA, dB = expected(x, W, A, B)
    close = torch.testing.assert_close
    close(torch.autograd.grad(loss, [A, B], retain_graph=True), (dA, dB))
    close(torch.autograd.grad(loss, [x, A, B], create_graph=True), (dx, dA, dB))
    close(torch.autograd.grad(loss, [x], retain_graph=True), (dx,))
    close(torch.autograd.grad(loss, [A], retain_graph=True), (dA,))
    close(torch.autograd.grad(loss, [x, A, B]), (dx, dA, dB))


def test_hooks_see_the_sum() -> None:
    """Those of the input, of the module, and a gradient that is kept."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    settings: Any = {"r": 2, "layers_per_booster": None, "lora_alpha": None}
    optimizer = BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1, **settings)
    for _, B in optimizer.active_factors.values():
        nn.init.normal_(B)
    x = torch.randn(5, 4, dtype=torch.float64)
    seen: list[Tensor] = []
    model[1].register_full_backward_hook(lambda _, dx, dy: seen.append(dx[0].clone()))
    hidden = model[0](x)
    hidden.retain_grad()
    hidden.register_hook(lambda g: seen.append(g.clone()))
    model[1](hidden).tanh().sum().backward()
    A, B = optimizer.active_factors["1"]
    W = (model[1].weight + B @ A).detach()
    h = hidden.detach().requires_grad_()
    (dx,) = torch.autograd.grad((h @ W.T + model[1].bias).tanh().sum(), h)
    for found in (hidden.grad, *seen):
        torch.testing.assert_close(found, dx)
    assert len(seen) == 2


def test_an_input_of_several_maps() -> None:
    x, W, _, A, B = tensors()
    below = x * 1
    ys = [add_low_rank(nn.functional.linear(below, W), below, A, B, 0.7) for _ in range(3)]
    total = sum(torch.tanh(y).sum() for y in ys)
    found = torch.autograd.grad(total, [x, A, B])  # type: ignore[arg-type]
    torch.testing.assert_close(found, tuple(3 * g for g in expected(x, W, A, B)))


def test_nothing_is_kept_once_the_input_has_its_gradient() -> None:
    x, W, _, A, B = tensors()
    y = add_low_rank(nn.functional.linear(x, W), x, A, B, 0.7)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert y.grad_fn.joint.share is None  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own looking
def test_compiled_autograd() -> None:
    x, W, _, A, B = tensors()
    loss = torch.tanh(add_low_rank(nn.functional.linear(x, W), x, A, B, 0.7)).sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss.backward()
    for found, wanted in zip((x.grad, A.grad, B.grad), expected(x, W, A, B), strict=True):
        torch.testing.assert_close(found, wanted)
