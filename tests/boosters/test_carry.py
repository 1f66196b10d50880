"""carry=: a target drawn again takes up its last pair."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from carry_reference import chain, links
from tiny import KINDS, as_matrices, batches, stack
from torch_xgb import BoostedLowRankOptimizer, Decay
from training import train

FORMS: list[dict[str, Any]] = [{}, {"bias": "targets"}, {"adapter": "direft"}]


def build(model: nn.Module, base: Any = AdamW, **settings: Any) -> BoostedLowRankOptimizer:
    given = {"kappa": 3, "layers_per_booster": 2, "carry": 0.6, "lr": 0.03, "lora_alpha": None}
    given |= settings
    return BoostedLowRankOptimizer(base, model, **given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("base", [SGD, AdamW, Adagrad])
def test_all_of_it_with_every_layer_is_lora(base: Any, form: dict[str, Any], kind: str) -> None:
    models = [stack(kind=kind) for _ in range(2)]
    logs = []
    for model, kappa in zip(models, (2, None), strict=True):
        optimizer = build(model, base, kappa=kappa, layers_per_booster=None, carry=1, r=2, **form)
        logs.append(train(model, optimizer, batches(9)).losses)
        optimizer.finalize()
    assert logs[0] == pytest.approx(logs[1], abs=1e-9)
    ours, lora = (as_matrices(model) for model in models)
    # Attention does not depend on the keys' bias: Adagrad enlarges the rounding of its gradient.
    names = [name for name in lora if not name.endswith("key.bias")]
    assert all(torch.allclose(ours[name], lora[name], rtol=0, atol=1e-9) for name in names)


# carry= as a setting, and what the reference is told of it.
SCHEDULES: dict[str, dict[str, Any]] = {
    "0": {"carry": 0.0},
    "1": {"carry": 1.0},
    "callable": {"carry": lambda t: 1 - 0.5**t},
    "decay": {"carry": Decay(4.0)},
    "ranks": {"carry": [0.9, 0.7], "r": [3, 1, 2, 3], "lora_alpha": 3.0},
    **{
        f"all {i}": {"carry": Decay(3.0), "r": [2, 1, 2, 3], "lora_alpha": 2.0, "shrinkage": 0.7}
        | form
        for i, form in enumerate(FORMS)
    },
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_the_reference(case: str) -> None:
    settings, model = SCHEDULES[case], stack(depth=4)
    W, optimizer = as_matrices(model), build(model, **settings)
    told = links(build(stack(depth=4), **settings), 7, 3)
    carry = settings["carry"]
    decay = carry.weight_decay if isinstance(carry, Decay) else None
    forms = {"direft": "adapter" in settings, "bias": "bias" in settings}
    data = batches(21)
    falling = LambdaLR(optimizer, lambda step: 1 - step / 21)
    rate = falling.lr_lambdas[0]
    expected, after = chain(W, data, told, lr=lambda k: 0.03 * rate(k), decay=decay, **forms)
    log = train(model, optimizer, data, schedulers=[falling])
    assert len(set(map(tuple, log.drawn.values()))) > 2  # targets come and go
    assert log.losses == pytest.approx(expected, abs=1e-9)
    optimizer.finalize()
    found = as_matrices(model)
    assert all(torch.allclose(found[n], after[-1][n], rtol=0, atol=1e-9) for n in found)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_function_is_kept_from_booster_to_booster(form: dict[str, Any]) -> None:
    model, x = stack(depth=4), batches(1, seed=5)[0][0]
    optimizer = build(model, r=[1, 2], lora_alpha=3, **form)
    for steps in range(5):
        train(model, optimizer, batches(2, seed=steps))
        with torch.no_grad():
            before, saved = model(x), stack(depth=4)
            optimizer.merge()
            assert torch.allclose(model(x), before, rtol=0, atol=1e-12)
            saved.load_state_dict(model.state_dict())
            assert torch.allclose(saved(x), before, rtol=0, atol=1e-12)
    assert any(bool(B.any()) for _, B in optimizer.active_factors.values())
    optimizer.finalize()  # right after a merge: what was taken up is merged again
    assert torch.allclose(model(x), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rho", "more"), [(0.5, True), (1.0, False)])
def test_the_rank_grows_unless_everything_is_carried(rho: float, more: bool) -> None:
    model = stack(depth=2)
    before = as_matrices(model)
    optimizer = build(model, layers_per_booster=None, carry=rho, lr=0.1)
    train(model, optimizer, batches(18))
    optimizer.finalize()
    delta = as_matrices(model)["blocks.0.query.weight"] - before["blocks.0.query.weight"]
    assert (int(torch.linalg.matrix_rank(delta, rtol=1e-6)) > 1) is more


MIXED: dict[str, Any] = {"carry": Decay(3.0), "r": [2, 1, 2], "shrinkage": 0.7, "bias": "targets"}


@pytest.mark.parametrize("steps", [5, 6])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [(torch.bfloat16, {}), (torch.float32, MIXED), (torch.float32, MIXED | {"init": "gradient"})],
    ids=["bfloat16", "mixed", "gradient"],
)
def test_resume_is_bitwise(steps: int, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    data = batches(steps + 7, dtype)
    models = [stack(depth=4, dtype=dtype) for _ in range(2)]
    optimizers = [build(model, **settings) for model in models]
    train(models[0], optimizers[0], data[:steps])
    file = io.BytesIO()
    torch.save((models[0].state_dict(), optimizers[0].state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    models[1].load_state_dict(weights)
    optimizers[1].load_state_dict(state)
    logs = [train(m, o, data[steps:]).losses for m, o in zip(models, optimizers, strict=True)]
    assert logs[0] == logs[1]
    first, second = (o.finalize().state_dict() for o in optimizers)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_low_precision_weights_lose_nothing_on_the_way() -> None:
    """Pairs go in and out of bfloat16 weights sixteen times; the residual keeps the rest."""
    models = [stack(depth=2, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    models[1].load_state_dict(models[0].state_dict())
    before = as_matrices(models[1])
    deltas = []
    for model in models:
        optimizer = build(model, SGD, layers_per_booster=None, kappa=1, carry=0.9)
        generator = torch.Generator().manual_seed(0)
        for _ in range(16):
            for A, B in optimizer.active_factors.values():
                A.grad = torch.zeros_like(A)
                B.grad = torch.randn(B.shape, generator=generator) * 0.1
            optimizer.step()
        optimizer.finalize()
        residuals = optimizer.boosting._turns.merger.residuals
        deltas.append(
            {
                name: (model.get_parameter(name).float() + residuals.get(name, 0) - before[name])
                for name in before
                if name.startswith("blocks.") and name.endswith("weight")
            }
        )
    for name, delta in deltas[0].items():
        assert torch.allclose(delta, deltas[1][name], rtol=0.02, atol=2e-3), name


def test_a_copy_and_the_original_go_on_alike() -> None:
    model = stack(depth=4)
    optimizer = build(model)
    train(model, optimizer, batches(8))
    twin_model, twin = copy.deepcopy((model, optimizer))
    logs = [train(m, o, batches(6, seed=1)).losses for m, o in ((model, optimizer), (twin_model, twin))]  # fmt: skip  # noqa: E501
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("form", "dtype"),
    [*((form, torch.float64) for form in FORMS), ({}, torch.bfloat16)],
    ids=str,
)
def test_a_booster_is_dropped_by_putting_back_what_it_took_out(
    form: dict[str, Any], dtype: torch.dtype
) -> None:
    settings = {"shrinkage": 0.7, "r": [2, 1], "seed": 1, **form}
    model, twin = (stack(depth=4, dtype=dtype) for _ in range(2))
    optimizer, ended = (build(one, **settings) for one in (model, twin))
    data = batches(14, dtype)
    train(model, optimizer, data)
    train(twin, ended, data[:12])
    assert any(optimizer.boosting._carry.taken.values())
    with torch.no_grad():
        for factor in optimizer.param_groups[0]["params"]:
            factor.fill_(float("nan"))
    optimizer.finalize(discard=True)
    ended.finalize()
    found, wanted = as_matrices(model), as_matrices(twin)
    close = {"rtol": 0, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2**-6, "atol": 1e-3}
    assert all(torch.allclose(found[name], wanted[name], **close) for name in found)
    again = build(model, **settings)  # the dropped booster begins over, its targets anew
    again.load_state_dict(optimizer.state_dict())
    assert (again.booster_index, again.booster_step) == (4, 0)
    assert not any(bool(B.any()) for _, B in again.active_factors.values())
    train(model, again, data[:6])


def test_a_model_that_is_cast_goes_on() -> None:
    """Pairs come out of weights that were rounded since, and of wider ones again."""
    model, x = stack(depth=4, dtype=torch.float32), batches(1, torch.float32, seed=5)[0][0]
    optimizer = build(model, carry=0.9, layers_per_booster=None, bias="targets")
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float32, 1e-5)):
        train(model, optimizer, batches(7, next(model.parameters()).dtype))
        model.to(dtype)
        for atol in (0.05, tolerance, tolerance):  # first, weights take up what bfloat16 left over
            with torch.no_grad():
                before = model(x.to(dtype)).float()
                optimizer.merge()
                assert torch.allclose(model(x.to(dtype)).float(), before, rtol=0, atol=atol)
        assert all(A.dtype == torch.float32 for A, _ in optimizer.active_factors.values())
        assert any(optimizer.boosting._carry.taken.values())
    train(model, optimizer, batches(1, torch.float32))
    optimizer.finalize(discard=True)
    assert torch.allclose(model(x), before, rtol=0, atol=1e-5)


def test_what_an_earlier_version_took_out_is_not_known() -> None:
    model = stack(depth=4)
    optimizer = build(model)
    train(model, optimizer, batches(8))
    state = optimizer.state_dict()
    for name in ("taken", "seal"):
        del state["booster"][name]
    for held in state["booster"]["carry"].values():
        for name in ("r", "s", "share"):
            del held[name]
    optimizer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="saved by a version that did not note"):
        optimizer.finalize(discard=True)
    train(model, optimizer, batches(4))  # from the next booster on it is
    optimizer.finalize(discard=True)


def test_a_gradient_gives_a_direction_where_there_is_none() -> None:
    """Targets drawn again train from the first step; the others wait for their gradient."""
    model = stack(depth=4)
    optimizer = build(model, init="gradient", layer_sampler=lambda s, t, L, n: [0, 1 + t % 3])
    train(model, optimizer, batches(3))
    before = {n: (A.clone(), B.clone()) for n, (A, B) in optimizer.active_factors.items()}
    train(model, optimizer, batches(1, seed=1))
    for name, (A, B) in optimizer.active_factors.items():
        drawn_again = optimizer.targets[name] == "blocks.0"
        assert bool(before[name][0].any()) is drawn_again  # A, at first
        assert bool(B.any()) is drawn_again
        assert torch.equal(A, before[name][0]) is False


def without_a_rate(groups: Any, lr: float) -> Optimizer:
    class Base(Optimizer):
        def __init__(self) -> None:
            super().__init__(groups, {"momentum": 0.9})

    return Base()


def test_errors_change_nothing() -> None:
    model = stack()
    before = copy.deepcopy(model.state_dict())
    for settings, error, message in (
        ({"carry": 1.5}, ValueError, r"carry must be a number in \[0, 1\], got 1.5"),
        ({"carry": "all"}, TypeError, "carry must be a number"),
        ({"carry": [0.5, 2]}, ValueError, r"got 2 in \[0.5, 2\]"),
        ({"carry": lambda t: None}, TypeError, "for booster 0"),
        ({"carry": Decay(1.0), "base": without_a_rate}, ValueError, "have an 'lr'"),
    ):
        with pytest.raises(error, match=message):
            build(model, **settings)
    assert all(p.requires_grad for p in model.blocks.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    optimizer, other = build(model), build(stack(), carry=None)
    with pytest.raises(ValueError, match="carry: saved None, here 0.6"):
        optimizer.load_state_dict(other.state_dict())


def test_weights_that_are_loaded_are_what_the_model_computes_with() -> None:
    model, other = stack(depth=4), stack(depth=4, seed=3)
    optimizer = build(model)
    train(model, optimizer, batches(7))
    model.load_state_dict(other.state_dict())
    x = batches(1)[0][0]
    assert torch.equal(model(x), other(x))
    for _ in range(3):  # pairs of the old weights do not come back
        optimizer.merge()
    assert all(
        torch.equal(model.state_dict()[name], value) for name, value in other.state_dict().items()
    )


def test_a_rank_that_grows_is_trained() -> None:
    model = stack()
    optimizer = build(model, r=[1, 2], layers_per_booster=None)
    train(model, optimizer, batches(8))
    for A, B in optimizer.active_factors.values():
        assert bool(A[1].any()) and bool(B[:, 1].any())
