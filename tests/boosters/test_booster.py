"""The factors and their place in the model, from attaching to taking everything off again."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from anatomy import anatomy, same_values, values
from tiny import HIDDEN, KINDS, WIDTH, as_matrices, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    settings.setdefault("lora_alpha", None)
    return BoostedLowRankOptimizer(torch.optim.AdamW, model, lr=0.02, **settings)


def ids(optimizer: BoostedLowRankOptimizer) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attaching_changes_no_output_and_no_key(dtype: torch.dtype, kind: str) -> None:
    model = stack(kind=kind, dtype=dtype)
    x = batches(1, dtype)[0][0]
    output, keys, saved = model(x), list(model.state_dict()), values(model)
    metadata = model.state_dict()._metadata.keys()
    optimizer = boosted(model, layers_per_booster=None, r=2)
    assert torch.equal(model(x), output)
    with torch.no_grad():
        assert torch.equal(model(x), output)
    assert torch.equal(model.eval()(x), output)
    state = model.state_dict()
    assert list(state) == keys
    assert set(state._metadata) <= set(metadata) | {n for n, _ in model.named_modules()}
    assert all(torch.equal(state[name], saved[name]) for name in keys)
    optimizer.merge()
    assert torch.equal(model(x), output)
    assert list(model.state_dict()) == keys


def test_factors_train_and_nothing_else() -> None:
    """Clipping and zero_grad find the factors on the model; every other parameter is frozen."""
    model = stack()
    own = {id(p) for p in model.parameters()}
    optimizer = boosted(model, layers_per_booster=2)
    factors = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.requires_grad} == factors
    assert {id(p) for p in model.parameters()} == own | factors
    assert not own & factors
    assert {id(f) for pair in optimizer.active_factors.values() for f in pair} == factors
    assert len(optimizer.param_groups) == 1
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names))


def test_saved_modules_are_the_second_group() -> None:
    model = stack()
    optimizer = boosted(model, modules_to_save=["head"])
    assert len(optimizer.param_groups) == 2
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [
        id(p) for p in model.head.parameters()
    ]
    assert all(p.requires_grad for p in model.head.parameters())
    assert not any(p.requires_grad for p in model.embed.parameters())


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_and_dtypes_of_the_factors(dtype: torch.dtype, r: int) -> None:
    """float32 under weights of 32 bits and less, float64 under float64."""
    model = stack(dtype=dtype)
    optimizer = boosted(model, r=r, layers_per_booster=1)
    (layer,) = optimizer.active_layers
    pairs = optimizer.active_factors
    assert set(pairs) == {f"{layer}.{n}" for n in ("query", "key", "value", "out", "up", "down")}
    for name, (A, B) in pairs.items():
        rows, columns = model.get_submodule(name).weight.shape
        assert (A.shape, B.shape) == ((r, columns), (rows, r))
        assert A.dtype == B.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_init_is_kaimings(rows: int, columns: int, seed: int) -> None:
    model = nn.Sequential(nn.Linear(columns, rows))
    optimizer = boosted(model, seed=seed)
    A, B = optimizer.active_factors["0"]
    assert A.abs().max() <= columns**-0.5
    assert A.count_nonzero() == A.numel()
    assert B.count_nonzero() == 0


@pytest.mark.parametrize("columns", [4, 100])
def test_init_is_uniform(columns: int) -> None:
    """Kolmogorov-Smirnov against U(-1/sqrt(in), 1/sqrt(in)), at one in ten thousand."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(columns, 4)) for _ in range(2)))
    optimizer = boosted(model, r=4, kappa=None)
    drawn = []
    for _ in range(200):
        drawn += [A.detach().clone().flatten() for A, _ in optimizer.active_factors.values()]
        optimizer.merge()
    ranks = torch.cat(drawn).mul(columns**0.5).add(1).div(2).sort().values
    distance = (ranks - torch.arange(len(ranks)) / len(ranks)).abs().max()
    assert distance < 2.2 / math.sqrt(len(ranks))


