"""Checkpoints: the plain model's weights at any moment, and a run that goes on from any of them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from anatomy import anatomy, same, same_values, values
from bases import BASES
from tiny import KINDS, Stack, as_matrices, batches, stack, tied
from torch_xgb import BoostedLowRankOptimizer
from training import through_a_file, train

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
POLICIES = ["nearest", "stochastic", "residual"]
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


def boosted(model: nn.Module, base: str = "adamw", **settings: Any) -> BoostedLowRankOptimizer:
    optimizer_class, kwargs = BASES[base]
    settings = {"kappa": 3, "r": 2, "layers_per_booster": 2, "lora_alpha": 3.0, **settings}
    return BoostedLowRankOptimizer(optimizer_class, model, **settings, **kwargs)


def save(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> Checkpoint:
    return through_a_file((model.state_dict(), optimizer.state_dict()))


def load(model: nn.Module, optimizer: BoostedLowRankOptimizer, checkpoint: Checkpoint) -> None:
    model.load_state_dict(checkpoint[0])
    optimizer.load_state_dict(checkpoint[1])


def everything(model: nn.Module, optimizer: BoostedLowRankOptimizer) -> tuple[Any, ...]:
    """All that a run consists of, the frozen weights among it."""
    return values(model), optimizer.state_dict(), optimizer.booster_index, optimizer.booster_step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saved_weights_compute_what_the_model_computes(dtype: torch.dtype, kind: str) -> None:
    """At any moment, the pending booster included, under the plain model's keys."""
    model = stack(kind=kind, dtype=dtype)
    plain = stack(kind=kind, dtype=dtype, seed=1)
    layout = {name: (t.shape, t.dtype) for name, t in plain.state_dict().items()}
    optimizer = boosted(model, shrinkage=0.5, merge_precision="residual")
    x = batches(1, dtype, seed=5)[0][0]
    for batch in batches(7, dtype):
        train(model, optimizer, [batch])
        state = model.state_dict()
        assert list(state) == list(layout)
        assert {name: (t.shape, t.dtype) for name, t in state.items()} == layout
        plain.load_state_dict(state)
        if dtype in (torch.float64, torch.float32):
            tolerance = 1e-12 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(plain(x), model(x), rtol=tolerance, atol=tolerance)
        check_fold(model, optimizer, kind, dtype)


def check_fold(
    model: Stack, optimizer: BoostedLowRankOptimizer, kind: str, dtype: torch.dtype
) -> None:
    """Each drawn weight is saved as one rounding of W + s·B A, every other one as it is."""
    saved = model.state_dict()
    live = {name: p.detach() for name, p in model.named_parameters() if name in saved}
    drawn = {
        f"{name}.weight": (B @ A).detach() for name, (A, B) in optimizer.active_factors.items()
    }
    for name, W in live.items():
        if name not in drawn:
            assert torch.equal(saved[name], W), name
            continue
        product = 1.5 * drawn[name].double()
        exact = W.double() + (product.T if kind == "conv1d" else product)
        spacing = torch.finfo(dtype).eps * torch.maximum(exact.abs(), W.double().abs())
        assert (
            (saved[name].double() - exact).abs() <= 0.51 * spacing + 1e-7 * product.abs().max()
        ).all()


def test_saving_changes_nothing() -> None:
    model = stack(dtype=torch.bfloat16)
    optimizer = boosted(model)
    train(model, optimizer, batches(5, torch.bfloat16))
    before, state = values(model), copy.deepcopy(optimizer.state_dict())
    for _ in range(2):
        model.state_dict()
        optimizer.state_dict()
    assert same_values(model, before)
    assert same(optimizer.state_dict(), state)


def test_saved_submodules_hold_their_share() -> None:
    """``model.blocks.state_dict()`` and a prefix work as ever."""
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(2))
    whole = model.state_dict()
    part = model.blocks.state_dict()
    prefixed = model.state_dict(prefix="model.")
    assert {f"blocks.{name}" for name in part} == {
        name for name in whole if name.startswith("blocks.")
    }
    assert all(torch.equal(part[name], whole[f"blocks.{name}"]) for name in part)
    assert list(prefixed) == [f"model.{name}" for name in whole]
    assert all(torch.equal(prefixed[f"model.{name}"], whole[name]) for name in whole)


