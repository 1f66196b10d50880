"""Weights that others write to: loaded, swapped, assigned, copied in; and what was remembered."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from anatomy import same, values
from tiny import Stack, batches, stack, tied
from torch_xgb import BoostedLowRankOptimizer
from training import train

Run = tuple[Stack, BoostedLowRankOptimizer]

SETTINGS: dict[str, dict[str, Any]] = {
    "residual": {"dtype": torch.bfloat16},
    "residual-bias": {"dtype": torch.bfloat16, "bias": "targets"},
    "carry": {"carry": 0.97, "shrinkage": 0.7},
    "carry-residual": {"carry": 0.97, "dtype": torch.bfloat16},
    "direft": {"adapter": "direft", "dtype": torch.bfloat16},
    "gradient": {"init": "gradient"},
}


def run(dtype: torch.dtype = torch.float32, **settings: Any) -> Run:
    model = stack(dtype=dtype)
    settings = {"kappa": 3, "r": 2, "layers_per_booster": 2, "lr": 0.02, "seed": 2, **settings}
    return model, BoostedLowRankOptimizer(settings.pop("base", AdamW), model, **settings)


def data(count: int, model: nn.Module) -> list[Any]:
    return batches(count, next(model.parameters()).dtype)


def state_of(run: Run) -> tuple[Any, ...]:
    return values(run[0]), run[1].state_dict()


def loaded(model: nn.Module, weights: dict[str, Tensor], assign: bool = False) -> None:
    model.load_state_dict(weights, assign=assign)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("steps", [3, 4, 9, 10])
@pytest.mark.parametrize("setting", SETTINGS)
def test_swapped_for_an_evaluation_and_back(setting: str, steps: int, assign: bool) -> None:
    """Bitwise as if it had not been: residuals, carried pairs and the pending one come back."""
    straight, swapped = run(**SETTINGS[setting]), run(**SETTINGS[setting])
    all_of_it = data(14, straight[0])
    for one in (straight, swapped):
        train(*one, all_of_it[:steps])
    model = swapped[0]
    backup = copy.deepcopy(model.state_dict())
    average = {k: v.lerp(torch.ones_like(v), 0.1) for k, v in backup.items()}
    loaded(model, average, assign)
    assert same(dict(model.state_dict()), average)
    loaded(model, backup, assign)
    assert same(state_of(swapped), state_of(straight))
    for one in (straight, swapped):
        train(*one, all_of_it[steps:])
    assert same(state_of(swapped), state_of(straight))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_there_already_changes_nothing(setting: str) -> None:
    straight, reloaded = run(**SETTINGS[setting]), run(**SETTINGS[setting])
    for i, batch in enumerate(data(11, straight[0])):
        train(*straight, [batch])
        train(*reloaded, [batch])
        reloaded[0].load_state_dict(reloaded[0].state_dict())
        assert same(state_of(reloaded), state_of(straight)), i


def test_after_a_step_on_other_weights_nothing_comes_back() -> None:
    model, optimizer = run(torch.bfloat16)
    train(model, optimizer, data(10, model))
    backup = copy.deepcopy(model.state_dict())
    model.load_state_dict({k: v * 0.5 for k, v in backup.items()})
    train(model, optimizer, data(1, model))
    model.load_state_dict(backup)
    assert same(dict(model.state_dict()), dict(backup))
    assert not optimizer.state_dict()["booster"]["weights"]["residuals"]


def in_place(weight: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(value)


def behind(weight: Tensor, value: Tensor) -> None:
    weight.data.copy_(value)


@pytest.mark.parametrize("write", [in_place, behind])
@pytest.mark.parametrize("setting", ["residual", "carry"])
def test_weights_written_in_place_are_noticed(
    setting: str, write: Callable[[Tensor, Tensor], None]
) -> None:
    """Residuals and pairs of values that are gone are dropped, and it is said, once."""
    model, optimizer = run(**SETTINGS[setting])
    all_of_it = data(12, model)
    train(model, optimizer, all_of_it[:9])
    for target in optimizer.targets:
        weight = model.get_submodule(target).weight
        write(weight, torch.zeros_like(weight))
    with pytest.warns(UserWarning, match=r"written to by something else.*load_state_dict") as said:
        saved = optimizer.state_dict()["booster"]
    assert not saved["weights"]["residuals"]
    assert not saved["carry"]
    train(model, optimizer, all_of_it[9:])
    assert len(said) == 1


def test_a_merge_notices_and_keeps_the_function() -> None:
    model, optimizer = run(torch.bfloat16, kappa=None)
    train(model, optimizer, data(3, model))
    name, (A, B) = next(iter(optimizer.active_factors.items()))
    weight = model.get_submodule(name).weight
    written = torch.randn(weight.shape).to(weight.dtype)
    behind(weight, written)
    product = (optimizer.boosting.course.draw.s * B @ A).detach().clone()
    with pytest.warns(UserWarning, match=name):
        optimizer.merge()
    torch.testing.assert_close(weight.float(), written.float() + product, atol=0.02, rtol=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("setting", SETTINGS)
def test_nobody_wrote(setting: str) -> None:
    """What we write ourselves, and moving and casting a model, is no one's doing."""
    model, optimizer = run(**SETTINGS[setting])
    train(model, optimizer, data(7, model))
    with optimizer.boosting.folded_in():
        model.state_dict()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    model.to("cpu").double()
    for p in optimizer.boosting.factors:
        p.grad = None
    train(model, optimizer, data(7, model))
    optimizer.finalize()


