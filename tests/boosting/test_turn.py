"""Whatever ends a merge, the model computes what it did, and going on is exact."""

import copy
import itertools
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from anatomy import flat
from interrupts import At, Interrupt
from torch_xgb import BoostedLowRankOptimizer
from torch_xgb.ledger.chain import Chain
from torch_xgb.schedule.course import Course
from torch_xgb.weights.addition import Addition
from torch_xgb.weights.product import Product

KAPPA = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "every layer": {"layers_per_booster": None},
    "bias": {"bias": "targets"},
    "direft": {"adapter": "direft"},
    "carry": {"carry": 0.9, "layers_per_booster": 3, "r": [2, 1], "shrinkage": 0.5},
    "carry, direft": {
        "carry": 0.5,
        "adapter": "direft",
        "init": "gradient",
        "layers_per_booster": 3,
    },
    "residual": {"merge_precision": "residual"},
    "stochastic": {"merge_precision": "stochastic"},
    "ranks": {"r": [2, 1], "shrinkage": 0.5},
}
LOW = ("residual", "stochastic")


def build(setting: str, **more: Any) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if setting in LOW else torch.float32
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]
    model = nn.Sequential(*layers, nn.Linear(8, 3)).to(dtype)
    settings = {"kappa": KAPPA, "layers_per_booster": 2, "modules_to_save": ["4"]}
    settings |= SETTINGS[setting] | more
    return model, BoostedLowRankOptimizer(AdamW, model, lr=2e-2, **settings)


def batch(i: int, model: nn.Module) -> Tensor:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(i))
    return x.to(next(model.parameters()).dtype)


def backward(model: nn.Module, optimizer: Any, i: int) -> None:
    optimizer.zero_grad()
    (model(batch(i, model)) - 1).float().square().mean().backward()


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for i in steps:
        backward(model, optimizer, i)
        optimizer.step()


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model(batch(99, model)).float()


def lines(setting: str, call: str, **more: Any) -> int:
    """How many lines of the library the call of interest runs."""
    model, optimizer = build(setting, **more)
    train(model, optimizer, range(2 * KAPPA - 1))
    backward(model, optimizer, 2 * KAPPA - 1)
    with At(10**9) as count:
        getattr(optimizer, call)()
    return 10**9 - count.left


