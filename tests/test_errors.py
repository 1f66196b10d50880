"""Every bad input: the error's type, what it names, and that the model is as it was."""

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from anatomy import anatomy, same_values, values
from tiny import Block, Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer, LossPlateau
from training import train

NAN, INF = float("nan"), float("inf")


def build(
    model: Any, optimizer_class: Any = torch.optim.SGD, **settings: Any
) -> BoostedLowRankOptimizer:
    settings = {"lr": 0.1, **settings}
    return BoostedLowRankOptimizer(optimizer_class, model, **settings)


def refuses(
    model: nn.Module,
    build_: Callable[[], Any],
    error: type[Exception],
    match: str,
) -> None:
    """The constructor raises, and model, gradients and requires_grad are as they were."""
    for p in model.parameters():
        if p.is_floating_point() and not p.is_meta and p.requires_grad:
            p.grad = torch.ones_like(p)
    structure = anatomy(model)
    tensors = None if any(p.is_meta for p in model.parameters()) else values(model)
    keys = list(model.state_dict())
    with pytest.raises(error, match=match):
        build_()
    assert anatomy(model) == structure
    assert list(model.state_dict()) == keys
    assert tensors is None or same_values(model, tensors)
    for p in model.parameters():
        if p.is_floating_point() and not p.is_meta and p.requires_grad:
            assert p.grad is not None and bool((p.grad == 1).all())


TYPE, VALUE = TypeError, ValueError

# Argument, value given, error.
BAD: list[tuple[str, Any, Any]] = [
    ("r", 0, VALUE),
    ("r", -1, VALUE),
    ("r", 7, VALUE),  # the smaller side of blocks.*.query is 6
    ("r", 1.0, TYPE),
    ("r", "1", TYPE),
    ("r", True, TYPE),
    ("r", None, TYPE),
    ("r", [], VALUE),
    ("r", [1, 0], VALUE),
    ("r", [1, 2.0], TYPE),
    ("r", lambda t: 0, VALUE),
    ("r", lambda t: "1", TYPE),
    ("kappa", 0, VALUE),
    ("kappa", -3, VALUE),
    ("kappa", 2.0, TYPE),
    ("kappa", "8", TYPE),
    ("kappa", True, TYPE),
    ("kappa", [], VALUE),
    ("kappa", [4, 4], VALUE),
    ("kappa", [8, 4], VALUE),
    ("kappa", [0, 4], VALUE),
    ("kappa", lambda t: 0, VALUE),
    ("kappa", object(), TYPE),
    ("layers_per_booster", 0, VALUE),
    ("layers_per_booster", -1, VALUE),
    ("layers_per_booster", 0.0, VALUE),
    ("layers_per_booster", 1.5, VALUE),
    ("layers_per_booster", -0.5, VALUE),
    ("layers_per_booster", NAN, VALUE),
    ("layers_per_booster", True, TYPE),
    ("layers_per_booster", "all", TYPE),
    ("target_modules", 3, TYPE),
    ("target_modules", [1], TYPE),
    ("target_modules", None, TYPE),
    ("target_modules", [], VALUE),
    ("target_modules", ["nothing"], VALUE),
    ("target_modules", "nothing", VALUE),
    ("target_modules", "(", VALUE),
    ("target_modules", ["blocks"], VALUE),
    ("exclude_modules", 3, TYPE),
    ("exclude_modules", [None], TYPE),
    ("exclude_modules", "(", VALUE),
    ("exclude_modules", ".*", VALUE),
    ("modules_to_save", "hea", VALUE),
    ("modules_to_save", "(", VALUE),
    ("modules_to_save", 3, TYPE),
    ("modules_to_save", [3], TYPE),
    ("modules_to_save", ["nothing"], VALUE),
    ("lora_alpha", "1", TYPE),
    ("lora_alpha", True, TYPE),
    ("lora_alpha", -1.0, VALUE),
    ("lora_alpha", 0, VALUE),  # s = 0: nothing would ever be learned
    ("lora_alpha", NAN, VALUE),
    ("lora_alpha", INF, VALUE),
    ("lora_dropout", "0", TYPE),
    ("lora_dropout", -0.1, VALUE),
    ("lora_dropout", 1.0, VALUE),
    ("lora_dropout", NAN, VALUE),
    ("adapter", "dora", VALUE),
    ("adapter", 1, VALUE),
    ("shrinkage", "1", TYPE),
    ("shrinkage", None, TYPE),
    ("shrinkage", True, TYPE),
    ("shrinkage", 0.0, VALUE),
    ("shrinkage", -1.0, VALUE),
    ("shrinkage", NAN, VALUE),
    ("shrinkage", INF, VALUE),
    ("shrinkage", [], VALUE),
    ("shrinkage", [1.0, 0.0], VALUE),
    ("bias", "all", VALUE),
    ("bias", None, VALUE),
    ("rewarmup_steps", -1, VALUE),
    ("rewarmup_steps", 1.5, TYPE),
    ("rank_lr_exponent", "a", TYPE),
    ("rank_lr_exponent", NAN, VALUE),
    ("factor_l2", "0", TYPE),
    ("factor_l2", True, TYPE),
    ("factor_l2", -0.1, VALUE),
    ("factor_l2", NAN, VALUE),
    ("factor_l2", INF, VALUE),
    ("layer_sampler", "random", VALUE),
    ("layer_sampler", 3, TYPE),
    ("layer_sampler", None, TYPE),
    ("layer_sampler", lambda *_: [99], VALUE),
    ("merge_precision", "exact", VALUE),
    ("merge_precision", None, VALUE),
    ("merge_precision", 16, VALUE),
    ("residual_device", "nowhere", VALUE),
    ("nonfinite", "ignore", VALUE),
    ("nonfinite", True, VALUE),
    ("unused", "ignore", VALUE),
    ("unused", None, VALUE),
    ("record", False, TYPE),
    ("record", 3, TYPE),
    ("seed", 1.0, TYPE),
    ("seed", "0", TYPE),
    ("seed", None, TYPE),
    ("seed", True, TYPE),
    ("momentum_", 0.9, TYPE),
    ("lr", -1.0, VALUE),
]


