"""The modules trained in full have a rate, a decay and, if asked, an optimizer of their own."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bases import Averaging
from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer

SETTINGS: dict[str, Any] = {"kappa": 4, "layers_per_booster": 2, "modules_to_save": ["head"]}


def boosted(model: nn.Module, base: Any = AdamW, **kwargs: Any) -> BoostedLowRankOptimizer:
    return BoostedLowRankOptimizer(base, model, **{**SETTINGS, "lr": 0.01, **kwargs})


def train(model: nn.Module, optimizer: Optimizer, first: int, last: int) -> None:
    for x, y in list(batches(10))[first:last]:
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_head_lr_is_the_rate_of_the_head_alone() -> None:
    models = [stack() for _ in range(2)]
    first, second = boosted(models[0], SGD, head_lr=0.03), boosted(models[1], SGD)
    second.param_groups[1]["lr"] = 0.03
    assert [group["lr"] for group in first.param_groups] == [0.01, 0.03]
    for model, optimizer in zip(models, (first, second), strict=True):
        train(model, optimizer, 0, 6)
    assert same(*models)


def test_head_lr_goes_with_schedulers() -> None:
    model = stack()
    optimizer = boosted(model, head_lr=0.03)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    train(model, optimizer, 0, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.015]


def test_biases_and_norms_of_the_head_do_not_decay() -> None:
    optimizer = boosted(stack(), weight_decay=0.1)
    names = {id(p): n for n, p in optimizer.model.named_parameters()}
    found = [([names.get(id(p)) for p in g["params"]], g["weight_decay"]) for g in optimizer.param_groups[1:]]  # fmt: skip  # noqa: E501
    assert found == [(["head.weight"], 0.1), (["head.bias"], 0.0)]
    assert len(boosted(stack()).param_groups) == 2


def test_an_optimizer_of_their_own_is_what_two_would_be() -> None:
    """The head as AdamW alone would train it, the factors as without a head."""
    model = stack()
    optimizer = boosted(model, Muon, modules_to_save_optimizer=AdamW, head_lr=0.05)
    twin = copy.deepcopy(model)
    plain = AdamW(twin.head.parameters(), lr=0.05)
    (x, y), *_ = batches(1)
    factors = [copy.deepcopy(p) for p in optimizer.boosting.factors]
    cross_entropy(model(x), y).backward()
    for mine, theirs in zip(twin.head.parameters(), model.head.parameters(), strict=True):
        mine.grad = theirs.grad
    for mine, its in zip(factors, optimizer.boosting.factors, strict=True):
        mine.grad = its.grad
    held = [p for p in factors if p.grad is not None]
    of_factors = Muon(held, lr=0.01)
    optimizer.step()
    plain.step()
    of_factors.step()
    assert same(twin.head, model.head)
    assert all(map(torch.equal, factors, optimizer.boosting.factors))


def test_two_optimizers_resume_and_travel_as_one() -> None:
    told = {"modules_to_save_optimizer": AdamW, "head_lr": 0.05}
    whole, cut = stack(), stack()
    optimizer, begun = boosted(whole, Muon, **told), boosted(cut, Muon, **told)
    train(whole, optimizer, 0, 10)
    train(cut, begun, 0, 6)
    again = stack()
    resumed = boosted(again, Muon, **told)
    again.load_state_dict(cut.state_dict())
    resumed.load_state_dict(begun.state_dict())
    copied_model: Stack
    copied_model, copied = copy.deepcopy((cut, begun))
    train(again, resumed, 6, 10)
    train(copied_model, copied, 6, 10)
    assert same(whole, again)
    assert same(whole, copied_model)


def test_a_callable_may_group_the_head_as_it_likes() -> None:
    def own(groups: list[dict[str, Any]]) -> Optimizer:
        weight, bias = groups[0]["params"]
        return AdamW([{"params": [bias], "lr": 0.2}, {"params": [weight], "lr": 0.1}])

    optimizer = boosted(stack(), modules_to_save_optimizer=own)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.2, 0.1]


def test_modes_of_both_are_called() -> None:
    optimizer = boosted(stack(), Averaging, modules_to_save_optimizer=Averaging, head_lr=0.1)
    optimizer.eval()
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]


@pytest.mark.parametrize(
    ("told", "error", "words"),
    [
        ({"head_lr": -1.0}, ValueError, "head_lr must be a finite number ≥ 0"),
        ({"head_lr": "fast"}, TypeError, "head_lr must be"),
        ({"head_lr": 0.1, "modules_to_save": []}, ValueError, "head_lr= is for modules"),
        (
            {"modules_to_save_optimizer": AdamW, "modules_to_save": []},
            ValueError,
            "there are none: name them in modules_to_save",
        ),
        ({"modules_to_save_optimizer": "adamw"}, TypeError, "must be an optimizer's class"),
        (
            {"modules_to_save_optimizer": lambda groups: SGD(groups[0]["params"][:1], lr=0.1)},
            ValueError,
            "rearranges",
        ),
    ],
)
def test_refused(told: dict[str, Any], error: type[Exception], words: str) -> None:
    model = stack()
    with pytest.raises(error, match=words):
        boosted(model, **told)
    boosted(model)  # nothing was left behind
