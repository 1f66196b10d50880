"""States of odd moments: after finalize, kept in memory, torn, beside other callables."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR

from anatomy import same, values
from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer, LossPlateau
from training import train

Run = tuple[Stack, BoostedLowRankOptimizer]

SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "head": lambda: {"modules_to_save": ["head"]},
    "carry": lambda: {"carry": 0.9},
    "carry-none": lambda: {"carry": 0.0},
    "gradient": lambda: {"init": "gradient"},
    "residual": lambda: {"merge_precision": "residual"},
    "plateau": lambda: {"kappa": LossPlateau(patience=1, min_steps=2, max_steps=3)},
    "knots": lambda: {"kappa": [2, 5, 9]},
}


def run(dtype: torch.dtype = torch.bfloat16, **settings: Any) -> Run:
    model = stack(dtype=dtype)
    settings = {"kappa": 3, "r": 2, "layers_per_booster": 2, "lr": 0.02, "seed": 2, **settings}
    settings.setdefault("lora_alpha", None)
    return model, BoostedLowRankOptimizer(settings.pop("base", AdamW), model, **settings)


def go(model: nn.Module, optimizer: BoostedLowRankOptimizer, data: list[Any]) -> None:
    for batch in data:
        optimizer.observe(1.0)
        train(model, optimizer, [batch])


def state_of(run: Run) -> tuple[Any, ...]:
    return values(run[0]), run[1].state_dict(), run[1].booster_index, run[1].booster_step


@pytest.mark.parametrize("steps", [0, 3, 4, 5])
@pytest.mark.parametrize("setting", SETTINGS)
def test_after_finalize_a_run_resumes_with_the_next_booster(setting: str, steps: int) -> None:
    """Bitwise what a run does that merges where the other one was finished."""
    data = batches(10, torch.bfloat16)
    merged, finished, resumed = (run(**SETTINGS[setting]()) for _ in range(3))
    go(*merged, data[:steps])
    go(*finished, data[:steps])
    begun = finished[1].booster_step or finished[1].boosting.taken_up
    if begun:
        merged[1].merge()
    told: list[Any] = []
    finished[1].on_merge(lambda report: told.append(finished[1].state_dict()))
    finished[1].finalize()
    saved = copy.deepcopy((finished[0].state_dict(), finished[1].state_dict()))
    assert len(told) == bool(begun)
    assert all(same(state, saved[1]) for state in told)
    resumed[0].load_state_dict(saved[0])
    resumed[1].load_state_dict(saved[1])
    assert same(state_of(resumed), state_of(merged))
    go(*merged, data[steps:])
    go(*resumed, data[steps:])
    assert same(state_of(resumed), state_of(merged))


def test_after_a_booster_was_dropped_it_begins_over() -> None:
    data = batches(8, torch.bfloat16)
    straight, dropped, resumed = (run() for _ in range(3))
    go(*straight, data[:3])
    go(*dropped, data[:5])
    dropped[1].finalize(discard=True)
    resumed[0].load_state_dict(dropped[0].state_dict())
    resumed[1].load_state_dict(dropped[1].state_dict())
    go(*straight, data[5:])
    go(*resumed, data[5:])
    assert same(state_of(resumed), state_of(straight))


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_checkpoint_kept_in_memory_survives_being_loaded(setting: str, copied: bool) -> None:
    """As torch's own: loading the model first empties nothing of what was handed out."""
    data = batches(9, torch.bfloat16)
    straight, loaded = (run(**SETTINGS[setting]()) for _ in range(2))
    for one in (straight, loaded):
        go(*one, data[:5])
    model, optimizer = loaded
    kept = model.state_dict(), optimizer.state_dict()
    kept = copy.deepcopy(kept) if copied else kept
    model.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    assert same(state_of(loaded), state_of(straight))
    go(*straight, data[5:])
    go(*loaded, data[5:])
    assert same(state_of(loaded), state_of(straight))