def test_every_trained_weight_is_in_what_was_saved() -> None:
    """After finalize the model differs from the first one just where the checkpoint did."""
    model = stack()
    start = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = boosted(model, modules_to_save=["head"])
    train(model, optimizer, batches(4))
    saved = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer.finalize()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, saved[name], rtol=1e-14, atol=1e-14)
    changed = {name for name in start if not torch.equal(saved[name], start[name])}
    assert {"head.weight", "head.bias"} < changed
    assert any(name.startswith("blocks.") for name in changed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_resume_at_every_step(dtype: torch.dtype, policy: str) -> None:
    """Bitwise, from a model built of other weights, whether a booster was pending or not."""
    data = batches(9, dtype)

    def fresh(seed: int) -> tuple[Stack, BoostedLowRankOptimizer]:
        model = stack(dtype=dtype, seed=seed)
        # AdamW's eps is zero in float16, where a head would be trained in its own dtype.
        saved = [] if dtype == torch.float16 else ["head"]
        return model, boosted(model, merge_precision=policy, modules_to_save=saved)

    model, optimizer = fresh(0)
    checkpoints = [save(model, optimizer)]
    for batch in data:
        train(model, optimizer, [batch])
        checkpoints.append(save(model, optimizer))
    end = everything(model, optimizer)
    assert optimizer.booster_index == 3
    for steps, checkpoint in enumerate(checkpoints):
        resumed, its_optimizer = fresh(steps + 1)
        load(resumed, its_optimizer, checkpoint)
        assert (its_optimizer.booster_index, its_optimizer.booster_step) == divmod(steps, 3)
        train(resumed, its_optimizer, data[steps:])
        assert same(everything(resumed, its_optimizer), end), f"resumed after {steps} steps"


@pytest.mark.parametrize("base", BASES)
def test_resume_inside_a_booster_with_every_base(base: str) -> None:
    """In float32: torch's own load_state_dict turns NAdam's float32 product into a float64 one."""
    data = batches(8, torch.float32)
    model = stack(dtype=torch.float32)
    optimizer = boosted(model, base)
    train(model, optimizer, data[:5])
    checkpoint = save(model, optimizer)
    train(model, optimizer, data[5:])
    resumed = stack(dtype=torch.float32, seed=1)
    its_optimizer = boosted(resumed, base)
    load(resumed, its_optimizer, checkpoint)
    train(resumed, its_optimizer, data[5:])
    assert same(everything(resumed, its_optimizer), everything(model, optimizer))


SETTINGS: dict[str, dict[str, Any]] = {
    "cyclic": {"layer_sampler": "cyclic"},
    "window": {"layer_sampler": "window"},
    "callable": {"layer_sampler": lambda seed, t, L, L_s: [(t + i) % L for i in range(L_s)]},
    "every-layer": {"layers_per_booster": None},
    "unequal-blocks": {"layers_per_booster": 1, "hiddens": (9, 4, 7)},
    "one-booster": {"kappa": None},
    "one-step": {"kappa": 1},
    "shrinkage": {"shrinkage": lambda t: 0.5**t},
    "factor_l2": {"factor_l2": 0.1},
    "outside-the-blocks": {"target_modules": ["embed", "up", "head"]},
    "conv1d": {"kind": "conv1d"},
    "residual-on-cpu": {
        "merge_precision": "residual",
        "residual_device": "cpu",
        "dtype": torch.bfloat16,
    },
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_resume_with_every_setting(setting: str) -> None:
    settings = dict(SETTINGS[setting])
    build = {key: settings.pop(key) for key in ("hiddens", "kind", "dtype") if key in settings}
    data = batches(9, build.get("dtype", torch.float64))
    model = stack(**build)
    optimizer = boosted(model, **settings)
    train(model, optimizer, data[:4])
    checkpoint = save(model, optimizer)
    train(model, optimizer, data[4:])
    resumed = stack(**build, seed=1)
    its_optimizer = boosted(resumed, **settings)
    load(resumed, its_optimizer, checkpoint)
    train(resumed, its_optimizer, data[4:])
    assert same(everything(resumed, its_optimizer), everything(model, optimizer))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [1, 3, 4, 5])
def test_rollback_of_the_live_optimizer(steps: int, dtype: torch.dtype) -> None:
    """Loaded in place of a run that had gone on, into the same objects."""
    data = batches(9, dtype)
    model = stack(dtype=dtype)
    optimizer = boosted(model, modules_to_save=["head"])
    objects = [id(p) for group in optimizer.param_groups for p in group["params"]]
    train(model, optimizer, data[:steps])
    checkpoint = save(model, optimizer)
    train(model, optimizer, data[steps:])
    end = copy.deepcopy(everything(model, optimizer))
    train(model, optimizer, batches(2, dtype, seed=9))
    load(model, optimizer, checkpoint)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == objects
    assert {id(f) for pair in optimizer.active_factors.values() for f in pair} <= set(objects)
    train(model, optimizer, data[steps:])
    assert same(everything(model, optimizer), end)


def test_a_loaded_checkpoint_stays_as_it_was() -> None:
    """Training on must not write into the state it was loaded from."""
    model, data = stack(dtype=torch.bfloat16), batches(8, torch.bfloat16)
    optimizer = boosted(model)
    train(model, optimizer, data[:4])
    checkpoint = save(model, optimizer)
    kept = copy.deepcopy(checkpoint)
    load(model, optimizer, checkpoint)
    train(model, optimizer, data[4:])
    assert same(tuple(map(dict, checkpoint)), tuple(map(dict, kept)))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("steps", [0, 2, 3, 4])
def test_round_trip_at_once_changes_nothing(steps: int, policy: str) -> None:
    """As accelerate does at ``prepare``: the model holds the frozen weights, not the saved."""
    data = batches(8, torch.bfloat16)
    model, twin = stack(dtype=torch.bfloat16), stack(dtype=torch.bfloat16)
    optimizer, plain = (boosted(m, merge_precision=policy) for m in (model, twin))
    train(model, optimizer, data[:steps])
    train(twin, plain, data[:steps])
    before = copy.deepcopy(everything(model, optimizer))
    optimizer.load_state_dict(optimizer.state_dict())
    assert same(everything(model, optimizer), before)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert same(everything(model, optimizer), before)
    train(model, optimizer, data[steps:])
    train(twin, plain, data[steps:])
    assert same(everything(model, optimizer), everything(twin, plain))


def test_resume_with_a_scheduler() -> None:
    data = batches(8)

    def fresh(seed: int) -> tuple[Stack, BoostedLowRankOptimizer, OneCycleLR]:
        model = stack(seed=seed)
        optimizer = boosted(model)
        return model, optimizer, OneCycleLR(optimizer, max_lr=0.05, total_steps=8)

    model, optimizer, scheduler = fresh(0)
    train(model, optimizer, data[:4], schedulers=[scheduler])
    checkpoint = through_a_file(
        (model.state_dict(), optimizer.state_dict(), scheduler.state_dict())
    )
    train(model, optimizer, data[4:], schedulers=[scheduler])
    resumed, its_optimizer, its_scheduler = fresh(1)
    load(resumed, its_optimizer, checkpoint[:2])
    its_scheduler.load_state_dict(checkpoint[2])
    train(resumed, its_optimizer, data[4:], schedulers=[its_scheduler])
    assert same(everything(resumed, its_optimizer), everything(model, optimizer))


def test_lr_travels_with_the_state() -> None:
    model = stack()
    optimizer = boosted(model)
    optimizer.param_groups[0]["lr"] = 0.123
    checkpoint = save(model, optimizer)
    other = stack(seed=1)
    its_optimizer = boosted(other)
    load(other, its_optimizer, checkpoint)
    assert its_optimizer.param_groups[0]["lr"] == 0.123
    its_optimizer.param_groups[0]["lr"] = 0.0
    before = values(other)
    train(other, its_optimizer, batches(2))
    assert same_values(other, before)


def refuses(
    model: nn.Module,
    optimizer: BoostedLowRankOptimizer,
    state: Any,
    error: type[Exception],
    match: str,
) -> None:
    """The load raises, and everything is as before: structure, weights and state."""
    structure, before = anatomy(model), copy.deepcopy(everything(model, optimizer))
    with pytest.raises(error, match=match):
        optimizer.load_state_dict(state)
    assert anatomy(model) == structure
    assert same(everything(model, optimizer), before)


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wrong_weights(dtype: torch.dtype, steps: int) -> None:
    """A state beside weights it does not belong to: another model's, or another step's."""
    model = stack(dtype=dtype)
    optimizer = boosted(model)
    train(model, optimizer, batches(steps, dtype))
    state = through_a_file(optimizer.state_dict())
    other = stack(dtype=dtype, seed=1)
    its_optimizer = boosted(other)
    train(other, its_optimizer, batches(1, dtype))
    said = "does not belong to the model's weights"
    refuses(other, its_optimizer, state, RuntimeError, said)
    train(model, optimizer, batches(4, dtype))
    refuses(model, optimizer, state, RuntimeError, said)


def test_one_wrong_weight_is_enough() -> None:
    """Even one that was not drawn, by one bit, or two exchanged rows."""
    model = stack()
    optimizer = boosted(model, layers_per_booster=1)
    train(model, optimizer, batches(1))
    checkpoint = save(model, optimizer)
    idle = next(
        name for name, layer in optimizer.targets.items() if layer not in optimizer.active_layers
    )

    def flip(W: Tensor) -> Tensor:
        W[0, 0] = torch.nextafter(W[0, 0], torch.tensor(10.0, dtype=W.dtype))
        return W

    drawn = next(iter(optimizer.active_factors))
    changes: list[Callable[[Tensor], Tensor]] = [flip, lambda W: W.flip(0), lambda W: W.flip(1)]
    for name in (idle, drawn):
        for change in changes:
            spoiled = copy.deepcopy(checkpoint)
            spoiled[0][f"{name}.weight"] = change(spoiled[0][f"{name}.weight"].clone())
            other = stack(seed=1)
            its_optimizer = boosted(other, layers_per_booster=1)
            other.load_state_dict(spoiled[0])
            with pytest.raises(RuntimeError, match=f"does not belong.*{name}"):
                its_optimizer.load_state_dict(spoiled[1])


def test_weights_in_another_dtype() -> None:
    model = stack(dtype=torch.float32)
    optimizer = boosted(model)
    train(model, optimizer, batches(4, torch.float32))
    checkpoint = save(model, optimizer)
    other = stack(dtype=torch.bfloat16)
    its_optimizer = boosted(other)
    other.load_state_dict(checkpoint[0])
    refuses(other, its_optimizer, checkpoint[1], RuntimeError, "in the same dtype")


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "r": ({"r": 1}, "r"),
    "kappa": ({"kappa": 4}, "kappa"),
    "layers_per_booster": ({"layers_per_booster": 1}, "layers_per_booster"),
    "seed": ({"seed": 1}, "seed"),
    "layer_sampler": ({"layer_sampler": "cyclic"}, "layer_sampler"),
    "lora_alpha": ({"lora_alpha": 4.0}, "scaling|lora_alpha"),
    "target_modules": ({"target_modules": ["query", "value"]}, "target"),
    "modules_to_save": ({"modules_to_save": ["head"]}, "modules_to_save"),
    "merge_precision": ({"merge_precision": "stochastic"}, "merge_precision"),
    "optimizer_class": ({"base": "sgd-momentum"}, "(?i)adamw|SGD"),
}


