"""Bare Parameters as targets: stacks of experts, and matrices that no linear map holds."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from mixtures import EXPERTS, Mixed, boost, loss_of, mixture, sentences
from torch_xgb import BoostedLowRankOptimizer, release


def boosted(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    told = {"kappa": 2, "r": 2, "layers_per_booster": 2, "target_parameters": EXPERTS, **settings}
    return BoostedLowRankOptimizer(AdamW, model, lr=0.02, lora_alpha=3.0, **told)


def train(model: nn.Module, optimizer: BoostedLowRankOptimizer, data: list[Tensor]) -> list[float]:
    losses = []
    for ids in data:
        loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def written(*what: Any) -> Any:
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", ["mixtral", "qwen", "gpt_oss"])
def test_equals_the_reference(kind: str) -> None:
    """Experts beside attention, four boosters of two blocks in three, to 1e-9 in float64."""
    model, plain, data = mixture(kind), mixture(kind), sentences(8)
    optimizer = boosted(model)
    inits: dict[int, dict[str, Tensor]] = {}
    losses = []
    for ids in data:
        if optimizer.booster_step == 0:
            pairs = optimizer.active_factors.items()
            inits[optimizer.booster_index] = {
                name if A.ndim == 3 else f"{name}.weight": A.detach().clone()
                for name, (A, _) in pairs
            }
        losses += train(model, optimizer, [ids])
    wanted, W = boost(plain, data, inits, kappa=2, s=1.5, lr=0.02)
    assert losses == pytest.approx(wanted, rel=1e-9)
    for name, weight in optimizer.finalize().state_dict().items():
        assert torch.allclose(weight, W.get(name, weight), rtol=0, atol=1e-9), name
    assert "12 linear maps and 6 bare Parameters in 3 blocks" in str(optimizer.summary())
    stacks = [A for A in inits[0].values() if A.ndim == 3]
    assert len(stacks) == 4 and all(A.shape[:2] == (4, 2) for A in stacks)


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_of_computing_experts_reads_the_pair(experts: str) -> None:
    """Attaching changes no output, and a state_dict at any moment computes what the model does."""
    dtype = torch.float32 if experts == "grouped_mm" else torch.float64
    model, plain = mixture("gpt_oss", experts, dtype), mixture("gpt_oss", experts, dtype)
    keys, ids = list(model.state_dict()), sentences(1)[0]
    before = model(input_ids=ids).logits
    optimizer = boosted(model, kappa=4)
    assert torch.equal(model(input_ids=ids).logits, before)
    frozen = {n: p.clone() for n, p in model.named_parameters() if "experts" in n}
    train(model, optimizer, sentences(3))
    assert all(torch.equal(frozen[n], dict(model.named_parameters())[n]) for n in frozen)
    assert list(model.state_dict()) == keys
    plain.load_state_dict(model.state_dict())
    now = model(input_ids=ids).logits
    assert not torch.allclose(now, before)
    assert torch.allclose(plain(input_ids=ids).logits, now, atol=1e-5)
    optimizer.finalize()
    assert torch.allclose(model(input_ids=ids).logits, now, atol=1e-5)
    assert list(model.state_dict()) == keys
    assert all(p.requires_grad for p in model.parameters())
    assert not any("experts" in name for m in model.modules() for name in vars(m) if "proj" in name)


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float64, {"r": [2, 1], "carry": 0.5}),
        (torch.float64, {"init": "gradient", "kappa": 3}),
        (torch.bfloat16, {}),
        (torch.bfloat16, {"merge_precision": "stochastic"}),
    ],
    ids=["carry", "gradient", "residual", "stochastic"],
)
def test_resumes_bitwise(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    """From the middle of a booster, residuals of stacks included."""
    data = sentences(7)
    model = mixture(dtype=dtype)
    optimizer = boosted(model, **settings)
    train(model, optimizer, data[:3])
    weights, state = written(model.state_dict(), optimizer.state_dict())
    again = mixture(dtype=dtype, seed=1)
    again.load_state_dict(weights)
    resumed = boosted(again, **settings)
    resumed.load_state_dict(state)
    twin, copied = copy.deepcopy((model, optimizer))
    losses = train(model, optimizer, data[3:])
    assert train(again, resumed, data[3:]) == losses
    assert train(twin, copied, data[3:]) == losses
    merged = optimizer.finalize().state_dict()
    for other in (resumed, copied):
        for name, weight in other.finalize().state_dict().items():
            assert torch.equal(weight, merged[name]), name


def test_a_copy_and_a_released_model_hold_the_pair() -> None:
    model = mixture()
    optimizer = boosted(model)
    train(model, optimizer, sentences(3))
    ids = sentences(1)[0]
    now = model(input_ids=ids).logits
    plain = release(copy.deepcopy(model))
    assert torch.allclose(plain(input_ids=ids).logits, now, atol=1e-12)
    assert not any(m._forward_hooks_always_called for m in plain.modules())
    with optimizer.boosting.folded_in():
        assert torch.allclose(model(input_ids=ids).logits, now, atol=1e-12)


def test_computed_again_in_backward() -> None:
    """The stand-in is there whenever the forward runs, and gone when it raises."""
    losses = []
    for checkpointing in (False, True):
        model = mixture()
        losses.append(train(model, boosted(model, checkpointing=checkpointing), sentences(3)))
    assert losses[0] == losses[1]
    experts = model.model.layers[0].mlp.experts
    with pytest.raises(TypeError):
        experts(None)
    assert "down_proj" not in vars(experts)


def pull(model: nn.Module, optimizer: BoostedLowRankOptimizer, steps: int, call: Any = None) -> Any:
    x = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        (model if call is None else call)(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model(x)


NAMES = r".*(in_proj_weight|\d\.weight)"


def test_matrices_of_any_module() -> None:
    """in_proj_weight, and a weight that a block keeps itself; trained, and merged exactly."""
    model = Mixed().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = boosted(model, kappa=None, r=1, target_parameters=NAMES)
    assert set(optimizer.targets.values()) == {"blocks.0", "blocks.1"}
    now = pull(model, optimizer, 2)
    optimizer.finalize()
    assert torch.allclose(pull(model, optimizer, 0), now, atol=1e-12)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {
        f"blocks.{i}.{name}"
        for i in range(2)
        for name in ("attention.in_proj_weight", "up.weight", "weight")
    }
    for name in ("blocks.0.weight", "blocks.1.attention.in_proj_weight"):
        change = model.get_parameter(name) - before[name]
        assert torch.linalg.matrix_rank(change, rtol=1e-6) == 1


def test_compiled() -> None:
    """Boosters come and go under a compiler, which sees no side effect of theirs."""
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Mixed().double()
        call = torch.compile(model, backend="eager") if compiled else None
        optimizer = boosted(model, layers_per_booster=1, r=1, target_parameters=NAMES)
        pull(model, optimizer, 5, call)
        weights.append(optimizer.finalize().state_dict())
    for name, weight in weights[0].items():
        assert torch.allclose(weights[1][name], weight, rtol=0, atol=1e-12), name


def test_an_expert_without_tokens_stays() -> None:
    """Its gradient is zero, and not missing."""
    model = mixture()
    router = model.model.layers[0].mlp.gate
    router.weight.data[3] = 0
    router.weight.data[:3] = router.weight.data[:3].abs() + 5
    router.weight.data[3] = -100 * torch.ones_like(router.weight[3])
    model.model.layers[0].post_attention_layernorm.register_forward_hook(lambda m, a, y: y.abs())
    optimizer = boosted(model, layers_per_booster=None, r=1, target_modules=[])
    train(model, optimizer, sentences(2)[:1])
    name = "model.layers.0.mlp.experts.down_proj"
    _, B = optimizer.active_factors[name]
    assert not B[3].any() and all(B[e].any() for e in range(3))


def test_who_reads_experts_besides_is_told() -> None:
    model = mixture()
    optimizer = boosted(model)
    loss = loss_of(model, sentences(1)[0])
    experts = model.get_submodule(optimizer.active_layers[0]).mlp.experts
    (loss + experts.down_proj.square().mean()).backward()
    with pytest.raises(RuntimeError, match=r"depends on the weights of '.*experts\.down_proj'"):
        optimizer.step()


def test_experts_left_out_are_named_once() -> None:
    """By default only what is linear is trained; whoever says all-linear hears of the rest."""
    with pytest.warns(UserWarning, match=r"6 Parameters .* stay frozen.*experts\.down_proj"):
        BoostedLowRankOptimizer(AdamW, mixture(), lr=0.1).finalize()
    BoostedLowRankOptimizer(AdamW, mixture(), lr=0.1, target_modules=["q_proj"]).finalize()
    boosted(mixture(), target_parameters=[]).finalize()


@pytest.mark.parametrize(
    ("error", "settings", "words"),
    [
        (ValueError, {"target_parameters": ["nowhere"]}, "end in: experts.gate_up_proj"),
        (TypeError, {"target_parameters": 3}, "target_parameters must be a string or a list"),
        (ValueError, {"target_parameters": ["norm.weight"]}, r"shape \(16,\)"),
        (ValueError, {"target_parameters": ["q_proj.weight"]}, "through target_modules already"),
        (ValueError, {"adapter": "direft"}, "goes with adapter='lora'"),
        (ValueError, {"lora_dropout": 0.1}, "and lora_dropout=0"),
        (ValueError, {"r": 17, "target_modules": []}, r"smaller side.*experts"),
        (ValueError, {"exclude_modules": ".*", "target_modules": []}, "no module matches"),
    ],
)
def test_what_cannot_be_is_refused(
    error: type[Exception], settings: dict[str, Any], words: str
) -> None:
    model = mixture()
    with pytest.raises(error, match=words):
        boosted(model, **settings)
    assert all(p.requires_grad for p in model.parameters())


def test_tied_and_scattered_stacks_are_refused() -> None:
    model = mixture()
    first, second = (layer.mlp.experts for layer in model.model.layers[:2])
    second.down_proj = first.down_proj
    with pytest.raises(ValueError, match="is tied to 'model.layers.1.mlp.experts.down_proj'"):
        boosted(model)
    second.down_proj = nn.Parameter(first.down_proj.detach().mT.contiguous().mT)
    with pytest.raises(ValueError, match="do not follow one another in memory"):
        boosted(model)


def test_an_entry_that_matches_nothing_is_named() -> None:
    with pytest.warns(UserWarning, match="'experts.nowhere' matches no Parameter"):
        boosted(mixture(), target_parameters=[*EXPERTS, "experts.nowhere"])