@pytest.mark.parametrize("base", [AdamW, SGD])
def test_a_head_that_is_assigned_goes_on_being_trained(base: Any) -> None:
    """``assign=True`` makes new Parameters; the base gets them, with their state."""
    straight, assigned = (run(base=base, modules_to_save=["head"], lr=0.1) for _ in range(2))
    for i, batch in enumerate(data(8, straight[0])):
        for one in (straight, assigned):
            train(*one, [batch])
        if i in (1, 4):
            old = assigned[0].head.weight
            assigned[0].load_state_dict(copy.deepcopy(assigned[0].state_dict()), assign=True)
            assert assigned[0].head.weight is not old
            trained = {id(p) for p in assigned[1].param_groups[1]["params"]}
            assert trained == {id(p) for p in assigned[0].head.parameters()}
    assert same(state_of(assigned), state_of(straight))


def run_of_tied() -> tuple[nn.Module, BoostedLowRankOptimizer]:
    model = tied()
    return model, BoostedLowRankOptimizer(AdamW, model, kappa=4, layers_per_booster=None, lr=0.05)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("resumed", [False, True])
def test_tied_weights_loaded(assign: bool, resumed: bool) -> None:
    """They stay one, whether the optimizer's state follows or training just goes on."""
    all_of_it = batches(9, torch.float32)
    straight, other = run_of_tied(), run_of_tied()
    train(*straight, all_of_it[:6])
    if not resumed:
        train(*other, all_of_it[:6])
    saved = copy.deepcopy((straight[0].state_dict(), straight[1].state_dict()))
    other[0].load_state_dict(saved[0], assign=assign)
    if resumed:
        other[1].load_state_dict(saved[1])
    for one in (straight, other):
        train(*one, all_of_it[6:])
        one[1].finalize()
    assert other[0].blocks[0][0].weight is other[0].blocks[2][0].weight
    assert same(dict(other[0].state_dict()), dict(straight[0].state_dict()))


def test_modules_that_are_tied_no_more() -> None:
    model, optimizer = run_of_tied()
    train(model, optimizer, batches(2, torch.float32))
    model.blocks[2][0].weight = nn.Parameter(torch.zeros(5, 5), requires_grad=False)
    before = copy.deepcopy(values(model))
    with pytest.raises(RuntimeError, match=r"blocks.0.0.weight was tied among 2 modules"):
        optimizer.merge()
    assert same(values(model), before)


def test_entries_of_tied_weights_share_a_tensor(tmp_path: Any) -> None:
    """So that a format that stores each tensor once finds them, as in the plain model."""
    safetensors = pytest.importorskip("safetensors.torch", reason="an extra of its own")
    model, optimizer = run_of_tied()
    train(model, optimizer, batches(2, torch.float32))
    for _ in range(2):
        state = model.state_dict()
        assert state["blocks.0.0.weight"] is state["blocks.2.0.weight"]
        assert state["blocks.0.0.weight"] is not state["blocks.1.0.weight"]
    path = str(tmp_path / "model.safetensors")
    safetensors.save_model(model, path)
    plain = tied(seed=1)
    assert safetensors.load_model(plain, path) == (set(), [])
    assert same(dict(plain.state_dict()), dict(state))


def test_held_pairs_follow_the_model() -> None:
    """To whatever device the factors are on when they are taken up."""
    model, optimizer = run(carry=0.9, kappa=2, layers_per_booster=1)
    train(model, optimizer, data(7, model))
    carry = optimizer.boosting._carry
    assert carry is not None and carry.held
    asked: list[Any] = []

    class Elsewhere(Tensor):
        def to(self, *args: Any, **kw: Any) -> Tensor:
            asked.append(args)
            return self.as_subclass(Tensor).clone()

    for name, held in carry.held.items():
        factors = held.factors.map(lambda f: f.as_subclass(Elsewhere))
        carry.held[name] = replace(held, factors=factors)
    train(model, optimizer, data(8, model))
    assert asked
