"""A policy that watches the loss: what it takes for progress, and whose losses it remembers."""

import threading

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer, LossPlateau


def boosters_until_convergence(policy: LossPlateau, factor: float, steps: int = 4) -> int:
    """Show a loss that falls by a factor a step; 100 boosters without convergence are enough."""
    loss = 1.0
    policy.begin()
    for t in range(100):
        for _ in range(steps):
            loss *= factor
            policy.observe(loss)
        policy.begin()
        if policy.converged:
            return t + 1
    return 100


def of(stop_after: int, **others: float) -> LossPlateau:
    settings = {"patience": 4, "min_steps": 4, "max_steps": 4, "smoothing": 0.0}
    return LossPlateau(**{**settings, "min_improvement": 1e-3, "stop_after": stop_after, **others})


@pytest.mark.parametrize("smoothing", [0.0, 0.8])
@pytest.mark.parametrize("a_step", [1e-4, 2e-4, 2.4e-4, 1e-3, 1e-2])
def test_a_run_that_improves_steadily_goes_on(a_step: float, smoothing: float) -> None:
    """By more than ``min_improvement`` within ``stop_after`` boosters, however little in each."""
    assert boosters_until_convergence(of(4, smoothing=smoothing), 1 - a_step) == 100


@pytest.mark.parametrize("a_step", [0.0, 1e-5])
def test_a_run_that_hardly_improves_ends(a_step: float) -> None:
    assert boosters_until_convergence(of(4), 1 - a_step) <= 6


def test_a_booster_is_as_good_as_its_lowest_loss() -> None:
    """Not as the first of its losses from which others differ by too little to count."""
    policy = of(1, min_improvement=0.1)
    for losses in ([1.0, 0.95, 0.91, 0.91], [0.91, 0.9, 0.83, 0.81]):
        policy.begin()
        for loss in losses:
            policy.observe(loss)
    policy.begin()
    assert not policy.converged


def test_states_of_before_load() -> None:
    policy = of(2)
    policy.begin()
    policy.observe(2.0)
    saved = policy.state_dict()
    del saved["_lowest"]
    resumed = of(2)
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == policy.state_dict()


def train(optimizer: BoostedLowRankOptimizer, model: Stack, most: int = 60) -> int:
    x, y = batches(1)[0]
    for step in range(most):
        if optimizer.converged:
            return step
        optimizer.zero_grad()
        loss: Tensor = cross_entropy(model(x), y)
        loss.backward()
        optimizer.observe(loss.detach())
        optimizer.step()
    return most


def boosted(model: Stack, policy: LossPlateau, lr: float = 2e-4) -> BoostedLowRankOptimizer:
    return BoostedLowRankOptimizer(SGD, model, kappa=policy, lr=lr, lora_alpha=1e-6)


def test_a_closure_that_says_no_loss_leaves_it_to_observe() -> None:
    """As the empty closure of Lightning's manual optimization."""
    model, (x, y) = stack(), batches(1)[0]
    optimizer = BoostedLowRankOptimizer(SGD, model, kappa=of(4), lr=0.1)
    loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.observe(loss)
    optimizer.step(lambda: None)  # type: ignore[arg-type,return-value]
    assert optimizer.booster_step == 1


def test_a_policy_told_to_another_run_begins_anew() -> None:
    policy = of(2, min_steps=1, max_steps=2, patience=1)
    models = stack(), stack()
    lasted = [train(boosted(model, policy), model) for model in models]
    assert 0 < lasted[0] == lasted[1] < 60


def test_two_runs_at_once_do_not_share_a_policy() -> None:
    policy, alone = of(2, min_steps=1, max_steps=2, patience=1), stack()
    model, other = stack(), stack(seed=1)
    optimizer, second = boosted(model, policy), boosted(other, policy)
    assert train(second, other) == train(optimizer, model)
    fresh = of(2, min_steps=1, max_steps=2, patience=1)
    assert train(boosted(alone, fresh), alone) == optimizer.boosting.course.progress.total_steps


class Locked(LossPlateau):
    """What cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_policy_that_cannot_be_copied_is_refused() -> None:
    model = stack()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match="Locked.*deepcopy"):
        boosted(model, Locked())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    boosted(model, of(2))


@pytest.mark.parametrize("state", [3, "x", [], None], ids=repr)
def test_a_policys_state_that_is_none_is_refused(state: object) -> None:
    model = stack()
    optimizer = boosted(model, of(2))
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="policy's state is"):
        optimizer.boosting.course.check({**saved["booster"], "policy": state})
