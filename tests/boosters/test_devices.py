"""Models on several devices, or moved from one to another: devices that are none, see ``Remote``.

What would mix tensors of two of them raises, and all that is computed is the host's, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adagrad, AdamW

from benchmarks.measures.remote import DEVICE, OTHER, Remote, counting, move, moved
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer

HOST = torch.device("cpu")
SETTINGS: dict[str, Any] = {"r": 1, "kappa": 2, "layers_per_booster": 2, "lr": 0.02, "seed": 3}
Devices = list[torch.device]


def placed(model: Any, devices: Devices) -> nn.Module:
    """The model with its blocks and its head on devices, its inputs brought there by hooks."""
    for part, device in zip([*model.blocks, model.head], devices, strict=True):
        part.register_forward_pre_hook(
            lambda _, args, device=device: tuple(one.to(device) for one in args)
        )
        if device != HOST:
            move(part, device)
    if devices[0] != HOST:
        move(model.embed, devices[0])
    return model


def train(
    model: nn.Module, optimizer: Any, data: Any, between: Callable[[int], object] = lambda _: None
) -> list[float]:
    losses = []
    for i, (x, y) in enumerate(data):
        between(i)
        device = next(model.parameters()).device
        loss = cross_entropy(model(x if device == HOST else Remote(x, device)).cpu().double(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def values(model: nn.Module) -> dict[str, Tensor]:
    kept = {n: p.here if isinstance(p, Remote) else p for n, p in model.named_parameters()}
    return {name: value.detach().clone() for name, value in kept.items()}


def spread(devices: Devices, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    model = placed(stack(3, "linear", dtype), devices)
    optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS | settings)
    told: list[Any] = []
    optimizer.on_merge(lambda report: told.append((report.lost, report.update_norm)))
    losses = train(model, optimizer, batches(3, dtype))
    kept = optimizer.state_dict()["booster"]["weights"]
    losses += train(model, optimizer, batches(5, dtype)[3:])
    return losses, told, kept["folded"], values(optimizer.finalize())


CASES: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "bias": ({"bias": "targets", "modules_to_save": ["head"]}, torch.float64),
    "direft": ({"adapter": "direft"}, torch.float64),
    "carry": ({"carry": 0.9, "r": [2, 1], "layers_per_booster": 3}, torch.float64),
    "residual": ({}, torch.bfloat16),
    "residual on the host": ({"residual_device": "cpu"}, torch.bfloat16),
    "residual elsewhere": ({"residual_device": str(OTHER)}, torch.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_on_several_devices(name: str) -> None:
    settings, dtype = CASES[name]
    at_home = name in ("bias", "residual elsewhere")  # where the factors are on the host
    devices = [HOST, OTHER, DEVICE, HOST] if at_home else [DEVICE, OTHER, HOST, OTHER]
    with counting():
        found = spread(devices, settings, dtype)
    wanted = spread([HOST] * 4, settings | {"residual_device": None}, dtype)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_a_map_whose_own_forward_moves_its_input() -> None:
    """As accelerate has it do; hooks are given the input of before."""
    losses = []
    for device in (HOST, OTHER):
        with counting():
            model: Any = move(stack(2))
            for block in model.blocks if device == OTHER else ():
                own = move(block.up, OTHER).forward
                block.up.forward = lambda x, own=own: own(x.to(OTHER)).to(DEVICE)
                own = move(block.down, OTHER).forward
                block.down.forward = lambda x, own=own: own(x.to(OTHER))
                block.register_forward_hook(lambda _, args, y: y.to(DEVICE))
                block.forward = lambda x, block=block: moving(block, x)
            optimizer = BoostedLowRankOptimizer(AdamW, model, **SETTINGS)
            losses.append(train(model, optimizer, batches(5)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)  # gradients are added in another order


def moving(block: Any, x: Tensor) -> Tensor:
    scores = block.query(x) @ block.key(x).mT / x.shape[-1] ** 0.5
    x = x + block.out(scores.softmax(-1) @ block.value(x))
    return x.to(OTHER) + block.down(torch.tanh(block.up(x)))


def take(model: nn.Module, device: torch.device) -> None:
    """Move a model as ``model.to(device)`` does, which keeps its Parameters the same objects."""
    for parameter in list(model.parameters()):
        new = nn.Parameter(moved(parameter, device), parameter.requires_grad)
        torch.utils.swap_tensors(parameter, new)


@pytest.mark.parametrize(
    ("base", "settings", "dtype"),
    [
        (AdamW, {"modules_to_save": ["head"], "carry": 0.9}, torch.float64),
        (Adagrad, {}, torch.bfloat16),
    ],
    ids=["carry", "residual"],
)
def test_a_model_is_moved_in_training(base: Any, settings: Any, dtype: torch.dtype) -> None:
    """Before the first step, inside a booster, and between two; and back to the host."""
    route = {0: DEVICE, 3: OTHER, 4: DEVICE, 7: HOST}
    found = []
    for moves in (False, True):
        with counting():
            model = stack(3, "linear", dtype)
            optimizer = BoostedLowRankOptimizer(base, model, **SETTINGS | settings)
            losses = train(
                model,
                optimizer,
                batches(9, dtype),
                lambda i, m=model, moves=moves: take(m, route[i]) if moves and i in route else None,
            )
            found.append((losses, values(optimizer.finalize())))
    torch.testing.assert_close(*found, atol=0, rtol=0)