@pytest.mark.parametrize(
    ("argument", "given", "error"), BAD, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(BAD)]
)
def test_bad_argument(argument: str, given: Any, error: Any) -> None:
    """The message names the argument and repeats what was given."""
    model = stack()
    named = "learning rate" if argument == "lr" else argument
    refuses(model, lambda: build(model, **{argument: given}), error, rf"(?s){named}")


@pytest.mark.parametrize(
    ("argument", "given", "error"),
    [row for row in BAD if row[0] not in {"target_modules", "exclude_modules", "lr", "momentum_"}],
    ids=[
        f"{name}-{i}"
        for i, (name, *_) in enumerate(BAD)
        if name not in {"target_modules", "exclude_modules", "lr", "momentum_"}
    ],
)
def test_message_repeats_what_was_given(argument: str, given: Any, error: Any) -> None:
    with pytest.raises(error) as caught:
        build(stack(), **{argument: given})
    shown = repr(given)
    if callable(given):
        shown = {"layer_sampler": "99", "kappa": "0"}.get(argument, "function")
    shown = shown[1:-1] if isinstance(given, (str, list)) else shown
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ("layer_sampler", ["uniform", "cyclic", "window"]),
        ("merge_precision", ["auto", "nearest", "stochastic", "residual"]),
        ("adapter", ["lora", "direft"]),
        ("nonfinite", ["error", "skip"]),
        ("unused", ["error", "skip"]),
    ],
)
def test_message_lists_what_is_allowed(argument: str, allowed: list[str]) -> None:
    with pytest.raises(ValueError, match=argument) as error:
        build(stack(), **{argument: "something else"})
    assert all(value in str(error.value) for value in allowed)


@pytest.mark.parametrize(
    ("optimizer_class", "match"),
    [
        (None, "must be an optimizer's class .*got None"),
        ("AdamW", "must be an optimizer's class .*got 'AdamW'"),
        (3, "must be an optimizer's class .*got 3"),
        (
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
            r"got SGD\(…\), made already: pass SGD itself$",
        ),
        (lambda params, lr: "no optimizer", "must make a torch.optim.Optimizer, got str"),
        (lambda params, lr: None, "must make a torch.optim.Optimizer, got NoneType"),
        (nn.Linear, "argument 'lr'"),
    ],
    ids=["none", "name", "number", "instance", "answers-a-string", "answers-none", "a-module"],
)
def test_bad_optimizer_class(optimizer_class: Any, match: str) -> None:
    model = stack()
    refuses(model, lambda: build(model, optimizer_class), TypeError, match)


