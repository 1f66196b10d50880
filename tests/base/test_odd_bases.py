"""Bases with ways of their own: state by name, no rate, matrices alone, nothing done at first."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer

from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train


class Counting(Optimizer):
    """Counts its steps in its state under a name, as MADGRAD does, and another at construction."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.state["begun"] = 2  # type: ignore[index, assignment]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        state: dict[Any, Any] = self.state
        k = state.setdefault("k", torch.tensor([0])).add_(1).item() + state["begun"]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p.sub_(p.grad, alpha=group["lr"] / k)
        return None if closure is None else closure()


class Relative(Optimizer):
    """Finds its own rate, as transformers' Adafactor does: its groups have none."""

    def __init__(self, params: Any, lr: float | None = None) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p.sub_(p.grad.sign(), alpha=0.01)
        return None if closure is None else closure()


class Waiting(SGD):
    """Does nothing in its first ten steps."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                seen = self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
                p.grad = p.grad * (seen > 10)
        return super().step(closure)


class Shows(Optimizer):
    """Is around another one, whose groups and state it shows."""

    def __init__(self, params: Any, lr: float) -> None:
        self.inner = AdamW(params, lr=lr)
        self.defaults = self.inner.defaults

    @property
    def param_groups(self) -> Any:
        return self.inner.param_groups

    @property
    def state(self) -> Any:
        return self.inner.state


class Matrices(SGD):
    """Takes matrices alone, as Muon does."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("matrices alone")


def boosted(base: Any, **settings: Any) -> tuple[Stack, BoostedLowRankOptimizer]:
    model = stack()
    settings = {"kappa": 3, "layers_per_booster": 2, "modules_to_save": [], **settings}
    return model, BoostedLowRankOptimizer(base, model, **settings)


@pytest.mark.parametrize("heads", [[], ["head"]])
def test_state_by_name_is_resumed(heads: list[str]) -> None:
    model, optimizer = boosted(Counting, modules_to_save=heads)
    losses = train(model, optimizer, batches(20)[0:5]).losses
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    losses += train(model, optimizer, batches(20)[5:12]).losses
    again, resumed = boosted(Counting, modules_to_save=heads)
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert train(again, resumed, batches(20)[5:12]).losses == losses[5:]


def test_state_by_name_begins_anew_with_each_booster_where_no_head_shares_it() -> None:
    model, optimizer = boosted(Counting)
    state: dict[Any, Any] = optimizer.state
    train(model, optimizer, batches(20)[0:2])
    assert state["k"] == 2
    train(model, optimizer, batches(20)[2:3])
    assert optimizer.booster_index == 1 and state == {"begun": 2}
    model, optimizer = boosted(Counting, modules_to_save=["head"])
    train(model, optimizer, batches(20)[0:5])
    state = optimizer.state
    assert state["k"] == 5


def test_state_by_name_is_unharmed_by_a_state_that_cannot_be_loaded() -> None:
    model, optimizer = boosted(Counting)
    train(model, optimizer, batches(20)[0:2])
    state = optimizer.state_dict()
    del state["state"]["begun"], state["booster"]["seal"]
    optimizer.base.load_state_dict = lambda state: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="division"):
        optimizer.load_state_dict(state)
    held: dict[Any, Any] = optimizer.state
    assert held["begun"] == 2 and held["k"] == 2


def test_a_base_without_a_rate() -> None:
    model, optimizer = boosted(Relative, modules_to_save=["head"])
    before = model.head.weight.clone()
    train(model, optimizer, batches(20)[0:4])
    assert optimizer.booster_index == 1 and not torch.equal(model.head.weight, before)
    assert "rate" not in str(optimizer.summary())
    for tied in ({"rewarmup_steps": 2}, {"rank_lr_exponent": -0.25}):
        with pytest.raises(ValueError, match=f"{next(iter(tied))}= goes with a base whose"):
            boosted(Relative, **tied)


def test_a_base_that_does_nothing_at_first_is_told_once() -> None:
    model, optimizer = boosted(Waiting, lr=0.1)
    with pytest.warns(UserWarning, match="3 steps and moved none of its weights: Waiting") as said:
        train(model, optimizer, batches(20)[0:9])
    assert len(said) == 1
    model, optimizer = boosted(SGD, lr=0.0)  # as it was told to
    train(model, optimizer, batches(20)[0:3])


def test_one_that_shows_the_state_of_another_is_refused() -> None:
    with pytest.raises(ValueError, match="around AdamW, whose state it only shows.*Give AdamW"):
        boosted(Shows, lr=0.1)


def test_one_for_matrices_asks_for_another_beside_it() -> None:
    words = "Matrices takes the boosters' factors .*matrices alone.*modules_to_save_optimizer="
    with pytest.raises(ValueError, match=words):
        boosted(Matrices, lr=0.1, modules_to_save=["head"])
    own = {"modules_to_save": ["head"], "modules_to_save_optimizer": lambda g: SGD(g, lr=0.1)}
    model, optimizer = boosted(Matrices, lr=0.1, **own)
    train(model, optimizer, batches(20)[0:4])
    with pytest.raises(ValueError, match="^Invalid learning rate"):
        boosted(SGD, lr=-1.0, modules_to_save=["head"])
