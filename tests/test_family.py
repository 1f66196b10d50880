"""COLA, DiReFT, schedules of every setting, and knots from the loss."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adagrad, AdamW

from family_reference import Link, chain
from tiny import KINDS, Stack, as_matrices, batches, stack
from torch_xgb import BoostedLowRankOptimizer, LossPlateau, Weighted
from torch_xgb.processes import everyone, mean
from torch_xgb.schedule.boundaries import Progress
from torch_xgb.schedule.samplers import least_used

STEPS = 9


def run(
    model: Stack, optimizer: BoostedLowRankOptimizer, steps: int = STEPS, scheduler: Any = None
) -> tuple[list[float], dict[int, dict[str, torch.Tensor]], list[int]]:
    """Train; return the losses, the A every booster began with, and the booster of every step."""
    losses, inits, indices = [], {}, []
    for x, y in batches(steps):
        t = optimizer.booster_index
        indices.append(t)
        if t not in inits:
            pairs = optimizer.active_factors
            inits[t] = {name: A.detach().clone() for name, (A, _) in pairs.items()}
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, inits, indices


def links(inits: dict[int, Any], indices: list[int], alpha: float | None) -> list[Link]:
    def rank(t: int) -> int:
        return len(next(iter(inits[t].values())))

    return [
        Link(indices.count(t), 1.0 if alpha is None else alpha / rank(t), inits[t]) for t in inits
    ]


def same(model: nn.Module, W: dict[str, torch.Tensor]) -> bool:
    mine = as_matrices(model, W)
    return all(torch.allclose(mine[name], W[name], rtol=0, atol=1e-9) for name in W)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("base", "kwargs"), [(SGD, {}), (Adagrad, {}), (AdamW, {"weight_decay": 0.1})], ids=str
)
def test_cola(kind: str, base: Any, kwargs: dict[str, float]) -> None:
    """Knots, every layer, rank step-down, biases, a linear schedule over the whole run."""
    model = stack(kind=kind)
    W = as_matrices(model)
    optimizer = BoostedLowRankOptimizer(
        base,
        model,
        r=[3, 2, 1],
        kappa=(3, 5),
        layers_per_booster=None,
        target_modules=["query", "value"],
        lora_alpha=4,
        bias="targets",
        lr=0.1,
        **kwargs,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    losses, inits, indices = run(model, optimizer, scheduler=schedule)
    optimizer.finalize()
    assert indices == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [len(inits[t]["blocks.0.query"]) for t in inits] == [3, 2, 1]
    expected = chain(
        W,
        batches(STEPS),
        links(inits, indices, 4),
        optimizer=lambda params: base(params, lr=0.1, **kwargs),
        lr=lambda step: 0.1 * (1 - step / STEPS),
        bias=True,
    )
    assert losses == pytest.approx(expected, abs=1e-9)
    assert same(model, W)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 2])
def test_direft(kind: str, r: int) -> None:
    model = stack(kind=kind)
    W = as_matrices(model)
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, r=r, kappa=4, layers_per_booster=2, adapter="direft", lora_alpha=3, lr=0.05
    )
    losses, inits, indices = run(model, optimizer)
    optimizer.finalize()
    expected = chain(
        W,
        batches(STEPS),
        links(inits, indices, 3),
        optimizer=lambda params: AdamW(params, lr=0.05),
        lr=lambda step: 0.05,
        direft=True,
    )
    assert losses == pytest.approx(expected, abs=1e-9)
    assert same(model, W)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("settings", [{"adapter": "direft"}, {"bias": "targets"}], ids=str)
def test_merge_keeps_the_function(settings: dict[str, str], bias: bool) -> None:
    def linear(in_features: int, out_features: int) -> nn.Linear:
        return nn.Linear(in_features, out_features, bias=bias)

    torch.manual_seed(0)
    model = Stack((10, 10, 10), linear)
    keys = list(model.state_dict())
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, kappa=None, layers_per_booster=2, lr=0.1, **settings
    )
    for x, y in batches(6, torch.float32):
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    x = batches(1, torch.float32, seed=5)[0][0]
    before = model(x)
    optimizer.merge()
    assert torch.allclose(model(x), before, rtol=1e-5, atol=1e-6)
    assert list(optimizer.finalize().state_dict()) == keys


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": "direft", "r": 2},
        {"bias": "targets"},
        {"r": [3, 2, 1]},
        {"kappa": (2, 5)},
        {"layers_per_booster": [1, 3, 2]},
        {"layer_sampler": "least-used"},
        {"rewarmup_steps": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("saved_at", [4, 5])
def test_resume_is_bitwise(settings: dict[str, Any], saved_at: int) -> None:
    settings = {"kappa": 3, "layers_per_booster": 2, "lr": 0.05} | settings
    model = stack(dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, **settings)
    data, file = batches(STEPS, torch.float32), io.BytesIO()
    for step, (x, y) in enumerate(data):
        if step == saved_at:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = stack(dtype=torch.float32, seed=1)
    other.load_state_dict(saved["model"])
    resumed = BoostedLowRankOptimizer(AdamW, other, **settings)
    resumed.load_state_dict(saved["optimizer"])
    for x, y in data[saved_at:]:
        cross_entropy(other(x), y).backward()
        resumed.step()
        resumed.zero_grad()
    assert resumed.active_layers == optimizer.active_layers
    for mine, theirs in zip(optimizer.finalize().parameters(), resumed.finalize().parameters(), strict=True):  # fmt: skip  # noqa: E501
        assert torch.equal(mine, theirs)


def test_smaller_rank_trains_a_part_of_the_same_parameters() -> None:
    model = stack()
    optimizer = BoostedLowRankOptimizer(
        SGD, model, r=[4, 2], kappa=1, layers_per_booster=None, lr=0.1
    )
    objects = [id(p) for p in optimizer.param_groups[0]["params"]]
    x, y = batches(1)[0]
    for rank in (4, 2, 2):
        assert {len(A) for A, _ in optimizer.active_factors.values()} == {rank}
        cross_entropy(model(x), y).backward()
        for p in optimizer.param_groups[0]["params"]:
            used = p.grad.reshape(p.shape).abs().sum(1 if p.shape[0] == 4 else 0)
            assert p.shape[0] != 4 or rank == 4 or used[2:].count_nonzero() == 0
        optimizer.step()
        optimizer.zero_grad()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == objects


def test_rank_and_layers_may_not_outgrow_what_a_callable_began_with() -> None:
    model = stack()
    optimizer = BoostedLowRankOptimizer(
        SGD, model, r=lambda t: 1 + t, kappa=None, layers_per_booster=1, lr=0.1
    )
    with pytest.raises(ValueError, match="r is 2 for booster 1.*room"):
        optimizer.merge()
    assert optimizer.booster_index == 0


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"rewarmup_steps": 2}, [1, 1, 1, 0.5, 1, 1, 0.5, 1, 1]),
        ({"r": [4, 1], "rank_lr_exponent": -0.25}, [1] * 3 + [4**0.25] * 6),
    ],
    ids=str,
)
def test_rates(settings: dict[str, Any], factors: list[float]) -> None:
    """What the base sees at each step; the scheduler's own rate is left alone."""
    model = stack()
    optimizer = BoostedLowRankOptimizer(
        SGD, model, kappa=3, layers_per_booster=2, lr=0.1, **settings
    )
    seen: list[float] = []
    optimizer.base.register_step_pre_hook(lambda base, *_: seen.append(base.param_groups[0]["lr"]))
    run(model, optimizer)
    assert seen == pytest.approx([0.1 * factor for factor in factors])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_kappa_and_layers_as_schedules() -> None:
    model = stack()
    optimizer = BoostedLowRankOptimizer(
        SGD, model, kappa=lambda t: t + 1, layers_per_booster=[1, 3, 2], lr=0.1
    )
    drawn: dict[int, int] = {}
    for x, y in batches(6):
        drawn[optimizer.booster_index] = len(optimizer.active_layers)
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert drawn == {0: 1, 1: 3, 2: 2}
    assert (optimizer.booster_index, optimizer.booster_step) == (3, 0)


