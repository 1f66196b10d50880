"""What a state is known by again: nothing of it, nor of the model, is another's unnoticed."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from anatomy import same
from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train


def begin(**settings: Any) -> tuple[Stack, BoostedLowRankOptimizer]:
    model = stack(dtype=torch.float32)
    settings = {"kappa": 2, "layers_per_booster": 2, "lr": 0.02, "seed": 2, **settings}
    return model, BoostedLowRankOptimizer(settings.pop("base", AdamW), model, **settings)


def saved(**settings: Any) -> tuple[Any, Any]:
    model, optimizer = begin(**settings)
    train(model, optimizer, batches(5, torch.float32))
    optimizer.param_groups[0]["initial_lr"] = 0.02  # as schedulers do
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def negate(W: Tensor) -> None:
    with torch.no_grad():
        W.view(-1)[3].neg_()


@pytest.mark.parametrize("name", ["embed.weight", "blocks.1.up.bias"])
def test_frozen_weights_of_another_moment(name: str) -> None:
    """Refused, nothing being changed; what was cast is another matter, and so is intention."""
    weights, state = saved()
    negate(weights[name])
    model, optimizer = begin()
    model.load_state_dict(weights)
    before = copy.deepcopy((dict(model.named_parameters()), optimizer.state_dict()))
    with pytest.raises(RuntimeError, match=f"stay frozen 1 differ, first '{name}'"):
        optimizer.load_state_dict(state)
    assert same((dict(model.named_parameters()), optimizer.state_dict()), before)
    for key in ("rest", "seal"):
        del state["booster"][key]
    optimizer.load_state_dict(state)


def test_frozen_weights_that_were_cast() -> None:
    weights, state = saved()
    model, optimizer = begin()
    model.load_state_dict(weights)
    model.embed.bfloat16()
    optimizer.load_state_dict(state)
    assert optimizer.booster_index == 2


def test_weights_that_another_optimizer_trains_are_not_looked_at() -> None:
    model, optimizer = begin()
    with pytest.warns(UserWarning, match="require gradients now"):
        model.embed.requires_grad_(True)
        train(model, optimizer, batches(1, torch.float32))
    assert "embed.weight" not in optimizer.state_dict()["booster"]["rest"]
    assert "head.weight" in optimizer.state_dict()["booster"]["rest"]


@pytest.mark.parametrize("rate", ["lr", "initial_lr"])
def test_a_rate_that_was_changed_is_said(rate: str) -> None:
    weights, state = saved()
    model, optimizer = begin()
    model.load_state_dict(weights)
    state["param_groups"][0][rate] = 0.5
    with pytest.warns(UserWarning, match=rf"param_groups\[0\]\['{rate}'\] is 0.5 in the state"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0][rate] == 0.5


class Averaging(AdamW):
    """Saves something of its own beside its groups."""

    average = 1.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "average": self.average, "told": b"a"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({k: state_dict[k] for k in ("state", "param_groups")})
        self.average = state_dict["average"]


@pytest.mark.parametrize(("key", "value"), [("average", 2.0), ("told", b"b"), ("average", None)])
def test_all_that_a_base_saves_is_sealed(key: str, value: Any) -> None:
    weights, state = saved(base=Averaging)
    model, optimizer = begin(base=Averaging)
    model.load_state_dict(weights)
    other = {**state, key: value}
    if value is None:
        del other[key]
    with pytest.raises(ValueError, match="the state is not what was saved"):
        optimizer.load_state_dict(other)
    optimizer.load_state_dict({**state, "epoch": 3})  # of who saves it
    assert isinstance(optimizer.base, Averaging) and optimizer.base.average == 1.0


def test_a_seal_is_looked_at_whatever_the_version_says() -> None:
    weights, state = saved()
    model, optimizer = begin()
    model.load_state_dict(weights)
    state["booster"]["version"] = 1
    negate(state["booster"]["factors"][0])
    with pytest.raises(ValueError, match="the state is not what was saved"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keys", 3),
        ("keys", [[1]]),
        ("keys", []),
        ("keys", ["other"]),
        ("rates", None),
        ("rates", {}),
        ("rates", {"a": 1}),
    ],
)
def test_a_damaged_seal_is_said_to_be(key: str, value: Any) -> None:
    optimizer = begin()[1]
    state = copy.deepcopy(optimizer.state_dict())
    state["booster"]["seal"][key] = value
    with pytest.raises(ValueError, match="the state is not what was saved"):
        optimizer.load_state_dict(state)


def test_states_of_one_moment_are_alike_in_every_order() -> None:
    """Whatever was drawn first: who compares files compares their bytes."""

    def held(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> list[str]:
        return list(optimizer.state_dict()["booster"]["weights"]["residuals"])

    def last(seed: int, t: int, L: int, n: int) -> list[int]:
        return [2 - t % 3]

    settings = {"merge_precision": "residual", "layer_sampler": last, "layers_per_booster": 1}
    model, optimizer = begin(**settings)
    train(model, optimizer, batches(5, torch.float32))
    order = held(model, optimizer)
    assert order == [w.name for w in optimizer.boosting.weights if w.name in order]
    assert len({name.split(".")[1] for name in order}) == 2
