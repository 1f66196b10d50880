"""Gradients averaged at the end of a backward pass, where nobody else does it."""

import pytest
import torch
from torch import distributed, nn

from processes import run
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