def test_base_that_drops_parameters() -> None:
    """A callable that trains only a part would leave factors that never move."""
    model = stack()

    def partial(params: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(params[0]["params"][:1], lr=lr)

    refuses(model, lambda: build(model, partial), ValueError, "SGD rearranges its param_groups")


class Around(torch.optim.Optimizer):
    """Steps another optimizer, as SAM and Lookahead do."""

    def __init__(self, params: Any, shares: bool, **kwargs: Any) -> None:
        super().__init__(params, {})
        self.inner = torch.optim.Adam(self.param_groups, **kwargs)
        self.param_groups = self.inner.param_groups
        if shares:
            self.state = self.inner.state

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def test_base_around_another_optimizer() -> None:
    """Moments kept there would go on in the next booster, whose pair they are not of."""
    model = stack()
    alone = functools.partial(Around, shares=False)
    reason = "Around cannot train boosters: it is around Adam, whose state it does not share"
    refuses(model, lambda: build(model, alone), ValueError, reason)
    build(model, functools.partial(Around, shares=True)).finalize()


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (torch.optim.LBFGS, "it evaluates the model several times a step"),
        (torch.optim.SparseAdam, "the factors' gradients are dense"),
    ],
)
def test_refused_base_gives_its_reason(base: Any, reason: str) -> None:
    """Given as it is, or made by a callable."""
    model = stack()
    said = f"{base.__name__} cannot train boosters: {reason}"
    refuses(model, lambda: build(model, base), ValueError, said)
    refuses(model, lambda: build(model, lambda params, lr: base(params, lr=lr)), ValueError, said)


@pytest.mark.parametrize(
    "model", [None, "bert", {"weight": torch.zeros(2, 2)}, [nn.Linear(2, 2)], nn.Linear]
)
def test_model_that_is_none(model: Any) -> None:
    with pytest.raises(TypeError, match="Module"):
        build(model)


def test_model_given_as_parameters() -> None:
    """The habit of every other optimizer."""
    with pytest.raises(TypeError, match="Module"):
        build(stack().parameters())


def test_arguments_are_keywords() -> None:
    with pytest.raises(TypeError):
        BoostedLowRankOptimizer(torch.optim.SGD, stack(), 1, 8)  # type: ignore[misc]


def test_no_targets_lists_what_there_is() -> None:
    model = stack()
    refuses(
        model, lambda: build(model, target_modules=["c_attn"]), ValueError, r"(?s)c_attn.*query"
    )
    refuses(model, lambda: build(model, target_modules=r"attn\..*"), ValueError, r"(?s)attn.*query")


def test_model_without_anything_to_adapt() -> None:
    for model in (nn.Sequential(nn.Conv2d(2, 2, 1)), nn.Module(), nn.Embedding(3, 3)):
        refuses(model, lambda m=model: build(m), ValueError, "Linear")


def test_rank_above_a_weights_smaller_side_names_it() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 3))
    refuses(model, lambda: build(model, r=4), ValueError, r"(?s)r.*4.*'1'|'1'.*r.*4")
    assert build(model, r=4, exclude_modules=["1"]).targets == {"0": "0"}


def test_model_with_peft_adapters() -> None:
    model = get_peft_model(stack(), LoraConfig(target_modules=["query"]))
    refuses(model, lambda: build(model), ValueError, "PEFT.*merge_and_unload")
    refuses(model.base_model.model, lambda: build(model.base_model.model), ValueError, "PEFT")


class Int8Linear(nn.Linear):
    """What a quantised linear map looks like to others: its weight is no floating point."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows)
        weight = torch.randint(-128, 127, (rows, columns), dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)


def test_quantised_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Int8Linear(4, 4))
    refuses(model, lambda: build(model), ValueError, "quantis")


class PackedLinear(nn.Module):
    """A linear map of GPTQ's kind, which is no ``nn.Linear``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(1, 4, dtype=torch.int32))


def test_quantised_maps_that_are_no_linear_map_of_torchs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), PackedLinear())
    words = r"bitsandbytes and torchao.*quantise what finalize\(\) returns.*chain\.to_peft"
    refuses(model, lambda: build(model), ValueError, words)


def test_maps_of_bitsandbytes_that_are_not_quantised_yet() -> None:
    """A stand-in: a weight is an ordinary floating one until the model is moved to its device."""
    place = {"__module__": "bitsandbytes.nn.modules"}
    maps = type("Linear4bit", (nn.Linear,), place | {"forward": lambda self, x: x})
    model = nn.Sequential(nn.Linear(4, 4), maps(4, 4))
    model[1].weight = type("Params4bit", (nn.Parameter,), place)(torch.zeros(4, 4), False)
    refuses(model, lambda: build(model), ValueError, r"model\.to\(device\)")