@pytest.mark.parametrize("call", ["step", "merge", "finalize"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_interrupted_anywhere(setting: str, call: str) -> None:
    """The function is that of before or after, and once all is done the weights are the same."""
    whole, uninterrupted = build(setting)
    train(whole, uninterrupted, range(2 * KAPPA - 1))
    backward(whole, uninterrupted, 2 * KAPPA - 1)
    getattr(uninterrupted, call)()
    done = output(whole)
    if call != "finalize":
        train(whole, uninterrupted, range(20, 25))
    end = flat(uninterrupted.finalize())

    total = lines(setting, call)
    assert total > 100
    points = sorted(torch.randperm(total, generator=torch.Generator().manual_seed(1))[:14].tolist())
    exact = 0
    for point in points:
        model, optimizer = build(setting)
        train(model, optimizer, range(2 * KAPPA - 1))
        backward(model, optimizer, 2 * KAPPA - 1)
        before, counted = output(model), optimizer.booster_step
        stepped = copy.deepcopy(optimizer.base.state_dict())
        with pytest.raises(Interrupt), At(point):
            getattr(optimizer, call)()
        after = output(model)
        if call != "step":
            tolerance = 0.05 if setting in LOW else 1e-5
            assert any(torch.allclose(after, a, tolerance, tolerance) for a in (before, done)), (
                point
            )
        if not optimizer.boosting.attached:
            assert torch.equal(flat(model), end)
            exact += 1
            continue
        optimizer.boosting.pace.complete()
        untrained = optimizer.booster_step == counted and _same(stepped, optimizer.base)
        if call == "merge" and optimizer.booster_index == 1:
            optimizer.merge()
        elif call == "step" and optimizer.booster_index == 1 and untrained:
            backward(model, optimizer, 2 * KAPPA - 1)
            optimizer.step()
        if call != "finalize":
            train(model, optimizer, range(20, 25))
        found = flat(optimizer.finalize())
        exact += int(torch.equal(found, end))
    # Of a step, the base's own update may have been half done, as without this library.
    assert exact >= (len(points) - 3 if call == "step" else len(points))


def _same(state: Any, base: Any) -> bool:
    now = base.state_dict()["state"]
    return all(
        torch.equal(torch.as_tensor(one[key]), torch.as_tensor(now[n][key]))
        for n, one in state["state"].items()
        for key in one
        if n in now
    )


@pytest.mark.parametrize("setting", ["every layer", "direft", "carry", "residual"])
def test_out_of_memory_for_good_and_then_no_more(setting: str) -> None:
    """The rest follows when the model is called again, and nothing twice."""
    whole, uninterrupted = build(setting)
    train(whole, uninterrupted, range(2 * KAPPA + 4))
    end = flat(uninterrupted.finalize())
    model, optimizer = build(setting)
    train(model, optimizer, range(2 * KAPPA - 1))
    backward(model, optimizer, 2 * KAPPA - 1)
    real, calls = Product.add_to, itertools.count()

    def add_to(*args: Any) -> Any:
        if next(calls):
            raise torch.OutOfMemoryError("no memory")
        return real(*args)

    with patch.object(Product, "add_to", add_to):
        for call in (optimizer.step, optimizer.merge, lambda: output(model), optimizer.finalize):
            with pytest.raises(torch.OutOfMemoryError):
                call()
    train(model, optimizer, range(2 * KAPPA, 2 * KAPPA + 4))
    assert torch.equal(flat(optimizer.finalize()), end)


def test_a_full_disk_makes_no_booster_longer(tmp_path: Path) -> None:
    whole, uninterrupted = build("paper", record=tmp_path / "whole")
    train(whole, uninterrupted, range(10))
    model, optimizer = build("paper", record=tmp_path / "run")
    train(model, optimizer, range(KAPPA - 1))
    with patch.object(optimizer.boosting.writer, "append", side_effect=OSError(28, "full")):
        backward(model, optimizer, KAPPA - 1)
        with pytest.raises(OSError, match="full"):
            optimizer.step()
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        with pytest.raises(OSError, match="full"):
            backward(model, optimizer, KAPPA)
        output(model)  # a look at how well it does asks for nothing
    train(model, optimizer, range(KAPPA, 10))
    assert torch.equal(flat(model), flat(whole))
    first, second = (Chain.load(tmp_path / name) for name in ("whole", "run"))
    assert [r.steps for r in first] == [r.steps for r in second] == [KAPPA] * 3
    # And what was saved meanwhile goes on alike, the merge being due.
    again, resumed = build("paper")
    again.load_state_dict(state[0])
    state[1]["booster"]["settings"] = resumed.state_dict()["booster"]["settings"]
    state[1]["booster"] |= {"run": None, "tip": None}
    del state[1]["booster"]["seal"]
    resumed.load_state_dict(state[1])
    train(again, resumed, range(KAPPA, 10))
    assert torch.equal(flat(again), flat(whole))


def test_a_step_on_gradients_of_the_booster_before_says_that_it_trains_nothing() -> None:
    model, optimizer = build("paper")
    train(model, optimizer, range(KAPPA - 1))
    backward(model, optimizer, KAPPA - 1)
    with patch.object(Addition, "go_on", side_effect=MemoryError), pytest.raises(MemoryError):
        optimizer.step()
    with pytest.warns(UserWarning, match="merged only now"):
        optimizer.step()
    assert (optimizer.booster_index, optimizer.booster_step) == (1, 0)


def test_listeners_hear_of_a_merge_that_was_finished_later() -> None:
    model, optimizer = build("residual")
    heard = []
    optimizer.on_merge(heard.append)
    train(model, optimizer, range(KAPPA - 1))
    backward(model, optimizer, KAPPA - 1)
    with patch.object(Addition, "go_on", side_effect=MemoryError), pytest.raises(MemoryError):
        optimizer.step()
    assert heard == []
    output(model)
    assert [report.booster_index for report in heard] == [0] and heard[0].lost


def test_copies_of_a_model_with_a_merge_to_come_are_plain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)])
    optimizer = BoostedLowRankOptimizer(SGD, model, kappa=2, lr=0.1, record=True)
    train(model, optimizer, range(1))
    backward(model, optimizer, 1)
    with patch.object(optimizer.boosting.writer, "append", side_effect=OSError(28, "full")):
        with pytest.raises(OSError, match="full"):
            optimizer.step()
    twin = copy.deepcopy(model)
    assert torch.allclose(output(twin), output(model), atol=1e-6)
    assert optimizer.booster_index == 0
    twin.train()(batch(0, twin))
    assert optimizer.booster_index == 0
    model(batch(0, model))
    assert optimizer.booster_index == 1