def plateau(**changed: Any) -> LossPlateau:
    return LossPlateau(**({"patience": 2, "min_steps": 2, "max_steps": 5, "smoothing": 0.0} | changed))  # fmt: skip  # noqa: E501


def ends_after(policy: LossPlateau, loss: Callable[[int], float]) -> int:
    policy.begin()
    for step in range(1, 100):
        policy.observe(loss(step))
        if policy.ends(step):
            return step
    raise AssertionError("it never ended")


def test_plateau_ends_a_booster() -> None:
    assert ends_after(plateau(), lambda step: 1.0) == 3  # one step to be best, two without
    assert ends_after(plateau(), lambda step: 1 / step) == 5  # the ceiling
    assert ends_after(plateau(min_steps=4), lambda step: 1.0) == 4  # the floor
    assert ends_after(plateau(max_steps=None), lambda step: -float(min(step, 9))) == 11
    assert ends_after(plateau(), lambda step: float("nan")) == 2  # no loss is no improvement
    assert ends_after(plateau(min_improvement=0.5, max_steps=None), lambda step: 0.9**step) == 3


def test_plateau_ends_the_run() -> None:
    policy, levels = plateau(stop_after=2), iter([3.0, 2.0, 2.0, 2.0])
    converged = []
    for level in levels:
        ends_after(policy, lambda step, level=level: level)
        converged.append(policy.converged)
    policy.begin()
    assert [*converged, policy.converged] == [False, False, False, False, True]