def test_float8_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match="quantis|float8"):
        build(model)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)
def test_dynamically_quantised_model() -> None:
    model = torch.ao.quantization.quantize_dynamic(stack(dtype=torch.float32), {nn.Linear})
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="quantis"):
        build(model)
    assert list(model.state_dict()) == before


def test_model_of_another_optimizer() -> None:
    model = stack()
    first = build(model, kappa=2)
    structure, tensors = anatomy(model), values(model)
    with pytest.raises(RuntimeError, match=r"finalize\(\)"):
        build(model)
    with pytest.raises(RuntimeError, match=r"finalize\(\)"):
        build(nn.Sequential(model, nn.Linear(3, 3)))
    with pytest.raises(RuntimeError, match=r"finalize\(\)"):
        build(model.blocks[0])
    assert anatomy(model) == structure
    assert same_values(model, tensors)
    train(model, first, batches(3))
    first.finalize()
    build(model)


def test_meta_parameters() -> None:
    with torch.device("meta"):
        model = Stack((4, 4))
    refuses(model, lambda: build(model), ValueError, "meta")


def test_inference_mode() -> None:
    model = stack(2)
    with torch.inference_mode():
        made = stack(2)
        refuses(model, lambda: build(model), RuntimeError, "inside torch.inference_mode().*outside")
    with pytest.raises(ValueError, match=r"were made in torch.inference_mode\(\).*outside of it"):
        build(made)
    with torch.no_grad():
        optimizer = build(model)
    before = values(model)
    train(model, optimizer, batches(10))
    assert not same_values(optimizer.finalize(), before)


def test_frozen_model_is_fine() -> None:
    """Only what is trained matters, and that is the factors."""
    model = stack().requires_grad_(False)
    optimizer = build(model, kappa=2)
    train(model, optimizer, batches(3))
    optimizer.finalize()
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "answer", [None, 3, "01", [0, 5], [0], [0, 0], [0.0, 1.0], [None, 1]], ids=str
)
def test_sampler_that_answers_wrongly(answer: Any) -> None:
    model = stack()
    refuses(
        model,
        lambda: build(model, layers_per_booster=2, layer_sampler=lambda *_: answer),
        ValueError,
        "layer_sampler must return 2 distinct integers",
    )


def test_sampler_that_raises() -> None:
    """Its own error comes through, with the model untouched."""
    model = stack()

    def sampler(*_: Any) -> list[int]:
        raise KeyError("mine")

    refuses(model, lambda: build(model, layer_sampler=sampler), KeyError, "mine")


@pytest.mark.parametrize("alpha", [NAN, INF, None])
def test_shrinkage_that_answers_wrongly(alpha: Any) -> None:
    """Said before the booster before it is merged; the weights and that booster are kept."""
    model = stack()
    optimizer = build(model, kappa=None, shrinkage=lambda t: alpha if t else 1.0)
    train(model, optimizer, batches(2))
    before = values(model)
    with pytest.raises(TypeError if alpha is None else ValueError, match="shrinkage must be"):
        optimizer.merge()
    assert same_values(model, before)
    assert (optimizer.booster_index, optimizer.booster_step) == (0, 2)


def test_shrinkage_that_raises() -> None:
    model = stack()

    def shrinkage(t: int) -> float:
        if t:
            raise KeyError("mine")
        return 1.0

    optimizer = build(model, kappa=None, shrinkage=shrinkage)
    train(model, optimizer, batches(2))
    before = values(model)
    with pytest.raises(KeyError, match="mine"):
        optimizer.merge()
    assert same_values(model, before)


def test_class_of_a_policy_is_no_policy() -> None:
    model = stack()
    refuses(model, lambda: build(model, kappa=LossPlateau), TypeError, "kappa.*LossPlateau")


@pytest.mark.parametrize("fn", [None, 3, "print"])
def test_listener_that_cannot_be_called(fn: Any) -> None:
    with pytest.raises(TypeError, match="on_merge"):
        build(stack()).on_merge(fn)