def test_a_new_booster_is_new_values_in_the_same_objects() -> None:
    model, data = stack(depth=5), batches(12)
    optimizer = boosted(model, kappa=3, layers_per_booster=2)
    objects, groups = ids(optimizer), [id(group) for group in optimizer.param_groups]
    drawn = set()
    for t in range(4):
        drawn.add(optimizer.active_layers)
        pairs = optimizer.active_factors
        assert {id(f) for pair in pairs.values() for f in pair} == set(objects[0])
        assert all(
            B.count_nonzero() == 0 and A.count_nonzero() == A.numel() for A, B in pairs.values()
        )
        train(model, optimizer, data[3 * t : 3 * t + 3])
        assert ids(optimizer) == objects
        assert [id(group) for group in optimizer.param_groups] == groups
    assert len(drawn) > 1, "the same blocks every time prove nothing"


def test_memory_is_that_of_the_drawn_layers() -> None:
    """O(L_s) parameters and state, not O(L)."""
    block = 4 * 2 * WIDTH + 2 * (WIDTH + HIDDEN)
    for depth in (3, 9):
        model = stack(depth=depth)
        optimizer = boosted(model, kappa=1, layers_per_booster=2)
        train(model, optimizer, batches(6))
        assert sum(p.numel() for p in optimizer.param_groups[0]["params"]) == 2 * block
        assert len(optimizer.state) <= 2 * 12


def test_weights_are_frozen_bitwise_inside_a_booster() -> None:
    model = stack()
    W = as_matrices(model)
    optimizer = boosted(model, kappa=None, r=2)
    train(model, optimizer, batches(9))
    after = as_matrices(model, W)
    assert all(torch.equal(after[name], W[name]) for name in W)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 3])
def test_a_merge_keeps_the_function(dtype: torch.dtype, kind: str, r: int) -> None:
    model = stack(kind=kind, dtype=dtype)
    optimizer = boosted(model, kappa=None, r=r, lora_alpha=2.0, layers_per_booster=2)
    x = batches(1, dtype)[0][0]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for _ in range(3):
        train(model, optimizer, batches(4, dtype))
        assert all(B.count_nonzero() for _, B in optimizer.active_factors.values())
        before = model(x).detach()
        optimizer.merge()
        torch.testing.assert_close(model(x), before, rtol=tolerance, atol=tolerance)
    train(model, optimizer, batches(2, dtype))
    before = model(x).detach()
    optimizer.finalize()
    torch.testing.assert_close(model(x), before, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [0, 2, 3])
def test_finalize_takes_everything_off(dtype: torch.dtype, steps: int) -> None:
    model = stack(dtype=dtype)
    model.embed.requires_grad_(False)
    model.blocks[1].key.bias.requires_grad_(False)
    model.blocks[0].eval()
    before, keys = anatomy(model), list(model.state_dict())
    # AdamW's eps is zero in float16, where "embed" is trained in its own dtype.
    optimizer = BoostedLowRankOptimizer(
        torch.optim.SGD, model, lr=0.02, kappa=3, modules_to_save=["embed"]
    )
    train(model, optimizer, batches(steps, dtype))
    assert optimizer.finalize() is model
    assert anatomy(model) == before
    assert list(model.state_dict()) == keys
    assert optimizer.finalize() is model


def test_finalize_of_an_untouched_booster_changes_no_value() -> None:
    model = stack()
    before = values(model)
    optimizer = boosted(model)
    optimizer.finalize()
    assert same_values(model, before)


def test_another_optimizer_may_follow() -> None:
    model = stack()
    first = boosted(model)
    train(model, first, batches(3))
    first.finalize()
    second = boosted(model)
    assert train(model, second, batches(3)).losses != []
    second.finalize()


def test_hooks_of_the_user_stay_and_see_the_whole_output() -> None:
    """Hooks on a target see what it computes with the pair, whenever they were registered."""
    model = stack()
    seen: dict[str, torch.Tensor] = {}
    early = model.blocks[0].up.register_forward_hook(lambda m, x, y: seen.update(early=y.clone()))
    optimizer = boosted(model, layers_per_booster=None, kappa=None)
    late = model.blocks[0].up.register_forward_hook(lambda m, x, y: seen.update(late=y.clone()))
    train(model, optimizer, batches(3))
    inputs: list[torch.Tensor] = []
    probe = model.blocks[0].up.register_forward_pre_hook(lambda m, x: inputs.append(x[0].clone()))
    model(batches(1)[0][0])
    (A, B), linear = optimizer.active_factors["blocks.0.up"], model.blocks[0].up
    expected = inputs[0] @ (linear.weight + B @ A).T + linear.bias
    torch.testing.assert_close(seen["early"], expected)
    torch.testing.assert_close(seen["late"], expected)
    optimizer.finalize()
    assert set(model.blocks[0].up._forward_hooks) == {early.id, late.id}
    probe.remove()