def test_knots_from_the_loss() -> None:
    model = stack()
    optimizer = BoostedLowRankOptimizer(
        SGD, model, kappa=plateau(max_steps=4), layers_per_booster=2, lr=2e-4, lora_alpha=1e-6
    )
    x, y = batches(1)[0]
    indices = []
    for _ in range(7):
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        optimizer.zero_grad()
        indices.append(optimizer.booster_index)
    assert indices == [0, 0, 1, 1, 1, 2, 2]
    assert not optimizer.converged


def test_closure_is_observed_and_silence_is_an_error() -> None:
    model = stack()
    x, y = batches(1)[0]
    optimizer = BoostedLowRankOptimizer(SGD, model, kappa=plateau(), lr=2e-4, lora_alpha=1e-6)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert optimizer.booster_index == 1
    cross_entropy(model(x), y).backward()
    before = [factor.clone() for factor in optimizer.boosting.factors]
    with pytest.raises(RuntimeError, match="optimizer.observe"):
        optimizer.step()
    assert all(map(torch.equal, optimizer.boosting.factors, before))  # refused before harm
    optimizer.finalize()


def test_policy_resumes() -> None:
    model = stack(dtype=torch.float32)
    x, y = batches(1, torch.float32)[0]

    def train(optimizer: BoostedLowRankOptimizer, model: nn.Module, steps: int) -> list[int]:
        indices = []
        for _ in range(steps):
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.observe(loss)
            optimizer.step()
            optimizer.zero_grad()
            indices.append(optimizer.booster_index)
        return indices

    optimizer = BoostedLowRankOptimizer(AdamW, model, kappa=plateau(), lr=1e-3)
    train(optimizer, model, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = stack(dtype=torch.float32)
    other.load_state_dict(saved[0])
    resumed = BoostedLowRankOptimizer(AdamW, other, kappa=plateau(), lr=1e-3)
    resumed.load_state_dict(saved[1])
    assert train(resumed, other, 12) == train(optimizer, model, 12)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"patience": 0}, ValueError),
        ({"patience": 1.5}, TypeError),
        ({"min_steps": 0}, ValueError),
        ({"min_steps": 9, "max_steps": 8}, ValueError),
        ({"stop_after": 0}, ValueError),
        ({"smoothing": 1.0}, ValueError),
        ({"min_improvement": -1.0}, ValueError),
    ],
    ids=str,
)
def test_plateau_out_of_range(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        LossPlateau(**arguments)


def test_observe_wants_a_number() -> None:
    with pytest.raises(TypeError, match="loss must be a number"):
        LossPlateau().observe("0.5")  # type: ignore[arg-type]


def test_knots_count_steps_of_the_whole_run() -> None:
    """A booster ended by hand does not move them."""
    model = stack()
    optimizer = BoostedLowRankOptimizer(SGD, model, kappa=(4, 6), lr=0.1)
    indices = []
    for step, (x, y) in enumerate(batches(7)):
        if step == 2:
            optimizer.merge()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        indices.append(optimizer.booster_index)
    assert indices == [0, 0, 1, 2, 2, 3, 3]
    assert Progress(1, 2, 3).next() == Progress(2, 0, 3)


def decide(rank: int, world: int, folder: str) -> None:
    """One of several processes, each with losses of its own."""
    torch.distributed.init_process_group(
        "gloo", rank=rank, world_size=world, init_method=f"file://{folder}/rendezvous"
    )
    policy, ends = plateau(max_steps=None), []
    for step in range(1, 13):
        policy.observe(mean(torch.tensor(1.0 + step * (1 if rank else -1)), everyone()))
        ends.append(policy.ends(step))
    torch.save(ends, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_ranks_decide_alike(tmp_path: Path) -> None:
    """One rank's loss falls, the other's rises: the mean stands still."""
    torch.multiprocessing.spawn(decide, (2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first == second
    assert first.index(True) == 2


@given(L=st.integers(1, 12), share=st.floats(0.01, 1.0), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_least_used_draws_evenly(L: int, share: float, seed: int) -> None:
    L_s = max(1, round(share * L))
    uses = [0] * L
    for t in range(8):
        drawn = least_used(seed, t, L, L_s)
        assert len(set(drawn)) == L_s and drawn == sorted(drawn)
        for layer in drawn:
            uses[layer] += 1
        assert max(uses) - min(uses) <= 1
    assert least_used(seed, 3, L, L_s) == least_used(seed, 3, L, L_s)


def test_weighted_follows_its_odds() -> None:
    sampler = Weighted((1, 1, 8))
    draws = [sampler(0, t, 3, 1)[0] for t in range(400)]
    assert draws == [sampler(0, t, 3, 1)[0] for t in range(400)]
    assert 0.74 < draws.count(2) / 400 < 0.86
    assert set(draws) == {0, 1, 2}


def test_weighted_out_of_range() -> None:
    with pytest.raises(ValueError, match="weights must be positive"):
        Weighted((1.0, 0.0))
    with pytest.raises(ValueError, match="2 weights given for 3 layers"):
        BoostedLowRankOptimizer(SGD, stack(), layer_sampler=Weighted((1.0, 1.0)), lr=0.1)
