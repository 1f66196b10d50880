"""What the base alone has is reached through the optimizer, in the modes of schedule-free bases."""

import copy
import pickle
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bases import Averaging, Lion
from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer

SETTINGS: dict[str, Any] = {"kappa": 4, "layers_per_booster": 2, "modules_to_save": ["head"]}


def boosted(model: nn.Module, base: Any = Averaging, **kwargs: Any) -> BoostedLowRankOptimizer:
    return BoostedLowRankOptimizer(base, model, **{**SETTINGS, "lr": 0.1, **kwargs})


def train(model: nn.Module, optimizer: Any, count: int) -> None:
    for x, y in batches(count):
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(steps: int) -> tuple[Stack, BoostedLowRankOptimizer]:
    model = stack()
    optimizer = boosted(model)
    optimizer.train()
    train(model, optimizer, steps)
    return model, optimizer


def averages(optimizer: BoostedLowRankOptimizer) -> list[Tensor]:
    """x of every Parameter, by the formula, while the base is in training mode."""
    state, found = optimizer.state, []
    for group in optimizer.param_groups:
        for y in group["params"]:
            z = state[y]["z"] if "z" in state.get(y, {}) else y
            found.append(y.detach() + (1 - 1 / group["beta"]) * (z - y.detach()))
    return found


def parameters(optimizer: BoostedLowRankOptimizer) -> list[Tensor]:
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def test_evaluation_is_of_the_averages_and_back() -> None:
    _, optimizer = trained(6)
    before, expected = parameters(optimizer), averages(optimizer)
    optimizer.eval()
    torch.testing.assert_close(parameters(optimizer), expected, rtol=1e-12, atol=1e-15)
    optimizer.train()
    torch.testing.assert_close(parameters(optimizer), before, rtol=1e-12, atol=1e-15)


def test_what_is_saved_in_evaluation_are_the_averages() -> None:
    model, optimizer = trained(6)
    in_training = copy.deepcopy(model.state_dict())
    optimizer.eval()
    x, _ = batches(1)[0]
    evaluated, saved = model(x), model.state_dict()
    plain = stack()
    plain.load_state_dict(saved)
    torch.testing.assert_close(plain(x), evaluated, rtol=1e-9, atol=1e-12)
    drawn = next(iter(optimizer.active_factors)) + ".weight"
    assert not torch.equal(saved[drawn], in_training[drawn])


@pytest.mark.parametrize("call", ["merge", "finalize"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_merge_keeps_the_function_of_the_mode_it_is_called_in(call: str, mode: str) -> None:
    model, optimizer = trained(6)
    getattr(optimizer, mode)()
    x, _ = batches(1)[0]
    before = model(x)
    getattr(optimizer, call)()
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-12)
    getattr(optimizer, "eval" if mode == "train" else "train")()
    if call == "merge":
        assert not any("z" in optimizer.state.get(p, {}) for p in optimizer.boosting.factors)
        optimizer.train()
        train(model, optimizer, 5)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_resumes_in_either_mode(mode: str) -> None:
    model, optimizer = trained(6)
    getattr(optimizer, mode)()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = stack()
    other.load_state_dict(saved[0])
    resumed = boosted(other)
    resumed.load_state_dict(saved[1])
    for ours, theirs in ((model, optimizer), (other, resumed)):
        theirs.train()
        train(ours, theirs, 5)
        theirs.eval()
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_through_accelerate() -> None:
    accelerator, model = Accelerator(cpu=True), stack()
    model, optimizer = accelerator.prepare(model, boosted(model))
    optimizer.train()
    train(model, optimizer, 6)
    before = parameters(optimizer.optimizer)
    optimizer.eval()
    pairs = zip(before, parameters(optimizer.optimizer), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


class Asked(Lion):
    """A base that its scheduler asks for its rate, as transformers' Adafactor is asked."""

    favourite = "rate"

    def _get_lr(self, group: dict[str, Any], state: dict[str, Any]) -> float:
        return group["lr"] / 2


class Asking(LambdaLR):
    """As transformers' ``AdafactorSchedule`` does."""

    def get_lr(self) -> list[float]:
        opt: Any = self.optimizer
        return [opt._get_lr(group, opt.state[group["params"][0]]) for group in opt.param_groups]


def test_a_scheduler_may_ask_the_base() -> None:
    model = stack()
    optimizer = boosted(model, Asked)
    scheduler = Asking(optimizer, lambda _: 1.0)
    train(model, optimizer, 1)
    scheduler.step()
    assert optimizer.favourite == "rate"
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


class Ascending(AdamW):
    """Takes two steps of its own, as sharpness-aware ones do."""

    def first_step(self) -> None: ...


def test_steps_past_the_boosting_are_refused() -> None:
    optimizer = boosted(stack(), Ascending)
    with pytest.raises(AttributeError, match="first_step.*give step\\(\\) a closure"):
        optimizer.first_step()


@pytest.mark.parametrize("name", ["nothing", "_step_supports_amp_scaling", "__array__", "_hidden"])
def test_what_nobody_has_and_private_state_stay_hidden(name: str) -> None:
    optimizer = boosted(stack(), AdamW, fused=True)  # which scales gradients in its own step
    optimizer.base._hidden = 1  # type: ignore[attr-defined]
    assert not hasattr(optimizer, name)
    with pytest.raises(AttributeError, match=f"BoostedLowRankOptimizer has no attribute '{name}'"):
        getattr(optimizer, name)
    with pytest.raises(AttributeError, match="nor has its base, AdamW") as raised:
        optimizer.finalise()
    assert raised.value.obj is optimizer and raised.value.name == "finalise"  # for Python's hint


def test_copies_and_pickles() -> None:
    model, optimizer = trained(2)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        twin.eval()
        assert twin.param_groups[0]["train_mode"] is False
    assert isinstance(optimizer, Optimizer) and optimizer.param_groups[0]["train_mode"] is True
