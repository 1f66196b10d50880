"""States that were damaged, edited or torn: each is refused, and nothing is changed."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anatomy import anatomy, same, values
from bases import BASES
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer, LossPlateau
from training import train

Path = tuple[Any, ...]
RATES = ("lr", "initial_lr")


def plateau() -> LossPlateau:
    return LossPlateau(patience=1, min_steps=2, max_steps=3)


RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "carry-bf16": lambda: {"carry": 0.9, "dtype": torch.bfloat16},
    "head-bias": lambda: {"modules_to_save": ["head"], "bias": "targets"},
    "plateau": lambda: {"kappa": plateau(), "base": "third-party-counting"},
}


def begin(run: str) -> tuple[nn.Module, BoostedLowRankOptimizer, torch.dtype]:
    settings = RUNS[run]()
    dtype = settings.pop("dtype", torch.float32)
    optimizer_class, kwargs = BASES[settings.pop("base", "adamw")]
    settings = {"kappa": 3, "r": 2, "layers_per_booster": 2, "seed": 4, **settings}
    settings.setdefault("lora_alpha", None)
    model = stack(dtype=dtype)
    return model, BoostedLowRankOptimizer(optimizer_class, model, **settings, **kwargs), dtype


def steps(
    model: nn.Module, optimizer: BoostedLowRankOptimizer, count: int, dtype: torch.dtype
) -> None:
    for batch in batches(count, dtype):
        optimizer.observe(1.0)
        train(model, optimizer, [batch])


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a state, inner containers among them, under the keys that lead to it."""
    if path:
        yield path, value
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    for key, one in value.items() if isinstance(value, dict) else ():
        yield from leaves(one, (*path, key))


def put(state: Any, path: Path, change: Callable[[Any, Any], None]) -> None:
    """Change what stands at a path; tuples on the way become lists."""
    for key in path[:-1]:
        if isinstance(state[key], tuple):
            state[key] = list(state[key])
        state = state[key]
    change(state, path[-1])


def damaged(value: Any, dice: random.Random) -> Any:
    """Something else than a value, as a flipped bit, another's entry or an edit would leave it."""
    if isinstance(value, Tensor):
        return _damaged_tensor(value.clone(), dice)
    if isinstance(value, bool):
        return dice.choice([not value, "yes"])
    if isinstance(value, int):
        return dice.choice([value + 1, -1 - value, value ^ 1 << 20, "1", 1.5])
    if isinstance(value, float):
        return dice.choice([value * 2 + 1, float("nan"), "0.1", None])
    if isinstance(value, str):
        return dice.choice([value + "x", 3])
    if value is None:
        return dice.choice([{}, 7, "none"])
    return dice.choice([None, 3, type(value)()]) if len(value) else 3


def _damaged_tensor(value: Tensor, dice: random.Random) -> Any:
    kinds = [lambda: None, lambda: value.tolist(), lambda: torch.zeros(1, 1, 1)]
    if value.numel():
        size = value.element_size()
        bits = value.view(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
        bits[dice.randrange(len(bits))] ^= 1 << dice.randrange(8 * size - 1)
        kinds += [lambda: value] * 6
    return dice.choice(kinds)()


def damage(state: dict[str, Any], dice: random.Random) -> Path:
    """Damage one value of a state."""
    free = (*RATES, "settings", "seal", "run")
    paths = [p for p, _ in leaves(state) if p[-1] not in RATES and not set(p[:2]) & set(free)]
    path = dice.choice(paths)

    def change(inside: Any, key: Any) -> None:
        if dice.random() < 0.2:
            del inside[key]
        else:
            inside[key] = damaged(inside[key], dice)

    put(state, path, change)
    return path


def everything(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> Any:
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    parameters = [[id(p) for p in g["params"]] for g in optimizer.param_groups]
    return (anatomy(model), values(model), optimizer.state_dict(), groups, parameters)


def loaded_into(run: str, weights: Any) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    """A run that has gone elsewhere, with the weights of the one that was saved."""
    model, optimizer, dtype = begin(run)
    steps(model, optimizer, 2, dtype)
    model.load_state_dict(weights)
    return model, optimizer


def saved_run(run: str) -> tuple[Any, Any]:
    model, optimizer, dtype = begin(run)
    steps(model, optimizer, 5, dtype)
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


@pytest.mark.parametrize("run", RUNS)
def test_damaged_states_are_refused(run: str) -> None:
    """Whatever single value differs, by an error of ours, and nothing is changed."""
    weights, saved = saved_run(run)
    model, optimizer = loaded_into(run, weights)
    before = copy.deepcopy(everything(model, optimizer))
    dice = random.Random(3)
    for _ in range(80):
        state = copy.deepcopy(saved)
        path = damage(state, dice)
        with pytest.raises((ValueError, RuntimeError)) as caught:
            optimizer.load_state_dict(state)
        assert "torch_xgb" in _raised_in(caught.value), (path, caught.value)
        assert same(everything(model, optimizer), before), path
    optimizer.load_state_dict(saved)
    assert same(optimizer.state_dict(), saved)


@pytest.mark.parametrize("run", RUNS)
def test_damaged_states_without_a_seal(run: str) -> None:
    """As earlier versions saved them: what cannot be told from a state loads."""
    weights, saved = saved_run(run)
    del saved["booster"]["seal"]
    dice = random.Random(5)
    refused = 0
    for _ in range(40):
        model, optimizer = loaded_into(run, weights)
        state = copy.deepcopy(saved)
        path = damage(state, dice)
        before = copy.deepcopy(everything(model, optimizer))
        try:
            optimizer.load_state_dict(state)
        except (ValueError, RuntimeError) as error:
            refused += 1
            assert "torch_xgb" in _raised_in(error), (path, error)
            assert same(everything(model, optimizer), before), path
    assert refused > 10


def _raised_in(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename


@pytest.mark.parametrize(
    "value", [b"x", torch.ones(2), {1: 2, "a": 3}, {(1, 2): 3}], ids=lambda value: str(value)[:9]
)
def test_a_setting_that_no_run_saves_is_refused(value: Any) -> None:
    model, optimizer, _ = begin("head-bias")
    state = copy.deepcopy(optimizer.state_dict())
    state["booster"]["settings"]["init"] = value
    with pytest.raises(ValueError, match="another configuration or model: init"):
        optimizer.load_state_dict(state)