def test_a_state_that_was_written_to_is_refused() -> None:
    model, optimizer = run()
    go(model, optimizer, batches(4, torch.bfloat16))
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    next(iter(state["state"].values()))["exp_avg"].add_(1.0)
    other, its_optimizer = run()
    other.load_state_dict(weights)
    before = copy.deepcopy(state_of((other, its_optimizer)))
    with pytest.raises(ValueError, match=r"1 tensors differ"):
        its_optimizer.load_state_dict(state)
    assert same(state_of((other, its_optimizer)), before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_state_kept_while_training_goes_on_is_of_its_moment(setting: str) -> None:
    """Neither factors, nor the base's averages, nor residuals in it are written to."""
    data = batches(14, torch.bfloat16)
    model, optimizer = run(**SETTINGS[setting]())
    go(model, optimizer, data[:5])
    weights, state = copy.deepcopy(model.state_dict()), optimizer.state_dict()
    go(model, optimizer, data[5:])
    other, its_optimizer = run(**SETTINGS[setting]())
    other.load_state_dict(weights)
    its_optimizer.load_state_dict(state)
    go(other, its_optimizer, data[5:])
    assert same(state_of((other, its_optimizer)), state_of((model, optimizer)))


@pytest.mark.parametrize("wrong", ["factors", "frozen"])
def test_weights_and_state_of_different_moments(wrong: str) -> None:
    """Without a seal too, what is left when the booster is taken out is compared."""
    model, optimizer = run(torch.float32)
    go(model, optimizer, batches(4, torch.float32))
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    del state["booster"]["seal"]
    if wrong == "factors":
        go(model, optimizer, batches(1, torch.float32))
        state["booster"]["factors"] = optimizer.state_dict()["booster"]["factors"]
    else:
        frozen = state["booster"]["weights"]["frozen"]
        frozen.update(dict.fromkeys(state["booster"]["weights"]["folded"], 1))
    other, its_optimizer = run(torch.float32)
    other.load_state_dict(weights)
    before = copy.deepcopy(state_of((other, its_optimizer)))
    with pytest.raises(RuntimeError, match="not of one moment"):
        its_optimizer.load_state_dict(state)
    assert same(state_of((other, its_optimizer)), before)


def test_heads_of_another_moment() -> None:
    model, optimizer = run(modules_to_save=["head"])
    go(model, optimizer, batches(4, torch.bfloat16))
    state = copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(RuntimeError, match=r"trained in full.*'head.bias'"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "saved", "here"),
    [
        ("r", lambda t: 1, lambda t: 2),
        ("kappa", lambda t: 3, lambda t: 4),
        ("r", lambda t: 2, lambda t: 1),
        ("shrinkage", lambda t: 0.5, lambda t: 0.25),
        ("layers_per_booster", lambda t: 2, lambda t: 1),
        ("layer_sampler", lambda s, t, L, n: [0, 1], lambda s, t, L, n: [1, 2]),
    ],
)
def test_other_callables(name: str, saved: Any, here: Any) -> None:
    """Nothing tells two callables apart but what they answer."""
    model, optimizer = run(**{name: saved})
    go(model, optimizer, batches(4, torch.bfloat16))
    other, its_optimizer = run(**{name: here})
    other.load_state_dict(model.state_dict())
    before = copy.deepcopy(state_of((other, its_optimizer)))
    with pytest.raises(ValueError, match="booster 1 is.*here makes? it"):
        its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(state_of((other, its_optimizer)), before)


def test_a_base_that_fails_to_load_is_given_back() -> None:
    class Fragile(AdamW):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            self.param_groups[0]["lr"] = 7.0
            raise KeyError("exp_avg")

    model, optimizer = run(base=Fragile)
    go(model, optimizer, batches(4, torch.bfloat16))
    state = copy.deepcopy(optimizer.state_dict())
    go(model, optimizer, batches(1, torch.bfloat16))
    before = copy.deepcopy(state_of((model, optimizer)))
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"Fragile.load_state_dict\(\) says"):
        optimizer.load_state_dict(state)
    assert same(state_of((model, optimizer)), before)
    assert same(dict(model.state_dict()), dict(weights))