@pytest.mark.parametrize("changed", OTHER)
def test_other_configuration(changed: str) -> None:
    """The difference is named, with both values."""
    settings, match = OTHER[changed]
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(4))
    checkpoint = save(model, optimizer)
    other = stack()
    its_optimizer = boosted(other, **settings)
    other.load_state_dict(checkpoint[0])
    refuses(other, its_optimizer, checkpoint[1], ValueError, match)
    train(other, its_optimizer, batches(3))


def test_other_model() -> None:
    model = stack(depth=3)
    optimizer = boosted(model)
    state = optimizer.state_dict()
    for other in (stack(depth=4), stack(hiddens=(10, 10, 11)), nn.Sequential(nn.Linear(3, 4))):
        its_optimizer = boosted(other)
        refuses(other, its_optimizer, state, ValueError, "(?i)target|layer")


@pytest.mark.parametrize(
    "state",
    [{}, {"state": {}, "param_groups": []}, AdamW(stack().parameters()).state_dict()],
    ids=["empty", "of no parameters", "of the bare base"],
)
def test_not_a_state_of_ours(state: dict[str, Any]) -> None:
    model = stack()
    optimizer = boosted(model)
    refuses(model, optimizer, state, ValueError, "not a state of BoostedLowRankOptimizer")


def test_a_state_cut_short() -> None:
    """A group or its state that is missing is said before anything is written."""
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(4))
    state = through_a_file(optimizer.state_dict())
    state["param_groups"][0]["params"].pop()
    refuses(model, optimizer, state, ValueError, "group")