def test_listener_that_raises_leaves_a_sound_optimizer() -> None:
    """Its error comes through after the merge is complete."""
    model = stack()
    optimizer = build(model, kappa=2)

    def listener(report: Any) -> None:
        raise KeyError("mine")

    handle = optimizer.on_merge(listener)
    with pytest.raises(KeyError, match="mine"):
        train(model, optimizer, batches(2))
    assert (optimizer.booster_index, optimizer.booster_step) == (1, 0)
    assert all(B.count_nonzero() == 0 for _, B in optimizer.active_factors.values())
    handle.remove()
    optimizer.zero_grad()
    train(model, optimizer, batches(2))
    assert optimizer.booster_index == 2


def test_every_message_says_more_than_a_word() -> None:
    """What was given, what is allowed, what to do: never a bare name or an assertion."""
    for argument, given, error in BAD:
        if argument in {"lr", "momentum_"}:
            continue
        with pytest.raises(error) as caught:
            build(stack(), **{argument: given})
        assert len(re.findall(r"\w+", str(caught.value))) >= 6, str(caught.value)


def test_weights_partitioned_by_zero_need_the_integration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch_xgb.weights.places._PLACES", [])  # a test before may have it
    model = stack(2)
    model.blocks[0].query.weight.ds_tensor = torch.empty(3)
    with pytest.raises(ValueError, match=r"import torch_xgb\.integrations\.deepspeed first"):
        build(model)


def tie_biases(model: Stack) -> Stack:
    for block in model.blocks:
        block.down.bias = model.blocks[0].down.bias
    return model


def tie_to_norm(model: Stack) -> Stack:
    model.norm = nn.LayerNorm(6, dtype=torch.float64)
    model.norm.bias = model.blocks[0].down.bias
    return model


@pytest.mark.parametrize("tie", [tie_biases, tie_to_norm])
@pytest.mark.parametrize("settings", [{"bias": "targets"}, {"adapter": "direft"}])
def test_tied_biases(tie: Callable[[Stack], Stack], settings: dict[str, Any]) -> None:
    model = tie(stack())
    refuses(model, lambda: build(model, **settings), ValueError, "down.bias is tied to")
    build(model)  # merges into no bias


class PolicyThatFails(LossPlateau):
    def begin(self) -> None:
        raise KeyError("begin")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_whatever_fails_last_leaves_the_model_as_it_was(checkpointing: bool) -> None:
    model = stack()
    settings = {"kappa": PolicyThatFails(), "checkpointing": checkpointing}
    refuses(model, lambda: build(model, **settings), KeyError, "begin")
    build(model).finalize()


def test_integers_among_the_parameters_trained_in_full_stay_as_they_are() -> None:
    model = stack()
    model.head.index = nn.Parameter(torch.arange(3), requires_grad=False)
    train(model, build(model, modules_to_save=["head"]), batches(2))
    assert model.head.weight.requires_grad and not model.head.index.requires_grad


class Bypassing(Block):
    """Reads a weight itself, as fused kernels do."""

    def forward(self, x: Tensor) -> Tensor:
        up = nn.functional.linear(x, self.up.weight, self.up.bias)
        return x + self.down(torch.tanh(up)) + self.out(self.value(self.query(x) + self.key(x)))


def test_a_bypassed_module_is_told_though_its_factors_have_old_gradients() -> None:
    """Those of the booster before, left as zeros by ``zero_grad(set_to_none=False)``."""
    model, (x, y) = stack(), batches(1)[0]
    optimizer = build(model, kappa=1, layers_per_booster=1)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    for block in model.blocks:
        block.__class__ = Bypassing
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"1 drawn targets got no gradient: 'blocks\.\d\.up'"):
        optimizer.step()


def test_a_model_that_was_made_anew_since() -> None:
    """As by a notebook's cell that is run again, without the optimizer's."""
    optimizer, (x, y) = build(stack()), batches(1)[0]
    nn.functional.cross_entropy(stack()(x), y).backward()
    with pytest.raises(RuntimeError, match="the loss is of another model than this optimizer's"):
        optimizer.step()


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"kapa": 4}, "'kapa'; what .* goes to the base. Say kappa= in the place of kapa=$"),
        ({"rank": 4}, "Say r= in the place of rank=$"),
        ({"betas": (0.9, 0.99)}, "'betas'; what BoostedLowRankOptimizer does not know goes to"),
        ({"nonsense": 1}, "goes to the base$"),
    ],
)
def test_a_word_that_neither_knows(told: dict[str, Any], says: str) -> None:
    refuses(model := stack(), lambda: build(model, **told), TypeError, says)
    with pytest.raises(TypeError) as raised:
        build(model, betas=(0.9, 0.99))
    assert "bias=" not in str(raised.value)  # near in letters alone
