"""The forward is the module's own, and nobody else reads the weight: or it is said before harm."""

import copy
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from torch_xgb import BoostedLowRankOptimizer


def small(blocks: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(blocks)])


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    given = {"kappa": 3, "layers_per_booster": 2, "lr": 0.02, **settings}
    return BoostedLowRankOptimizer(torch.optim.AdamW, model, **given)


def batch(i: int) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(i))


def go(model: nn.Module, optimizer: BoostedLowRankOptimizer, steps: int, **more: Any) -> None:
    penalty: Callable[[], Any] = more.get("penalty", lambda: 0.0)
    for i in range(steps):
        (model(batch(i)).square().mean() + penalty()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def kept(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> None:
    """What the model computes is what it computes without the optimizer."""
    output = model(batch(99))
    assert torch.allclose(optimizer.finalize()(batch(99)), output, rtol=1e-5, atol=1e-6)


def _thrice(self: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, 3 * self.weight, self.bias)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_forward_on_the_instance_is_refused(when: str) -> None:
    model = small()
    if when == "after":
        optimizer = boosted(model)
    for block in model:
        block[0].forward = types.MethodType(_thrice, block[0])
    if when == "before":
        optimizer = boosted(model)
    with pytest.raises(RuntimeError, match=r"output of '.\.0' is changed.*exclude_modules"):
        model(batch(0))
    optimizer.finalize()


def test_a_forward_on_the_instance_that_changes_nothing_goes_on() -> None:
    model = small()
    for block in model:
        block[0].forward = types.MethodType(lambda self, x: nn.Linear.forward(self, x), block[0])
    optimizer = boosted(model)
    go(model, optimizer, 5)
    kept(model, optimizer)


class _Adds(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return output


def test_device_hooks_go_on() -> None:
    model = small()
    for i, block in enumerate(model):
        hook = AlignDevicesHook("cpu", io_same_device=True) if i else _Adds()
        add_hook_to_module(block[0], hook)
    optimizer = boosted(model)
    go(model, optimizer, 7)
    kept(model, optimizer)


def test_a_hook_that_comes_first_and_changes_the_output_is_refused() -> None:
    model = small()
    optimizer = boosted(model)
    go(model, optimizer, 2)
    handles = [b[0].register_forward_hook(lambda m, a, y: 3 * y, prepend=True) for b in model]
    with pytest.raises(RuntimeError, match="prepend=True"):
        model(batch(0))
    for handle in handles:
        handle.remove()
    for block in model:
        block[0].register_forward_hook(lambda m, a, y: 3 * y)
    go(model, optimizer, 3)
    kept(model, optimizer)


def test_a_hook_that_looks_on_goes_behind_ours() -> None:
    model, seen = small(), []
    optimizer = boosted(model)
    for block in model:
        block[0].register_forward_hook(lambda m, a, y: seen.append(y), prepend=True)
    go(model, optimizer, 7)
    drawn = [block[0] for i, block in enumerate(model) if str(i) in optimizer.active_layers]
    assert seen and len(drawn) == 2
    model(batch(0))
    seen.clear()
    output = model[0](batch(0))
    assert torch.equal(model[0][1](seen[0]), output)  # with the pair's share
    kept(model, optimizer)


class Tied(nn.Module):
    """An autoencoder whose decoder reads the encoder's weights."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.encoder = small()
        self.checkpointed = checkpointed

    def decode(self, z: Tensor) -> Tensor:
        for block in reversed(self.encoder):
            z = linear(z, block[0].weight.t())
        return z

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        return (
            checkpoint(self.decode, z, use_reentrant=False) if self.checkpointed else self.decode(z)
        )


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_tied_decoder_is_refused_before_the_first_step(checkpointed: bool) -> None:
    model = Tied(checkpointed)
    before = copy.deepcopy(model.state_dict())
    optimizer = boosted(model)
    with pytest.raises(RuntimeError, match="depends on the weights of.*exclude_modules"):
        go(model, optimizer, 1)
    assert all(torch.equal(v, before[k]) for k, v in optimizer.finalize().state_dict().items())


PENALTIES: dict[str, Callable[[nn.Module], Any]] = {
    "parameters": lambda m: sum(p.square().sum() for p in m.parameters()),
    "attribute": lambda m: m[1][0].weight.square().sum(),
}
LOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "trained": lambda m: 0.01 * sum(p.square().sum() for p in m.parameters() if p.requires_grad),
    "norm": lambda m: 0 * m[1][0].weight.norm().item(),
    "detached": lambda m: m[1][0].weight.detach().sum(),
    "dtype": lambda m: torch.zeros((), dtype=m[1][0].weight.dtype),
    "count": lambda m: 0 * sum(p.numel() for p in m.parameters()),
    "copy": lambda m: 0 * len(copy.deepcopy(m).state_dict()),
    "pickle": lambda m: 0 * len(pickle.dumps(m)),
}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_penalty_on_weights_is_refused(penalty: str) -> None:
    model = small()
    optimizer = boosted(model, layers_per_booster=None)
    with pytest.raises(RuntimeError, match="depends on the weights of"):
        go(model, optimizer, 1, penalty=lambda: PENALTIES[penalty](model))
    assert optimizer.booster_step == 0


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_only_looks_at_weights_is_let(look: str) -> None:
    model = small()
    optimizer = boosted(model)
    go(model, optimizer, 7, penalty=lambda: LOOKS[look](model))
    assert all(type(m._parameters) is dict for m in model.modules())
    kept(model, optimizer)


def test_weights_stay_in_the_hands_of_whoever_writes_to_them_meanwhile() -> None:
    model = small()
    optimizer = boosted(model)
    loss = model(batch(0)).square().mean()
    with torch.no_grad():
        model[1][0].weight.data = torch.zeros(8, 8)
    loss.backward()
    assert torch.equal(model[1][0](batch(0)), model[1][0].bias.expand(4, 8))
    with torch.no_grad():
        model[2][0].weight.zero_()
    optimizer.step()
    assert not model[1][0].weight.any() and not model[2][0].weight.any()


def test_the_watch_ends_with_each_target_s_first_step_and_after_errors() -> None:
    model = small()
    optimizer = boosted(model, layers_per_booster=None)
    with pytest.raises(ZeroDivisionError):
        try:
            model(batch(0))
        finally:
            1 / 0  # noqa: B018
    assert type(model[0][0]._parameters) is not dict
    go(model, optimizer, 1)
    assert all(type(m._parameters) is dict for m in model.modules())
    model(batch(0))
    assert all(type(m._parameters) is dict for m in model.modules())


class _Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, 2 * self.weight, self.bias)


class _Alike(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_another_class_is_refused_where_it_computes_otherwise() -> None:
    model = small()
    optimizer = boosted(model, layers_per_booster=None)
    go(model, optimizer, 1)
    model[0][0].__class__ = _Alike
    go(model, optimizer, 1)
    model[1][0].__class__ = _Doubled
    with pytest.raises(RuntimeError, match=r"output of '1\.0' is changed.*another class"):
        model(batch(0))