@pytest.mark.parametrize(
    ("dtype", "size", "message"),
    [
        (torch.float16, 7e4, "beyond float16's range"),
        (torch.float32, 1e38, "not finite"),
        (torch.bfloat16, float("nan"), "not finite"),
    ],
    ids=str,
)
def test_an_update_that_a_weight_cannot_hold_is_refused(
    dtype: torch.dtype, size: float, message: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]).to(dtype)
    start = flat(model).clone()
    optimizer = BoostedLowRankOptimizer(SGD, model, kappa=4, lr=0.1)
    train(model, optimizer, range(1))
    with torch.no_grad():
        A, B = next(iter(optimizer.active_factors.values()))
        A.fill_(1.0)
        B[0] = size
    for call in (optimizer.merge, optimizer.finalize):
        with pytest.raises(RuntimeError, match=f"{message}.*unharmed"):
            call()
    assert torch.equal(flat(optimizer.finalize(discard=True)), start)


def test_a_hook_waits_for_nothing_where_nothing_is_due() -> None:
    model, optimizer = build("paper")
    train(model, optimizer, range(2))
    hooks = list(model._forward_pre_hooks)
    optimizer.load_state_dict(optimizer.state_dict())
    assert list(model._forward_pre_hooks) == hooks
    twin, _ = copy.deepcopy((model, optimizer))
    assert len(twin._forward_pre_hooks) == len(hooks)


def test_a_step_that_was_taken_and_not_counted_is_counted_later() -> None:
    """Whoever is interrupted between the base's step and its count does not take it twice."""
    (whole, uninterrupted), (model, optimizer) = build("paper"), build("paper")
    train(whole, uninterrupted, range(2 * KAPPA))

    for i in range(2 * KAPPA):
        backward(model, optimizer, i)
        if i not in (1, 2 * KAPPA - 1):  # within a booster, and at the end of one
            optimizer.step()
            continue
        with patch.object(Course, "stepped", side_effect=Interrupt), pytest.raises(Interrupt):
            optimizer.step()
        optimizer.state_dict()  # whatever is called next
    assert optimizer.booster_index == uninterrupted.booster_index == 2
    assert torch.equal(flat(model), flat(whole))


@pytest.mark.parametrize("then", ["merge", "load_state_dict", "copy"])
def test_a_step_that_the_base_did_not_take_is_not_counted_later(then: str) -> None:
    """Whatever writes to the factors after it failed."""
    model, optimizer = build("paper")
    train(model, optimizer, range(1))
    backward(model, optimizer, 1)
    with patch.object(optimizer.base, "step", side_effect=MemoryError), pytest.raises(MemoryError):
        optimizer.step()
    if then == "merge":
        optimizer.merge()
    elif then == "load_state_dict":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        model, optimizer = copy.deepcopy((model, optimizer))
    index, counted = (1, 0) if then == "merge" else (0, 1)
    optimizer.state_dict()
    assert (optimizer.booster_index, optimizer.booster_step) == (index, counted)
