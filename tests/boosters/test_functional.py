"""``torch.func.functional_call``: what is put in is what is computed with, the booster once."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer

FORMS: dict[str, dict[str, Any]] = {
    "lora": {},
    "bias": {"bias": "targets"},
    "direft": {"adapter": "direft"},
    "rank-schedule": {"r": [3, 2]},
}


def trained(steps: int = 6, **settings: Any) -> tuple[Stack, BoostedLowRankOptimizer]:
    model = stack()
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, kappa=4, layers_per_booster=2, lr=0.05, **settings
    )
    for x, y in batches(steps):
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_counts_the_booster_once(form: str) -> None:
    model, _ = trained(**FORMS[form])
    x, _ = batches(1)[0]
    expected = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(functional_call(model, state, (x,)), expected)
    assert torch.equal(model(x), expected)


def test_other_weights_are_computed_with_alone() -> None:
    model, _ = trained()
    x, _ = batches(1)[0]
    others = {name: value + 0.1 for name, value in model.state_dict().items()}
    plain = stack()
    plain.load_state_dict(others)
    assert torch.equal(functional_call(model, others, (x,)), plain(x))


@pytest.mark.parametrize("which", ["all", "trained"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_for_factors_that_are_put_in(form: str, which: str) -> None:
    model, optimizer = trained(modules_to_save=["head"], **FORMS[form])
    x, y = batches(1)[0]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    given = {n: p for n, p in named(model).items() if which == "all" or n in trainable}
    found = grad(lambda p: cross_entropy(functional_call(model, p, (x,)), y))(given)
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any("boosters" in name for name in expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_factors_that_are_put_in_are_computed_with() -> None:
    model, optimizer = trained()
    x, _ = batches(1)[0]
    zeroed = {n: torch.zeros_like(p) if "boosters" in n else p for n, p in named(model).items()}
    without = functional_call(model, zeroed, (x,))
    optimizer.finalize(discard=True)
    assert torch.equal(without, model(x))


def test_gradients_of_each_sample() -> None:
    model, optimizer = trained()
    x, y = batches(1)[0]
    parameters = {n: p for n, p in named(model).items() if "boosters" in n}

    def loss(given: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, given, (one[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(each[name].mean(0), p.grad)


def test_ensembles() -> None:
    models = [trained(steps)[0] for steps in (5, 6)]
    x, _ = batches(1)[0]
    parameters, buffers = stack_module_state(models)
    given = {name: p.detach() for name, p in parameters.items()}
    found = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(given, buffers)
    for outputs, model in zip(found, models, strict=True):
        torch.testing.assert_close(outputs, model(x))


def test_the_tensors_that_are_put_in_get_their_gradients() -> None:
    """They stand where frozen weights are, and are somebody's own."""
    model, _ = trained()
    x, y = batches(1)[0]
    plain = stack().requires_grad_()
    plain.load_state_dict(model.state_dict())
    cross_entropy(plain(x), y).backward()
    state = {n: v.detach().clone().requires_grad_() for n, v in model.state_dict().items()}
    cross_entropy(functional_call(model, state, (x,)), y).backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(state[name].grad, p.grad)


def test_another_models_parameters() -> None:
    """They are what is computed with, and stay trainable."""
    model, _ = trained()
    x, _ = batches(1)[0]
    other = stack(seed=1).requires_grad_()
    given = dict(other.named_parameters())
    assert torch.equal(functional_call(model, given, (x,)), other(x))
    assert all(p.requires_grad for p in other.parameters())


def test_parameters_with_factors_of_their_own() -> None:
    model, _ = trained()
    x, _ = batches(1)[0]
    own = {name: nn.Parameter(p.clone()) for name, p in named(model).items()}
    assert torch.equal(functional_call(model, own, (x,)), model(x))
    with torch.no_grad():
        for name, p in own.items():
            if "boosters" in name:
                p.zero_()
    state = {name: p.detach() for name, p in model.named_parameters() if "boosters" not in name}
    plain = stack()
    plain.load_state_dict(state)
    torch.testing.assert_close(functional_call(model, own, (x,)), plain(x))


def test_parameters_of_a_copy_hold_the_pairs_already() -> None:
    model, _ = trained()
    x, _ = batches(1)[0]
    twin = copy.deepcopy(model)
    expected = twin(x)
    found = functional_call(model, dict(twin.named_parameters()), (x,))
    torch.testing.assert_close(found, expected)
    assert torch.equal(functional_call(model, dict(model.named_parameters()), (x,)), model(x))
