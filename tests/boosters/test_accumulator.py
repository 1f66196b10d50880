"""What is merged beside a weight: a low-rank sum, exact while it has room, else the nearest."""

from typing import Any

import pytest
import torch
from torch import nn

from torch_xgb.boosters.accumulator import Accumulator, Custody
from torch_xgb.boosters.owner import Owner
from torch_xgb.weights.product import Product

ROWS, COLUMNS = 14, 12
LIKE = torch.zeros(0, dtype=torch.float64)


def accumulator(rank: int) -> Accumulator:
    return Accumulator((ROWS, COLUMNS), rank, LIKE, Custody(Owner()))


def product(r: int = 1, scale: float = 0.5) -> Product:
    left, right = torch.randn(ROWS, r), torch.randn(r, COLUMNS)
    return Product(left.double(), right.double(), scale)


def dense(held: Accumulator) -> torch.Tensor:
    left, right = held.product
    return left @ right


def test_it_is_the_exact_sum_while_it_has_room() -> None:
    held, total = accumulator(8), torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for r in (1, 3, 4):
        new = product(r)
        addition = held.addition(new)
        addition.go_on()
        total += new.scale * new.left @ new.right
        assert addition.dropped is None
        torch.testing.assert_close(dense(held), total)
    assert held.used == held.rank == 8


@pytest.mark.parametrize("r", [1, 5])
def test_a_full_one_becomes_the_nearest_sum_of_a_lower_rank(r: int) -> None:
    held, new = accumulator(8), product(r)
    for _ in range(8):
        held.addition(product()).go_on()
    exact = dense(held) + new.scale * new.left @ new.right
    addition = held.addition(new)
    addition.go_on()
    assert held.used == 6
    tail = torch.linalg.svdvals(exact)[6:].norm()
    assert addition.dropped is not None
    torch.testing.assert_close((dense(held) - exact).norm(), tail)
    torch.testing.assert_close(addition.dropped, tail / exact.norm())
    assert not held.left[:, 6:].any() and not held.right[6:].any()


def test_one_as_large_as_its_weight_loses_nothing() -> None:
    held = accumulator(32)
    total = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for _ in range(20):
        new = product()
        held.addition(new).go_on()
        total += new.scale * new.left @ new.right
    torch.testing.assert_close(dense(held), total)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_an_interrupted_addition_goes_on(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """After any of its writes, be there room or not, nothing is added twice."""
    for count in (3, 8):
        held, twin, new = accumulator(8), accumulator(8), product()
        for _ in range(count):
            one = product()
            held.addition(one).go_on()
            twin.addition(one).go_on()
        addition = held.addition(new)
        writes = iter(range(10))

        def failing(self: torch.Tensor, *args: Any, writes: Any = writes) -> Any:
            if next(writes) == after:
                raise KeyboardInterrupt
            return self

        original = {name: getattr(torch.Tensor, name) for name in ("copy_", "zero_")}
        for name, write in original.items():

            def passing(
                self: torch.Tensor, *args: Any, write: Any = write, failing: Any = failing
            ) -> Any:
                failing(self)
                return write(self, *args)

            monkeypatch.setattr(torch.Tensor, name, passing)
        if after < 4:
            with pytest.raises(KeyboardInterrupt):
                addition.go_on()
        monkeypatch.undo()
        addition.go_on()
        twin.addition(new).go_on()
        assert torch.equal(dense(held), dense(twin)) and held.used == twin.used


def test_a_gradient_passes_through_and_nothing_of_the_input_is_kept() -> None:
    linear, held = nn.Linear(COLUMNS, ROWS).double(), accumulator(4)
    linear.requires_grad_(False)
    held.attach([linear])
    held.addition(product(2)).go_on()
    x = torch.randn(5, COLUMNS, dtype=torch.float64, requires_grad=True)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.shape), t)[1], lambda t: t
    ):
        y = linear(x)
    left, right = held.product
    expected = x @ (linear.weight + left @ right).T + linear.bias
    torch.testing.assert_close(y, expected)
    assert x.shape not in kept and (5, 2) not in kept
    weights = torch.randn_like(y)
    (found,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), x)[0])
    assert torch.autograd.gradgradcheck(linear, x)


def test_it_follows_the_model_but_not_to_a_lower_precision() -> None:
    linear, held = nn.Linear(COLUMNS, ROWS), accumulator(4)
    held.attach([linear])
    held.addition(product()).go_on()
    before = dense(held).clone()
    linear.half()
    assert torch.equal(dense(held), before)
    assert held.to("meta").left.is_meta
    held.detach([linear])
    assert not linear._modules and not linear._forward_hooks


def test_a_map_that_passes_no_gradient_back_is_refused() -> None:
    class Packed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    linear, held = Packed(COLUMNS, ROWS).double(), accumulator(4)
    held.attach([linear])
    x = torch.randn(5, COLUMNS, dtype=torch.float64)
    linear(x)
    with pytest.raises(RuntimeError, match="no gradient back"):
        linear(x.requires_grad_())
