"""BoostedLowRankOptimizer as torch.optim.Optimizer, and its trajectories against the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from anatomy import anatomy, differing, same, same_values, values
from bases import BASES
from reference import Trace, boost
from tiny import as_matrices, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import Log, train

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def boosted(model: nn.Module, base: str = "adamw", **settings: Any) -> BoostedLowRankOptimizer:
    optimizer_class, kwargs = BASES[base]
    settings = {"lora_alpha": None, **settings}
    return BoostedLowRankOptimizer(optimizer_class, model, **settings, **kwargs)


def truth_of(W: dict[str, Tensor], data: list[Any], log: Log, base: str, **settings: Any) -> Trace:
    optimizer_class, kwargs = BASES[base]
    return boost(
        W,
        data,
        init=log.init,
        optimizer=lambda params: optimizer_class(params, **kwargs),
        **settings,
    )


def assert_equal_trajectories(model: nn.Module, log: Log, truth: Trace) -> None:
    torch.testing.assert_close(torch.tensor(log.losses), torch.tensor(truth.losses), **TIGHT)
    torch.testing.assert_close(as_matrices(model), truth.merged[-1], **TIGHT)
    assert truth.losses[-1] != truth.losses[0]


# What the optimizer is given, and what the reference.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "lora_alpha": ({"r": 2, "lora_alpha": 5}, {"r": 2, "lora_alpha": 5}),
    "lora_alpha-below-r": ({"r": 3, "lora_alpha": 1.5}, {"r": 3, "lora_alpha": 1.5}),
    "shrinkage": ({"shrinkage": 0.3}, {"shrinkage": lambda t: 0.3}),
    "shrinkage-callable": (
        {"shrinkage": lambda t: 1.0 / (1 + t)},
        {"shrinkage": lambda t: 1.0 / (1 + t)},
    ),
    "shrinkage-above-one": ({"shrinkage": 1.5}, {"shrinkage": lambda t: 1.5}),
    "factor_l2": ({"factor_l2": 0.2}, {"factor_l2": 0.2}),
    "factor_l2-and-all": (
        {"factor_l2": 0.1, "r": 2, "lora_alpha": 3, "shrinkage": 0.5},
        {"factor_l2": 0.1, "r": 2, "lora_alpha": 3, "shrinkage": lambda t: 0.5},
    ),
    "cyclic": ({"layer_sampler": "cyclic", "layers_per_booster": 2}, {}),
    "window": ({"layer_sampler": "window", "layers_per_booster": 2}, {}),
    "share": ({"layers_per_booster": 0.5}, {}),
    "every-layer": ({"layers_per_booster": None}, {}),
    "some-targets": ({"target_modules": ["query", "value"], "layers_per_booster": 1}, {}),
    "outside-the-blocks": ({"target_modules": r"embed|head|.*\.up", "layers_per_booster": 2}, {}),
    "saved": (
        {"modules_to_save": ["head", "embed"]},
        {"saved": ["embed.weight", "embed.bias", "head.weight", "head.bias"]},
    ),
    "seed": ({"seed": 2**63}, {}),
    "negative-seed": ({"seed": -1}, {}),
}


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("base", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("kappa", [3, None])
@pytest.mark.parametrize("setting", SETTINGS)
def test_trajectory(setting: str, kappa: int | None, base: str, clip: float | None) -> None:
    ours, theirs = SETTINGS[setting]
    model, data = stack(depth=4), batches(8)
    W = as_matrices(model)
    optimizer = boosted(model, base, kappa=kappa, **ours)
    log = train(model, optimizer, data, clip=clip)
    optimizer.finalize()
    truth = truth_of(W, data, log, base, kappa=kappa, clip=clip, **theirs)
    assert_equal_trajectories(model, log, truth)


@pytest.mark.parametrize("layers_per_booster", [1, 2, None])
@pytest.mark.parametrize("base", BASES)
def test_blocks_of_unequal_shape(base: str, layers_per_booster: int | None) -> None:
    """A slot serves blocks of several shapes; the base sees each at its own."""
    model, data = stack(hiddens=(9, 4, 7)), batches(10)
    W = as_matrices(model)
    optimizer = boosted(model, base, kappa=2, r=2, layers_per_booster=layers_per_booster)
    log = train(model, optimizer, data)
    optimizer.finalize()
    if layers_per_booster == 1:
        assert len({layers for drawn in log.drawn.values() for layers in drawn}) == 3
    assert_equal_trajectories(model, log, truth_of(W, data, log, base, kappa=2, r=2))


def test_blocks_with_unequal_targets() -> None:
    """A layer may hold fewer targets than another; what a slot has to spare stays at rest."""
    model, data = stack(depth=3), batches(10)
    W = as_matrices(model)
    optimizer = boosted(
        model,
        kappa=2,
        layers_per_booster=1,
        target_modules=["0.query", "1.query", "1.up", "2.down"],
    )
    log = train(model, optimizer, data)
    assert {len(init) for init in log.inits.values()} == {1, 2}
    optimizer.finalize()
    assert_equal_trajectories(model, log, truth_of(W, data, log, "adamw", kappa=2))


@pytest.mark.parametrize("kappa", [2, None])
def test_schedule_of_the_learning_rate(kappa: int | None) -> None:
    """One schedule over the whole run: boosters do not begin it anew."""
    model, data = stack(), batches(9)
    W = as_matrices(model)
    optimizer = boosted(model, kappa=kappa, layers_per_booster=2)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    log = train(model, optimizer, data, schedulers=[scheduler])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 / 10)
    optimizer.finalize()
    truth = truth_of(W, data, log, "adamw", kappa=kappa, lr=lambda step: 0.02 / (1 + step))
    assert_equal_trajectories(model, log, truth)


def test_lr_of_a_group_may_be_set() -> None:
    model, data = stack(), batches(9)
    W = as_matrices(model)
    optimizer = boosted(model, kappa=3, layers_per_booster=2)
    log = Log()
    for step, batch in enumerate(data):
        optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
        part = train(model, optimizer, [batch])
        log.losses += part.losses
        log.inits |= {t: init for t, init in part.inits.items() if t not in log.inits}
    optimizer.finalize()
    truth = truth_of(W, data, log, "adamw", kappa=3, lr=lambda step: 0.01 * (step + 1))
    assert_equal_trajectories(model, log, truth)


def test_lr_set_inside_a_closure_stays() -> None:
    """As frameworks do that run a whole training step in it."""
    model = stack()
    optimizer = boosted(model, kappa=2)
    for step, (x, y) in enumerate(batches(7)):

        def closure(step: int = step, x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert optimizer.param_groups[0]["lr"] == 0.01 * (step + 1)
    assert optimizer.booster_index == 3


def test_lr_of_each_group_is_its_own() -> None:
    model = stack()
    optimizer = boosted(model, "sgd", modules_to_save=["head"], kappa=2)
    optimizer.param_groups[0]["lr"] = 0.0
    before = values(model)
    train(model, optimizer, batches(1))
    changed = differing(values(model), before)
    assert changed == {"head.weight", "head.bias"}
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.1, 0.0
    before = values(model)
    train(model, optimizer, batches(1))
    assert changed.isdisjoint(differing(values(model), before))
    assert optimizer.booster_index == 1


def test_is_an_optimizer() -> None:
    model = stack()
    optimizer = boosted(model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer.base, torch.optim.AdamW)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults["weight_decay"] == 0.1
    assert "AdamW" in repr(optimizer) or "Boosted" in repr(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.chain is None


def test_names_of_the_public_members() -> None:
    model = stack(depth=3)
    optimizer = boosted(model, layers_per_booster=2)
    assert (optimizer.booster_index, optimizer.booster_step) == (0, 0)
    assert len(optimizer.active_layers) == 2
    assert set(optimizer.active_layers) <= {"blocks.0", "blocks.1", "blocks.2"}
    assert len(optimizer.targets) == 18
    drawn = [name for name, layer in optimizer.targets.items() if layer in optimizer.active_layers]
    assert set(optimizer.active_factors) == set(drawn)
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in optimizer.targets)


@pytest.mark.parametrize(
    "base", ["sgd", "adamw", "adamw-fused", "rprop", "third-party", "adafactor"]
)
def test_closure(base: str) -> None:
    """Evaluated once a step, with gradients enabled; its loss comes back."""
    model, twin, data = stack(), stack(), batches(7)
    optimizer, plain = (boosted(m, base, kappa=3, layers_per_booster=2) for m in (model, twin))
    log = train(twin, plain, data)
    calls: list[bool] = []
    losses = []
    for x, y in data:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            calls.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    assert calls == [True] * 7
    assert losses == log.losses
    assert optimizer.booster_index == 2
    assert same_values(model, values(twin))


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("on_model", [True, False])
def test_zero_grad(on_model: bool, set_to_none: bool) -> None:
    model, data = stack(), batches(7)
    W = as_matrices(model)
    optimizer = boosted(model, kappa=3)
    log = Log()
    for x, y in data:
        log.note_booster(optimizer)
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        (model if on_model else optimizer).zero_grad(set_to_none=set_to_none)
        for group in optimizer.param_groups:
            assert all(p.grad is None or p.grad.count_nonzero() == 0 for p in group["params"])
        log.losses.append(loss.item())
    optimizer.finalize()
    assert_equal_trajectories(model, log, truth_of(W, data, log, "adamw", kappa=3))


def test_accumulation() -> None:
    """Two halves of a batch give the gradient of the whole; only steps count."""
    model, whole, data = stack(), stack(), batches(6)
    ours, plain = (boosted(m, "sgd", kappa=2, layers_per_booster=2) for m in (model, whole))
    train(whole, plain, data)
    for x, y in data:
        for half in (slice(0, 2), slice(2, 4)):
            (cross_entropy(model(x[half]), y[half]) / 2).backward()
        ours.step()
        ours.zero_grad()
    assert ours.booster_index == 3
    torch.testing.assert_close(as_matrices(model), as_matrices(whole), **TIGHT)


def test_clipping_sees_every_gradient() -> None:
    model = stack()
    optimizer = boosted(model, "sgd", modules_to_save=["head"])
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    expected = torch.stack([p.grad.norm() for p in trained]).norm()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), 1e-3), expected)
    clipped = torch.stack([p.grad.norm() for p in trained]).norm()
    torch.testing.assert_close(clipped, torch.tensor(1e-3, dtype=torch.float64), rtol=1e-3, atol=0)


def test_factor_l2_is_added_after_clipping() -> None:
    """2λ times each factor, once, at the step."""
    model = stack()
    optimizer = boosted(model, "sgd", factor_l2=0.25, kappa=None)
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    pairs = optimizer.active_factors.values()
    before = [(f.detach().clone(), f.grad.clone()) for pair in pairs for f in pair]
    optimizer.step()
    after = [f.detach() for pair in pairs for f in pair]
    for (factor, gradient), now in zip(before, after, strict=True):
        torch.testing.assert_close(now, factor - 0.3 * (gradient + 0.5 * factor), **TIGHT)


def test_hooks_around_a_step() -> None:
    model = stack()
    optimizer = boosted(model, kappa=1)
    calls: list[str] = []

    def before(self: Any, args: Any, kwargs: Any) -> None:
        assert self is optimizer
        calls.append(f"before {optimizer.booster_index}")

    def after(self: Any, args: Any, kwargs: Any) -> None:
        assert self is optimizer
        calls.append(f"after {optimizer.booster_index}")

    handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    train(model, optimizer, batches(2))
    assert calls == ["before 0", "after 1", "before 1", "after 2"]
    for handle in handles:
        handle.remove()
    train(model, optimizer, batches(1))
    assert len(calls) == 4


def test_state_dict_hooks() -> None:
    """torch's own hooks around state_dict and load_state_dict, as on any optimizer."""
    optimizer = boosted(stack())
    calls: list[str] = []

    def add(self: Any, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("after saving")
        return {**state, "mine": 1}

    def take(self: Any, state: dict[str, Any]) -> dict[str, Any]:
        calls.append(f"before loading {state['mine']}")
        return {key: value for key, value in state.items() if key != "mine"}

    optimizer.register_state_dict_pre_hook(lambda self: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(add)
    optimizer.register_load_state_dict_pre_hook(take)
    optimizer.register_load_state_dict_post_hook(lambda self: calls.append("after loading"))
    state = optimizer.state_dict()
    assert state["mine"] == 1
    optimizer.load_state_dict(state)
    assert calls == ["before saving", "after saving", "before loading 1", "after loading"]


def test_merge_ends_a_booster_early() -> None:
    model, data = stack(), batches(6)
    optimizer = boosted(model, kappa=4)
    steps: list[int] = []
    optimizer.on_merge(lambda report: steps.append(report.steps))
    train(model, optimizer, data[:2])
    optimizer.merge()
    assert (optimizer.booster_index, optimizer.booster_step) == (1, 0)
    train(model, optimizer, data[2:6])
    assert (optimizer.booster_index, optimizer.booster_step) == (2, 0)
    assert steps == [2, 4]


def test_merge_of_an_untouched_booster() -> None:
    model = stack()
    before = as_matrices(model)
    optimizer = boosted(model)
    drawn = optimizer.active_factors["blocks.0.query"][0].detach().clone()
    optimizer.merge()
    assert optimizer.booster_index == 1
    assert not torch.equal(optimizer.active_factors["blocks.0.query"][0], drawn)
    assert differing(as_matrices(model, before), before) == set()


@pytest.mark.parametrize("call", ["step", "merge"])
def test_after_finalize(call: str) -> None:
    optimizer = boosted(stack())
    optimizer.finalize()
    with pytest.raises(RuntimeError, match="finalize"):
        getattr(optimizer, call)()


def test_load_after_finalize() -> None:
    optimizer = boosted(stack())
    state = optimizer.state_dict()
    optimizer.finalize()
    with pytest.raises(RuntimeError, match="finalize"):
        optimizer.load_state_dict(state)


def test_finalize_reports_the_last_booster_once() -> None:
    model = stack()
    optimizer = boosted(model, kappa=4)
    reports = []
    optimizer.on_merge(reports.append)
    train(model, optimizer, batches(6))
    optimizer.finalize()
    optimizer.finalize()
    assert [(r.booster_index, r.steps) for r in reports] == [(0, 4), (1, 2)]


def test_finalize_after_assign() -> None:
    """``load_state_dict(assign=True)`` replaces Parameters; those at the end count."""
    model = stack()
    model.embed.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    optimizer = boosted(model, kappa=2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    train(model, optimizer, batches(3))
    optimizer.finalize()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert not torch.equal(model.blocks[0].up.weight, stack().blocks[0].up.weight)


# Gradients that are missing or not finite.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("base", ["sgd-momentum", "adamw", "adamw-fused", "adagrad"])
@pytest.mark.parametrize("with_closure", [False, True])
def test_a_gradient_that_is_not_finite_is_an_error(
    with_closure: bool, base: str, value: float
) -> None:
    model = stack()
    optimizer = boosted(model, base, kappa=3, layers_per_booster=None, factor_l2=0.1)
    train(model, optimizer, batches(1))
    before, state = values(model), _copied(optimizer.state_dict())
    x, y = batches(1)[0]

    def closure() -> Tensor:
        loss = cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():
            optimizer.active_factors["blocks.1.up"][1].grad[0] = value
        return loss

    if not with_closure:
        closure()
    with pytest.raises(RuntimeError, match=r"finite") as error:
        optimizer.step(closure if with_closure else None)
    assert "blocks.1.up" in str(error.value)
    assert same_values(model, before)
    assert same(_copied(optimizer.state_dict()), state)
    assert optimizer.booster_step == 1


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("where", ["factor", "saved"])
def test_a_gradient_that_is_not_finite_may_skip_the_step(where: str, with_closure: bool) -> None:
    model = stack()
    optimizer = boosted(model, kappa=3, nonfinite="skip", modules_to_save=["head"])
    train(model, optimizer, batches(2))
    before, state = values(model), _copied(optimizer.state_dict())
    x, y = batches(1)[0]

    def closure() -> Tensor:
        loss = cross_entropy(model(x), y)
        loss.backward()
        next(iter(optimizer.active_factors.values()))[0].grad[0] = torch.nan
        if where == "saved":
            model.head.bias.grad[0] = torch.inf
        return loss

    if with_closure:
        assert optimizer.step(closure).item() > 0
    else:
        closure()
        assert optimizer.step() is None
    optimizer.zero_grad()
    assert same_values(model, before)
    assert same(_copied(optimizer.state_dict()), state)
    assert (optimizer.booster_index, optimizer.booster_step) == (0, 2)
    train(model, optimizer, batches(1))
    assert (optimizer.booster_index, optimizer.booster_step) == (1, 0)


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_copied, state))
    return state


class Routed(nn.Module):
    """Each batch passes one of two experts by, as in a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.expert = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[self.expert](x)


def test_a_factor_without_gradient_is_an_error_with_the_name() -> None:
    model = Routed().double()
    optimizer = boosted(model, layers_per_booster=None)
    before = values(model)
    model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    with pytest.raises(RuntimeError, match="unused") as error:
        optimizer.step()
    assert "experts.1.0" in str(error.value) and "experts.0.0" not in str(error.value)
    assert same_values(model, before)
    assert optimizer.booster_step == 0


def test_a_step_without_backward_is_an_error() -> None:
    optimizer = boosted(stack())
    with pytest.raises(RuntimeError, match="backward"):
        optimizer.step()
    assert optimizer.booster_step == 0


def test_a_factor_without_gradient_may_rest() -> None:
    """Steps count for the booster; the expert passed by is as it was."""
    model = Routed().double()
    optimizer = boosted(model, layers_per_booster=None, unused="skip", kappa=3)
    x = torch.ones(2, 4, dtype=torch.float64)
    W = [expert[0].weight.detach().clone() for expert in model.experts]
    for expert in (0, 0, 0):
        model.expert = expert
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.booster_index == 1
    assert not torch.equal(model.experts[0][0].weight, W[0])
    assert torch.equal(model.experts[1][0].weight, W[1])


@pytest.mark.parametrize("kappa", [1, 3])
def test_kappa_counts_steps_not_calls_of_backward(kappa: int) -> None:
    model = stack()
    optimizer = boosted(model, kappa=kappa)
    for step, (x, y) in enumerate(batches(6), 1):
        for _ in range(3):
            cross_entropy(model(x), y).backward()
        optimizer.step()
        assert (optimizer.booster_index, optimizer.booster_step) == divmod(step, kappa)


def test_boosters_go_on_past_the_floor_of_one_pair() -> None:
    """A linear map of full rank: rank-1 boosters reach what one rank-1 pair cannot."""
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    x = torch.eye(6, dtype=torch.float64)

    def final_loss(kappa: int | None) -> float:
        model = nn.Sequential(nn.Linear(6, 6, bias=False, dtype=torch.float64))
        nn.init.zeros_(model[0].weight)
        optimizer = BoostedLowRankOptimizer(torch.optim.Adam, model, kappa=kappa, lr=0.1)
        for _ in range(400):
            loss = (model(x) - goal.T).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    floor = torch.linalg.svdvals(goal)[1:].square().sum().item()
    assert final_loss(None) >= 0.99 * floor
    assert final_loss(20) < 0.1 * floor


def test_gradient_boosting_takes_one_step_a_booster() -> None:
    """κ = 1 with plain SGD: B alone moves, so W ← W − lr·s²·G AᵀA in one step."""
    model, dense = stack(depth=1), stack(depth=1)
    optimizer = boosted(model, "sgd", kappa=1, r=2, lora_alpha=3.0)
    A = {name: pair[0].detach().clone() for name, pair in optimizer.active_factors.items()}
    x, y = batches(1)[0]
    cross_entropy(dense(x), y).backward()
    train(model, optimizer, [(x, y)])
    for name, A_name in A.items():
        linear = dense.get_submodule(name)
        expected = linear.weight - 0.3 * 1.5**2 * linear.weight.grad @ A_name.T @ A_name
        torch.testing.assert_close(model.get_submodule(name).weight, expected, **TIGHT)


def raises_and_leaves_alone(model: nn.Module, build: Callable[[], Any]) -> None:
    before, tensors = anatomy(model), values(model)
    with pytest.raises(TypeError):
        build()
    assert anatomy(model) == before
    assert same_values(model, tensors)


def test_a_base_that_cannot_be_built() -> None:
    model = stack()
    raises_and_leaves_alone(model, lambda: boosted(model, no_such_argument=1))


def test_gradients_that_a_kernel_cannot_write_are_checked_too() -> None:
    model = stack()
    optimizer = BoostedLowRankOptimizer(torch.optim.AdamW, model, lr=0.01, modules_to_save=["head"])
    x, y = batches(1)[0]
    cross_entropy(model(x), y).backward()
    model.head.bias.grad = torch.ones((), dtype=torch.float64).expand(3)
    optimizer.step()
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    model.head.bias.grad = torch.full((), float("nan"), dtype=torch.float64).expand(3)
    with pytest.raises(RuntimeError, match="not finite"):
        optimizer.step()


def diverged(**settings: Any) -> tuple[nn.Module, BoostedLowRankOptimizer]:
    """Two boosters merged, and one whose factors are no numbers."""
    model = stack()
    settings = {"kappa": 2, "layers_per_booster": 2, "lr": 0.1, **settings}
    optimizer = BoostedLowRankOptimizer(torch.optim.SGD, model, **settings)
    train(model, optimizer, batches(5))
    with torch.no_grad():
        for factor in optimizer.param_groups[0]["params"]:
            factor.fill_(float("nan"))
    return model, optimizer


def test_a_booster_that_diverged_can_be_dropped() -> None:
    before = anatomy(stack())
    model, optimizer = diverged()
    with pytest.raises(RuntimeError, match=r"finalize\(discard=True\)"):
        optimizer.finalize()
    assert optimizer.finalize(discard=True) is model
    merged = stack()
    other = BoostedLowRankOptimizer(torch.optim.SGD, merged, kappa=2, layers_per_booster=2, lr=0.1)
    train(merged, other, batches(5)[:4])
    other.finalize()
    assert same_values(model, values(merged))
    assert len(anatomy(model)) == len(before)
    BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1)


def test_finalize_after_parameters_were_replaced_or_removed() -> None:
    """A head that is reparametrised or loses its bias while it is trained."""
    model = stack()
    optimizer = BoostedLowRankOptimizer(
        torch.optim.SGD, model, kappa=2, lr=0.1, modules_to_save=["head"]
    )
    train(model, optimizer, batches(3))
    nn.utils.parametrizations.weight_norm(model.head)
    model.embed.bias = None
    x = batches(1)[0][0]
    wanted = model(x).detach()
    optimizer.finalize()
    torch.testing.assert_close(model(x), wanted)
    assert all(p.requires_grad for p in model.blocks.parameters())