def test_weights_loaded_alone_begin_the_booster_over() -> None:
    """The saved weights hold the booster already: adding it a second time would be wrong."""
    model = stack()
    optimizer = boosted(model, kappa=None)
    train(model, optimizer, batches(3))
    x = batches(1, seed=4)[0][0]
    saved = {name: t.clone() for name, t in model.state_dict().items()}
    computed = model(x).detach()
    train(model, optimizer, batches(2, seed=3))
    assert not torch.allclose(model(x), computed)
    model.load_state_dict(saved)
    torch.testing.assert_close(model(x), computed, rtol=1e-12, atol=1e-12)
    optimizer.finalize()
    torch.testing.assert_close(model(x), computed, rtol=1e-12, atol=1e-12)


def test_a_weight_that_does_not_load_keeps_its_pending_pair() -> None:
    """torch reports the mismatch and leaves that weight alone, with what was to be added to it."""
    model = stack()
    optimizer = boosted(model, kappa=None, layers_per_booster=None)
    train(model, optimizer, batches(3))
    x = batches(1, seed=4)[0][0]
    computed = model(x).detach()
    state = model.state_dict()
    state["blocks.0.up.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(state)
    torch.testing.assert_close(model(x), computed, rtol=1e-12, atol=1e-12)
    model.load_state_dict({"head.bias": model.head.bias.clone()}, strict=False)
    torch.testing.assert_close(model(x), computed, rtol=1e-12, atol=1e-12)


def test_resume_of_a_tied_weight() -> None:
    def fresh(seed: int) -> tuple[nn.Module, BoostedLowRankOptimizer]:
        model = tied(seed).double()
        return model, boosted(model)

    data = batches(8)
    model, optimizer = fresh(0)
    train(model, optimizer, data[:4])
    checkpoint = save(model, optimizer)
    train(model, optimizer, data[4:])
    resumed, its_optimizer = fresh(1)
    load(resumed, its_optimizer, checkpoint)
    train(resumed, its_optimizer, data[4:])
    assert same(everything(resumed, its_optimizer), everything(model, optimizer))


def test_a_weight_stored_transposed_resumes() -> None:
    def fresh(seed: int) -> tuple[Stack, BoostedLowRankOptimizer]:
        model = stack(dtype=torch.bfloat16, seed=seed)
        for block in model.blocks:
            block.up.weight = nn.Parameter(block.up.weight.detach().T.contiguous().T)
        return model, boosted(model, layers_per_booster=None)

    data = batches(6, torch.bfloat16)
    model, optimizer = fresh(0)
    train(model, optimizer, data[:4])
    checkpoint = save(model, optimizer)
    train(model, optimizer, data[4:])
    resumed, its_optimizer = fresh(1)
    load(resumed, its_optimizer, checkpoint)
    train(resumed, its_optimizer, data[4:])
    assert same(everything(resumed, its_optimizer), everything(model, optimizer))


def test_plain_types_alone() -> None:
    """What ``torch.load(weights_only=True)`` reads."""
    model = stack()
    optimizer = boosted(model, modules_to_save=["head"])
    train(model, optimizer, batches(5))
    plain = (dict, list, tuple, str, int, float, bool, type(None), Tensor)

    def check(value: Any) -> None:
        assert isinstance(value, plain), type(value)
        if isinstance(value, Tensor):
            assert type(value) is Tensor
        elif isinstance(value, dict):
            assert type(value) in (dict,) or value is None
            for key, inner in value.items():
                assert isinstance(key, (str, int))
                check(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                check(inner)

    check(optimizer.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_finalize_equals_what_was_saved(dtype: torch.dtype) -> None:
    """The last checkpoint and the finished model hold the same weights, up to one rounding."""
    model = stack(dtype=dtype)
    optimizer = boosted(model)
    train(model, optimizer, batches(5, dtype))
    saved = {name: t.clone() for name, t in model.state_dict().items()}
    after = as_matrices(optimizer.finalize())
    eps = torch.finfo(dtype).eps
    for name, W in after.items():
        torch.testing.assert_close(W, saved[name], rtol=2 * eps, atol=2 * eps)


def test_resumed_model_scores_as_the_saved_one() -> None:
    """Before any step is taken: loading computes what was computed when saving."""
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(4))
    x, y = batches(1, seed=8)[0]
    score = cross_entropy(model(x), y)
    checkpoint = save(model, optimizer)
    other = stack(seed=1)
    its_optimizer = boosted(other)
    load(other, its_optimizer, checkpoint)
    assert torch.equal(cross_entropy(other(x), y), score)


@pytest.mark.parametrize("dtype", DTYPES)
def test_folded_in_for_a_while(dtype: torch.dtype) -> None:
    """The weights themselves are what the state_dict says, and then again what they were."""
    model = stack(dtype=dtype)
    optimizer = boosted(model)
    train(model, optimizer, batches(4, dtype))
    frozen, folded = values(model), model.state_dict()
    x = batches(1, dtype, seed=5)[0][0]
    expected = model(x)
    with optimizer.boosting.folded_in():
        for name, parameter in model.named_parameters():
            if name in folded:
                assert torch.equal(parameter, folded[name]), name
        assert all(map(torch.equal, model.state_dict().values(), folded.values()))
        assert torch.allclose(model(x), expected, atol=1e-2 if dtype.itemsize == 2 else 1e-5)
    assert same_values(model, frozen)
    assert torch.equal(model(x), expected)


def test_folded_in_ends_with_an_error_too() -> None:
    model = stack()
    optimizer = boosted(model)
    train(model, optimizer, batches(4))
    frozen = values(model)
    with pytest.raises(KeyError), optimizer.boosting.folded_in():
        raise KeyError
    assert same_values(model, frozen)


def test_slots_set_apart_train_alike() -> None:
    models = [stack(), stack()]
    optimizers = [boosted(model) for model in models]
    optimizers[1].boosting.set_apart()
    assert not [name for name, _ in models[1].named_parameters() if "boosters" in name]
    logs = [train(m, o, batches(8)) for m, o in zip(models, optimizers, strict=True)]
    assert logs[0].losses == logs[1].losses
    assert all(map(torch.equal, *(o.finalize().parameters() for o in optimizers)))


def sgd(model: nn.Module) -> BoostedLowRankOptimizer:
    return BoostedLowRankOptimizer(torch.optim.SGD, model, kappa=None, lr=0.1)


def test_loading_in_the_wrong_order_resumes_too() -> None:
    """In the first booster both orders fit the weights, and the weights are those of the state."""
    model, other = stack(), stack()
    optimizer, resumed = sgd(model), sgd(other)
    train(model, optimizer, batches(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed.load_state_dict(saved[1])
    other.load_state_dict(saved[0])
    assert same(everything(other, resumed), everything(model, optimizer))


def test_other_weights_loaded_over_a_resumed_booster_are_said() -> None:
    model, other = stack(), stack()
    optimizer, resumed = sgd(model), sgd(other)
    train(model, optimizer, batches(3))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.warns(UserWarning, match="load the model first"):
        other.load_state_dict(stack(seed=1).state_dict())


@pytest.mark.filterwarnings("error")
def test_loading_in_order_and_later_weights_is_not_commented() -> None:
    model = stack()
    optimizer = BoostedLowRankOptimizer(torch.optim.SGD, model, kappa=None, lr=0.1)
    train(model, optimizer, batches(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, batches(1))
    model.load_state_dict(saved[0])
