"""On a device that the host does not wait for, gradients that are not finite do no harm either."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measures.remote import Remote, counting, move
from benchmarks.measures.syncs import CASES, asked
from benchmarks.subjects.stack import batches, model
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.base.steps import FreshStart
from torch_xgb.base.verdict import Verdict

KAPPA = 3
BATCHES = batches(9)


@pytest.fixture
def elsewhere() -> Iterator[None]:
    with counting():
        yield


def build(away: bool = True, **settings: Any) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    plain: nn.Module = model(torch.float32)
    plain = move(plain) if away else plain
    settings = {"layers_per_booster": 2, "kappa": KAPPA, "modules_to_save": ["head"], **settings}
    return plain, BoostedLowRankOptimizer(AdamW, plain, lr=1e-2, **settings)


def train(plain: nn.Module, optimizer: Any, steps: range, spoilt: int = -1) -> None:
    away = isinstance(next(plain.parameters()), Remote)
    for i in steps:
        optimizer.zero_grad()
        x, y = (Remote(one) if away else one for one in BATCHES[i])
        cross_entropy(plain(x * (torch.inf if i == spoilt else 1)), y).backward()
        optimizer.step()


def numbers(plain: nn.Module, optimizer: Any) -> list[Tensor]:
    """Whatever is trained, and the base's state of it."""
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    return [v.here if isinstance(v, Remote) else v for v in (*plain.parameters(), *state)]


@pytest.mark.parametrize("case", ["float32", "bfloat16", "bfloat16, residual_device='cpu'"])
def test_a_step_waits_for_nothing_and_a_merge_once(case: str) -> None:
    found = asked(**CASES[case])
    assert found["step"].waits == {} and found["draw"].waits == {}
    assert found["merge"].waits.total() == 1, found["merge"].waits
    assert found["step"].late == 1


class Reads(TorchDispatchMode):
    """Counts the numbers that are read of tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_cpu_reads_one_flag_a_step_whatever_the_dtypes() -> None:
    plain = model(torch.bfloat16)
    optimizer = BoostedLowRankOptimizer(SGD, plain, lr=0.1, modules_to_save=["head"], kappa=9)
    for x, y in BATCHES[:2]:
        cross_entropy(plain(x.bfloat16()).float(), y).backward()
        assert len({p.grad.dtype for g in optimizer.param_groups for p in g["params"]}) == 2
        with Reads() as reads:
            optimizer.step()
        optimizer.zero_grad()
    assert reads.count == 1


def test_where_a_figure_costs_a_wait_somebody_asked_for_it() -> None:
    assert asked(**CASES["bfloat16, with a listener"])["merge"].waits.total() == 2
    assert asked(**CASES["nonfinite='skip'"])["step"].waits.total() == 1


@pytest.mark.parametrize("settings", [{}, {"carry": 0.5}, {"r": 2, "bias": "targets"}], ids=str)
def test_it_trains_what_the_cpu_trains_to_the_bit(elsewhere: None, settings: Any) -> None:
    ends = []
    for away in (False, True):
        plain, optimizer = build(away, **settings)
        train(plain, optimizer, range(2 * KAPPA + 1))
        optimizer.finalize()
        ends.append(numbers(plain, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_step_that_is_not_finite_does_no_harm_and_the_next_one_says_so(elsewhere: None) -> None:
    plain, optimizer = build()
    train(plain, optimizer, range(2), spoilt=1)
    assert all(one.isfinite().all() for one in numbers(plain, optimizer))
    before = [one.clone() for one in numbers(plain, optimizer)]
    with pytest.raises(RuntimeError, match="of the step before were not finite"):
        train(plain, optimizer, range(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(numbers(plain, optimizer), before, strict=True))
    train(plain, optimizer, range(2, 5))  # said once
    assert optimizer.booster_index == 1
    assert all(one.isfinite().all() for one in numbers(plain, optimizer))


def test_nothing_is_merged_before_it_is_known(elsewhere: None) -> None:
    plain, optimizer = build()
    before = [block.up.weight.here.clone() for block in plain.blocks]
    with pytest.raises(RuntimeError, match="of the step before were not finite"):
        train(plain, optimizer, range(KAPPA), spoilt=KAPPA - 1)
    assert optimizer.booster_index == 0
    weights = [block.up.weight.here for block in plain.blocks]
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    optimizer.merge()
    assert optimizer.booster_index == 1
    assert sum(torch.equal(a, b) for a, b in zip(weights, before, strict=True)) == 2


def test_a_booster_that_is_dropped_needs_no_verdict(elsewhere: None) -> None:
    plain, optimizer = build()
    train(plain, optimizer, range(2), spoilt=1)
    optimizer.finalize(discard=True)
    assert all(one.isfinite().all() for one in numbers(plain, optimizer))


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_stopped(elsewhere: None, fused: bool) -> None:
    """A fused base does not step at all; for any other they are zeros."""
    factor = nn.Parameter(torch.ones(4))
    base = SGD([factor], lr=1.0, fused=fused)
    verdict = Verdict(base)
    for flag, moved in ((1.0, False), (0.0, True)):
        factor.grad = torch.tensor([1.0, torch.nan if flag else 1.0, 1.0, 1.0])
        verdict.expect([torch.tensor(flag)], [factor.grad], None)
        base.step()
        verdict.stepped()
        assert torch.equal(factor.detach(), torch.ones(4)) is not moved
        twin = copy.deepcopy(verdict)  # what is awaited is copied along
        for one in (verdict, twin):
            if flag:
                with pytest.raises(RuntimeError, match="not finite"):
                    one.require()
            one.require()
    assert not hasattr(base, "found_inf")


def test_state_that_a_graph_of_the_device_reads_keeps_its_addresses() -> None:
    factor = nn.Parameter(torch.ones(4))
    base = AdamW([factor], amsgrad=True)
    fresh = FreshStart(base, [factor])
    factor.grad = torch.ones(4)
    base.step()
    before = dict(base.state[factor])
    base.param_groups[0]["capturable"] = True
    fresh.apply(base)
    assert all(base.state[factor][key] is value for key, value in before.items())
    assert not any(value.any() for value in before.values())