def test_a_rate_edited_in_a_saved_state_is_taken() -> None:
    model, optimizer = run()
    go(model, optimizer, batches(4, torch.bfloat16))
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    state["param_groups"][0]["lr"] = 0.5
    model.load_state_dict(weights)
    with pytest.warns(UserWarning, match=r"lr.* is 0.5 in the state, and was 0.02"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.5


class Loudest(SGD):
    """Descends at the largest rate so far, kept in the group as schedule-free's ``lr_max``."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.setdefault("lr_max", -1.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["lr_max"] = max(group["lr_max"], group["lr"])
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr_max"])


@pytest.mark.parametrize("steps", [2, 4, 6])
def test_what_a_base_counts_in_its_group_resumes(steps: int) -> None:
    def fresh() -> tuple[Stack, BoostedLowRankOptimizer, ExponentialLR]:
        model, optimizer = run(torch.float32, base=Loudest, lr=1.0)
        return model, optimizer, ExponentialLR(optimizer, 0.8)

    def through(parts: tuple[Any, ...], data: list[Any]) -> None:
        model, optimizer, scheduler = parts
        train(model, optimizer, data, schedulers=[scheduler])

    data = batches(10, torch.float32)
    straight, resumed = fresh(), fresh()
    through(straight, data[:steps])
    saved = copy.deepcopy([part.state_dict() for part in straight])
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    for parts in (straight, resumed):
        through(parts, data[steps:])
    assert same(state_of(resumed[:2]), state_of(straight[:2]))
    assert straight[1].param_groups[0]["lr_max"] < 1.0  # begun anew with a booster


class Learning(Loudest):
    """Learns a rate as Prodigy does, and counts its steps."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update(d=1e-6, d_numerator=0.0, k=0, mine=1.0)

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            group.update(d=2 * group["d"], d_numerator=group["d_numerator"] + 1, k=group["k"] + 1)
            group["mine"] *= 2


@pytest.mark.parametrize("named", [(), ("mine",)])
def test_a_learned_rate_outlives_boosters(named: tuple[str, ...]) -> None:
    """Counters begin anew; an estimate does not, nor what an optimizer names itself."""
    base = type("Named", (Learning,), {"kept_over_boosters": named})
    model, optimizer = run(torch.float32, base=base, lr=1e-3)
    go(model, optimizer, batches(7, torch.float32))
    group = optimizer.param_groups[0]
    assert (group["d"], group["d_numerator"], group["k"]) == (1e-6 * 2**7, 7.0, 1)
    assert group["mine"] == (2.0**7 if named else 2.0)


def test_biases_of_maps_whose_weights_are_tied_are_saved_as_biases() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(nn.Sequential(first, nn.Tanh()), nn.Sequential(second, nn.Tanh()))
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, bias="targets", kappa=4, layers_per_booster=None, lr=0.1
    )
    for _ in range(2):
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    saved = model.state_dict()
    assert {name: tuple(value.shape) for name, value in saved.items()} == {
        "0.0.weight": (6, 6),
        "0.0.bias": (6,),
        "1.0.weight": (6, 6),
        "1.0.bias": (6,),
    }
    assert saved["0.0.weight"] is saved["1.0.weight"]
    assert not torch.equal(saved["0.0.bias"], saved["1.0.bias"])


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_copies_of_tied_maps(with_optimizer: bool) -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(nn.Sequential(first, nn.Tanh()), nn.Sequential(second, nn.Tanh()))
    optimizer = BoostedLowRankOptimizer(AdamW, model, kappa=4, layers_per_booster=None, lr=0.1)
    x = torch.ones(2, 6)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    twin = copy.deepcopy((model, optimizer) if with_optimizer else (model,))[0]
    assert twin[0][0].weight is twin[1][0].weight
    torch.testing.assert_close(twin(x), model(x))


def test_modules_in_another_order_are_refused() -> None:
    """Pairs of one shape would go to each other's weights."""
    model, optimizer = run()
    go(model, optimizer, batches(4, torch.bfloat16))
    turned = stack(dtype=torch.bfloat16)
    for block in turned.blocks:
        block.query = block._modules.pop("query")  # behind the others
    turned.load_state_dict(model.state_dict())
    other = BoostedLowRankOptimizer(
        AdamW, turned, kappa=3, r=2, layers_per_booster=2, lr=0.02, seed=2, lora_alpha=None
    )
    before = values(turned)
    with pytest.raises(ValueError, match=r"another order.*'blocks\.0\.\w+' where"):
        other.load_state_dict(optimizer.state_dict())
    assert same(values(turned), before)
