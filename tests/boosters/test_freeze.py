"""``requires_grad`` off and on meanwhile: what is frozen stays so, what is trained trains."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_xgb import BoostedLowRankOptimizer


def small(**kind: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh()) for _ in range(4)],
        nn.Linear(8, 8),
    )


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    given = {"kappa": 4, "layers_per_booster": 2, "lr": 1.0, **settings}
    return BoostedLowRankOptimizer(torch.optim.SGD, model, **given)


def batch(i: int) -> Tensor:
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(i))


def go(model: nn.Module, optimizer: BoostedLowRankOptimizer, steps: int) -> list[float]:
    norms = []
    for i in range(steps):
        x = batch(i)
        (10 * (model(x) - x.flip(1)).square().mean()).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    return norms


HEADS: list[list[str]] = [[], ["4"]]


@pytest.mark.parametrize("heads", HEADS, ids=["no head", "head"])
def test_a_model_turned_off_and_on_trains_as_if_nothing_had_been(heads: list[str]) -> None:
    runs = []
    for toggled in (False, True):
        model = small()
        optimizer = boosted(model, modules_to_save=heads)
        norms: list[float] = []
        for _ in range(10):
            if toggled:
                model.requires_grad_(False)
                passed = batch(99).requires_grad_()
                model(passed).sum().backward()  # as when another network is trained through it
                assert all(p.grad is None for p in model.parameters())
                model.requires_grad_(True)
            norms += go(model, optimizer, 1)
            assert all(p.grad is None for p in model.parameters())
        runs.append((norms, copy.deepcopy(optimizer.finalize().state_dict())))
        assert all(p.requires_grad for p in model.parameters())
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(v, runs[1][1][k]) for k, v in runs[0][1].items())


@pytest.mark.parametrize("heads", HEADS, ids=["no head", "head"])
def test_a_frozen_block_freezes_no_factors(heads: list[str]) -> None:
    model, twin = small(), small()
    optimizer, other = (boosted(m, modules_to_save=heads) for m in (model, twin))
    model[0].requires_grad_(False)
    assert go(model, optimizer, 9) == go(twin, other, 9)


def test_what_is_unfrozen_beside_the_targets_is_said_once_and_left() -> None:
    model = small()
    optimizer = boosted(model)
    go(model, optimizer, 1)
    model[0][1].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"2 weights .* first '0\.1\.weight'.*modules_to_save"):
        go(model, optimizer, 1)
    assert model[0][1].weight.requires_grad and model[0][1].weight.grad is not None
    before = model[0][1].weight.detach().clone()
    model[1][1].requires_grad_(True)
    model.requires_grad_(True)
    go(model, optimizer, 4)  # no second warning
    assert torch.equal(model[0][1].weight, before)
    frozen = [model[2][1].weight, model[0][0].weight]
    assert not any(p.requires_grad for p in frozen)


def test_what_is_unfrozen_and_given_to_a_group_is_trained_and_summed_up() -> None:
    def run() -> tuple[nn.Sequential, BoostedLowRankOptimizer]:
        model = small()
        optimizer = boosted(model)
        model[0][1].requires_grad_(True)
        optimizer.add_param_group({"params": model[0][1].parameters()})
        return model, optimizer

    model, optimizer = run()
    before = model[0][1].weight.detach().clone()
    assert optimizer.summary().in_full["0.1.weight"] == before.numel()
    assert not any(name.startswith("0.1") for name in optimizer.summary().frozen)
    go(model, optimizer, 2)  # nothing is said
    assert not torch.equal(model[0][1].weight, before)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again, resumed = run()
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    for one, other in ((model, optimizer), (again, resumed)):
        go(one, other, 3)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_an_unfrozen_target_is_frozen_again_and_said() -> None:
    model = small()
    optimizer = boosted(model)
    model[1].requires_grad_(True)
    with pytest.warns(UserWarning, match="3 weights require gradients now"):
        go(model, optimizer, 1)
    assert model[1][0].weight.grad is None and not model[1][0].weight.requires_grad


def test_parts_called_by_themselves_are_looked_at_before_the_step() -> None:
    model = small()
    optimizer = boosted(model, unused="skip")
    model.requires_grad_(True)
    x = batch(0)
    for block in model:
        x = block(x)
    x.square().mean().backward()
    assert model[0][0].weight.grad is not None
    optimizer.step()
    assert model[0][0].weight.grad is None and not model[0][0].weight.requires_grad


def test_copies_and_finalized_models_are_their_owner_s() -> None:
    model = small()
    optimizer = boosted(model)
    twin = copy.deepcopy(model)
    twin.requires_grad_(True)
    twin(batch(0)).sum().backward()
    assert twin[0][0].weight.grad is not None
    both = copy.deepcopy(optimizer)
    both.model.requires_grad_(True)
    both.model(batch(0)).sum().backward()
    assert both.model[0][0].weight.grad is None
    optimizer.finalize()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(batch(0)).sum().backward()
    assert not model._forward_pre_hooks and model[0][0].weight.grad is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated:DeprecationWarning")
def test_a_script_compiler_is_told_what_to_do() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)])
    optimizer = BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1)
    with pytest.raises(AttributeError, match=r"jit\.trace.*release\(copy\.deepcopy\(model\)\)"):
        torch.jit.script(model)
    torch.jit.script(optimizer.finalize())