def test_a_pre_hook_that_changes_the_input() -> None:
    """The pair gets the input the map gets."""
    model = nn.Sequential(nn.Linear(3, 2)).double()
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    optimizer = boosted(model)
    A, B = optimizer.active_factors["0"]
    with torch.no_grad():
        B.fill_(1.0)
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = 2 * x @ (model[0].weight + B @ A).T + model[0].bias
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("full", [True, False])
def test_backward_hooks_on_a_target(full: bool) -> None:
    model = stack()
    optimizer = boosted(model, layers_per_booster=None)
    seen = []
    up = model.blocks[1].up
    if full:
        up.register_full_backward_hook(lambda m, inputs, outputs: seen.append(outputs[0].shape))
    else:
        up.register_full_backward_pre_hook(lambda m, outputs: seen.append(outputs[0].shape))
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    optimizer.step()
    assert seen == [(4, 5, HIDDEN)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_model_leaves_the_factors_in_float32(dtype: torch.dtype) -> None:
    model = stack(dtype=torch.float32)
    optimizer = boosted(model, kappa=2)
    objects = ids(optimizer)
    train(model, optimizer, batches(1, torch.float32))
    pairs = {
        n: (A.detach().clone(), B.detach().clone())
        for n, (A, B) in optimizer.active_factors.items()
    }
    model.to(dtype)
    assert model.blocks[0].up.weight.dtype == dtype
    for name, pair in optimizer.active_factors.items():
        for factor, before in zip(pair, pairs[name], strict=True):
            assert torch.equal(factor, before)
            assert factor.dtype == torch.float32
    assert ids(optimizer) == objects
    train(model, optimizer, batches(4, dtype))
    assert optimizer.booster_index == 2
    assert {p.dtype for p in optimizer.finalize().parameters()} == {dtype}


def test_no_blocks_means_every_linear_map_is_a_layer() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    optimizer = boosted(model, layers_per_booster=1, kappa=1)
    assert optimizer.targets == {"0": "0", "2": "2", "4": "4"}
    for _ in range(6):
        (layer,) = optimizer.active_layers
        assert set(optimizer.active_factors) == {layer}
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_factors_are_parameters_of_the_targets_shape() -> None:
    """With every layer drawn nothing needs sharing; with some, unequal layers share slots."""
    for layers_per_booster in (None, 1):
        model = nn.Sequential(
            nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)
        )
        optimizer = boosted(model, layers_per_booster=layers_per_booster, kappa=1)
        objects = ids(optimizer)
        for _ in range(5):
            for name, (A, B) in optimizer.active_factors.items():
                rows, columns = model.get_submodule(name).weight.shape
                assert isinstance(A, nn.Parameter) and isinstance(B, nn.Parameter)
                assert (A.shape, B.shape) == ((1, columns), (rows, 1))
                assert {id(A), id(B)} <= set(objects[0])
            optimizer.merge()
            assert ids(optimizer) == objects


def test_a_root_that_is_a_linear_map() -> None:
    model = nn.Linear(4, 3, dtype=torch.float64)
    before, keys = anatomy(model), list(model.state_dict())
    optimizer = boosted(model, kappa=2)
    x = torch.randn(2, 4, dtype=torch.float64)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    probe = model(x).detach()
    torch.testing.assert_close(
        x @ model.state_dict()["weight"].T + model.bias, probe, rtol=1e-12, atol=1e-12
    )
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(optimizer.finalize()(x), probe, rtol=1e-12, atol=1e-12)
    assert anatomy(model) == before


def test_a_root_that_calls_its_children() -> None:
    """A container moved in as a child would be called as one."""

    class Walk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for child in self.children():
                x = child(x)
            return x

    for model in (Walk(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))):
        length = len(list(model.children()))
        optimizer = boosted(model, layers_per_booster=None, kappa=1)
        assert len(list(model.children())) == length
        for _ in range(3):
            model(torch.randn(3, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.finalize()
