"""Gradients averaged at the end of a backward pass, where nobody else does it."""

import math
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, distributed, nn

from benchmarks.measures.remote import DEVICE, Remote, counting
from processes import run
from torch_xgb import processes
from torch_xgb.parallel.averaging import Averager

pytestmark = pytest.mark.distributed


def _routed() -> tuple[list[float | None], list[float | None]]:
    """Only rank 0 uses the second factor, nobody the third; then another pass accumulates."""
    factors = [nn.Parameter(torch.ones(())) for _ in range(3)]
    averager = Averager(
        factors, lambda: factors, distributed.group.WORLD, lambda: True, partial=True
    )
    rank = distributed.get_rank()
    seen = []
    for _ in range(2):
        loss = factors[0] * (2 + 4 * rank)
        (loss + 3 * factors[1] if rank == 0 else loss).backward()
        seen.append([None if f.grad is None else float(f.grad) for f in factors])
    assert averager.had_backward() and not averager.had_backward()
    averager.remove()
    factors[0].grad = None
    (factors[0] * rank).backward()
    assert float(factors[0].grad) == rank
    return seen[0], seen[1]


def test_a_gradient_that_some_lack_is_averaged_and_one_that_all_lack_stays_missing() -> None:
    for first, second in run(_routed, 2):
        assert first == [4.0, 1.5, None]
        assert second == [8.0, 3.0, None]


def _raising() -> list[float]:
    """A backward pass that raises on every process, then two that do not."""
    factor = nn.Parameter(torch.ones(()))
    Averager([factor], lambda: [factor], distributed.group.WORLD, lambda: True)
    seen = []
    for broken in (True, False, False):
        loss = factor * (1 + 2 * distributed.get_rank())
        below = torch.ones((), requires_grad=True)
        if broken:  # after the factor's gradient is there
            below.register_hook(_raise)
            loss = loss + 0 * below.mul(1).mul(1)
        try:
            loss.backward()
            seen.append(float(factor.grad))
        except MemoryError:
            seen.append(-1.0)
        factor.grad = None
    return seen


def _raise(_: Tensor) -> Tensor:
    raise MemoryError


def test_a_backward_that_raises_does_not_end_averaging() -> None:
    assert run(_raising, 2) == [[-1.0, 2.0, 2.0]] * 2


def _lacking() -> list[float | None]:
    """Rank 1 lacks the second gradient, which it may not."""
    factors = [nn.Parameter(torch.ones(())) for _ in range(2)]
    Averager(factors, lambda: factors, distributed.group.WORLD, lambda: True)
    (sum(factors) if distributed.get_rank() == 0 else factors[0] * 1).backward()
    return [None if f.grad is None else float(f.grad) for f in factors]


def test_no_process_goes_on_with_a_gradient_that_another_must_not_lack() -> None:
    whole, lacking = run(_lacking, 2)
    assert whole[0] == 1.0 and math.isnan(whole[1])
    assert lacking == [1.0, None]


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A group of two that sends from a device alone, and has the same on both."""

    def doubled(tensor: Tensor, op: Any, group: Any) -> None:
        assert isinstance(tensor, Remote)
        tensor.mul_(2)

    monkeypatch.setattr(processes.distributed, "all_reduce", doubled)
    with counting():
        yield Mock(_device_types=[DEVICE])


def test_what_the_host_keeps_goes_by_way_of_a_device_that_nccl_can_send_from(nccl: Any) -> None:
    """As gradients of weights that FSDP2 offloads."""
    value = torch.ones(3)
    processes.all_reduce(value, nccl)
    assert value.tolist() == [2.0] * 3


def test_sums_over_processes_of_what_lies_on_several_devices(nccl: Any) -> None:
    """As weights of which FSDP2 offloads some."""
    values = [torch.ones(2), Remote(torch.ones(1)), torch.ones(1), torch.ones(1).int()]
    summed = processes.total([(one, nccl) for one in values])
    assert [one.sum().item() for one in summed] == [4, 2, 2, 2]
    assert [type(one) for one in summed] == [type(one) for one in values]
