"""A model whose optimizer object is gone is given back, or taken by the next optimizer."""

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from interrupts import At, Interrupt
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer, release
from training import train


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    given = {"kappa": 4, "lr": 0.05, "layers_per_booster": 2, **settings}
    return BoostedLowRankOptimizer(torch.optim.AdamW, model, **given)


def anatomy(model: nn.Module) -> list[Any]:
    kinds = [k for k in vars(nn.Linear(1, 1)) if k.endswith(("hooks", "hooks_with_kwargs"))]
    hooks = [len(getattr(m, kind) or ()) for m in model.modules() for kind in kinds]
    forwards = ["forward" in vars(m) for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    return [[n for n, _ in model.named_modules()], hooks, forwards, flags]


def interrupted(model: nn.Module, **settings: Any) -> None:
    """A training function that was stopped in the middle of a booster, under a scheduler."""

    def fit() -> None:
        optimizer = boosted(model, **settings)
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        train(model, optimizer, batches(6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit()


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda model: model,
    "copy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "saved": saved,
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "direft": {"adapter": "direft"},
    "biases, checkpointing, head": {
        "bias": "targets",
        "checkpointing": True,
        "modules_to_save": ["head"],
    },
    "carried": {"carry": 0.5},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("way", WAYS)
def test_a_model_without_its_optimizer_is_released(way: str, settings: str) -> None:
    model = stack()
    before, keys = anatomy(model), list(model.state_dict())
    interrupted(model, **SETTINGS[settings])
    model = WAYS[way](model)
    x = batches(1)[0][0]
    output = model(x)
    assert release(model) is model
    assert torch.allclose(model(x), output, rtol=1e-9, atol=1e-12)
    assert anatomy(model) == before and list(model.state_dict()) == keys
    assert release(model) is model


@pytest.mark.parametrize("line", range(500, 10_000, 997))
def test_a_release_that_is_interrupted_is_done_by_the_next(line: int) -> None:
    model = stack()
    before = anatomy(model)
    interrupted(model, bias="targets", modules_to_save=["head"])
    x = batches(1)[0][0]
    output = model(x)
    with At(line), suppress(Interrupt):
        release(model)
    release(model)
    assert torch.allclose(model(x), output, rtol=1e-9, atol=1e-12)
    assert anatomy(model) == before


@pytest.mark.parametrize("way", WAYS)
def test_a_new_optimizer_takes_it(way: str) -> None:
    model = stack()
    interrupted(model)
    model = WAYS[way](model)
    x = batches(1)[0][0]
    output = model(x)
    optimizer = boosted(model)
    assert torch.allclose(model(x), output, rtol=1e-9, atol=1e-12)
    train(model, optimizer, batches(6))
    output = model(x)
    assert torch.allclose(optimizer.finalize()(x), output, rtol=1e-9, atol=1e-12)
    assert all(p.requires_grad for p in model.blocks.parameters())


@pytest.mark.parametrize("call", [release, boosted])
def test_a_living_optimizer_keeps_its_model(call: Callable[[nn.Module], object]) -> None:
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(2))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"already belongs to .*finalize\(\).*release"):
        call(model)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    train(model, optimizer, batches(2))
    both = copy.deepcopy(optimizer)
    twin = pickle.loads(pickle.dumps(optimizer))
    for other in (both, twin):
        with pytest.raises(RuntimeError, match="already belongs"):
            call(other.model)
    optimizer.finalize()


@pytest.mark.parametrize("part", ["blocks.1", "head", "blocks"])
@pytest.mark.parametrize("first", ["inner", "outer"])
def test_optimizers_whose_models_overlap_are_refused(first: str, part: str) -> None:
    model = stack()
    order = [model, model.get_submodule(part)]
    taken, refused = order if first == "outer" else reversed(order)
    settings = {"target_modules": r".*", "modules_to_save": [], "layers_per_booster": 1}
    optimizer = boosted(taken, **settings)
    with pytest.raises(RuntimeError, match="already belongs"):
        boosted(refused, **settings)
    optimizer.finalize()
    boosted(refused, **settings).finalize()


def test_a_part_of_an_abandoned_model_is_not_released_alone() -> None:
    model = stack()
    interrupted(model)
    with pytest.raises(RuntimeError, match="whole"):
        release(model.blocks[0])
    release(model)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        release("model")  # type: ignore[arg-type]


def test_nothing_keeps_an_abandoned_optimizer_alive() -> None:
    model = stack()
    interrupted(model)
    release(model)
    assert not [m for m in model.modules() if type(m).__module__.startswith("torch_xgb")]
