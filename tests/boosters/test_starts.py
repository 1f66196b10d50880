"""init="gradient": A is found by the pair's own first gradient."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adafactor, AdamW

from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train


def build(**settings: Any) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    model = stack(3)
    base = settings.pop("base", AdamW)
    given = {
        "kappa": 3,
        "layers_per_booster": 2,
        "lr": 0.02,
        "init": "gradient",
        "lora_alpha": None,
    }
    given |= settings
    return model, BoostedLowRankOptimizer(base, model, **given)


def backward(model: nn.Module, index: int = 0) -> Tensor:
    x, y = batches(8)[index]
    loss = cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("r", [1, 2])
def test_first_step_turns_A_to_combinations_of_the_gradients_rows(r: int) -> None:
    model, optimizer = build(r=r, lora_alpha=3)
    signs = {name: B.detach().clone() for name, (_, B) in optimizer.active_factors.items()}
    plain = stack(3)
    dense = {name: plain.get_submodule(name).weight for name in signs}
    gradients = torch.autograd.grad(
        cross_entropy(plain(batches(8)[0][0]), batches(8)[0][1]), list(dense.values())
    )
    backward(model)
    optimizer.step()
    for name, G in zip(dense, gradients, strict=True):
        A, B = optimizer.active_factors[name]
        wanted = -(signs[name].T @ G)
        wanted *= 3**-0.5 / wanted.norm(dim=1, keepdim=True)
        torch.testing.assert_close(A.detach().to(wanted), wanted, atol=1e-9, rtol=0)
        assert not B.any()
    assert optimizer.booster_step == 1


def test_function_is_kept_until_B_steps_and_the_loss_falls() -> None:
    model, optimizer = build(kappa=4, lr=0.05)
    x, y = batches(1)[0]
    before = stack(3)(x)
    assert torch.equal(model(x), before)
    losses = []
    for _ in range(24):
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == losses[1] and losses[-1] < 0.7 * losses[0]
    assert optimizer.booster_index == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"base": SGD},
        {"base": Adafactor},
        {"adapter": "direft"},
        {"bias": "targets"},
        {"modules_to_save": ["head"]},
    ],
)
def test_other_parts_go_with_it(settings: dict[str, Any]) -> None:
    model, optimizer = build(**settings)
    head = model.head.weight.detach().clone()
    for index in range(6):
        backward(model, index)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(head, model.head.weight) == ("modules_to_save" not in settings)
    assert optimizer.booster_index == 2
    assert all(p.isfinite().all() for p in optimizer.finalize().parameters())


def test_closure_and_loop_are_one() -> None:
    (model, optimizer), (other, closed) = build(), build()
    for index in range(5):
        backward(model, index)
        optimizer.step()
        optimizer.zero_grad()

        def closure(index: int = index) -> float:
            closed.zero_grad()
            return backward(other, index)

        closed.step(closure)
    theirs = dict(closed.finalize().named_parameters())
    for name, weight in optimizer.finalize().named_parameters():
        torch.testing.assert_close(weight, theirs[name], atol=0, rtol=0)


@pytest.mark.parametrize("saved_after", [3, 4])
def test_resumes_before_and_after_the_turn(saved_after: int) -> None:
    model, optimizer = build()
    for index in range(saved_after):
        backward(model, index)
        optimizer.step()
        optimizer.zero_grad()
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again, resumed = build()
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    for index in range(saved_after, 8):
        assert backward(model, index) == backward(again, index)
        for o in (optimizer, resumed):
            o.step()
            o.zero_grad()


def test_a_target_without_gradient_keeps_its_drawn_A() -> None:
    model, optimizer = build(unused="skip", layers_per_booster=None)
    drawn = BoostedLowRankOptimizer(AdamW, stack(3), kappa=3, layers_per_booster=None, lr=0.02)
    wanted = drawn.active_factors["blocks.2.query"][0]
    x, y = batches(1)[0]
    h = model.blocks[1](model.blocks[0](model.embed(x)))
    cross_entropy(model.head(h.mean(-2)), y).backward()
    optimizer.step()
    A, B = optimizer.active_factors["blocks.2.query"]
    assert torch.equal(A, wanted) and not B.any()


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="init must be one of"):
        build(init="svd")
    for kappa in (1, [1, 4], [2, 3, 8], lambda t: 1):
        with pytest.raises(ValueError, match="at least 2"):
            train(*build(kappa=kappa), batches(1))


def test_finalize_between_boosters_merges_nothing() -> None:
    model, optimizer = build()
    reports: list[Any] = []
    optimizer.on_merge(reports.append)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    optimizer.finalize()
    assert [report.booster_index for report in reports] == [0]


def test_weights_loaded_before_the_first_step_are_those_A_is_found_for() -> None:
    other = stack(3, seed=1)
    model, optimizer = build()
    model.load_state_dict(other.state_dict())
    settings = {"kappa": 3, "layers_per_booster": 2, "lora_alpha": None, "init": "gradient"}
    twin = BoostedLowRankOptimizer(AdamW, other, lr=0.02, **settings)
    for trained, its_optimizer in ((model, optimizer), (other, twin)):
        train(trained, its_optimizer, batches(4))
        its_optimizer.finalize()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
