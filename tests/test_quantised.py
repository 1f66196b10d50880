"""Boosters beside quantised weights, of a stand-in that is always there and of real packages."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.optim import SGD, AdamW

from quantised import QUANTISERS, Int8Linear, quantised_stack
from reference import boost
from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer, release
from training import train

KINDS = sorted(QUANTISERS)
SETTINGS: dict[str, Any] = {"kappa": 2, "layers_per_booster": 2, "lr": 0.02, "seed": 3}


def build(model: nn.Module, **settings: Any) -> BoostedLowRankOptimizer:
    return BoostedLowRankOptimizer(AdamW, model, **{**SETTINGS, **settings})


def make(kind: str = "stand-in") -> tuple[Stack, list[Any]]:
    """A model, and data of the dtype it computes in."""
    dtype = torch.float64 if kind == "stand-in" else torch.float32
    return quantised_stack(kind, dtype), batches(12, dtype)


def outputs(model: nn.Module, data: list[Any]) -> torch.Tensor:
    """In training, as bitsandbytes computes otherwise in evaluation."""
    return torch.cat([model.train()(x.clone().requires_grad_()).detach() for x, _ in data])


def dequantised(model: Stack) -> dict[str, torch.Tensor]:
    """The weights that a model of stand-ins computes with."""
    maps = {n: m for n, m in model.named_modules() if isinstance(m, Int8Linear)}
    factors = ("boosters", "accumulator")
    held = {n: p.detach().clone() for n, p in model.named_parameters()}
    held = {n: p for n, p in held.items() if not any(name in n for name in factors)}
    return {**held, **{f"{n}.weight": m.dequantised.clone() for n, m in maps.items()}}


@pytest.mark.parametrize("r", [1, 2])
def test_it_is_the_reference_on_dequantised_weights(r: int) -> None:
    model, data = make()
    optimizer = BoostedLowRankOptimizer(SGD, model, **SETTINGS, r=r, modules_to_save=["head"])
    W = dequantised(model)
    log = train(model, optimizer, data)
    trace = boost(
        W,
        data,
        init=log.init,
        optimizer=lambda group: SGD(group, lr=0.02),
        saved=["head.weight", "head.bias"],
        r=r,
        kappa=2,
        lora_alpha=16,
    )
    torch.testing.assert_close(log.losses, trace.losses, rtol=0, atol=1e-9)
    optimizer.finalize(dequantize=True)
    found = dict(model.named_parameters())
    assert found.keys() == W.keys()
    torch.testing.assert_close(found, dict(W), rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_from_attaching_to_the_adapter_that_peft_loads(kind: str, tmp_path: Path) -> None:
    """The base stays as it is, a merge keeps the function, and what is given out computes it."""
    model, data = make(kind)
    model.head.requires_grad_(True)
    base, start, keys = copy.deepcopy(model), outputs(model, data), list(model.state_dict())
    optimizer = build(model, modules_to_save=["head"])
    assert torch.equal(outputs(model, data), start)
    assert list(model.state_dict()) == keys
    merged = []
    optimizer.on_merge(lambda report: merged.append(report))
    assert len(optimizer.targets) == 18
    losses = train(model, optimizer, data[:11]).losses
    assert losses[-1] < losses[0] and len(merged) == 5
    assert all(report.update_norm and not report.dropped for report in merged)
    before = outputs(model, data)
    optimizer.save_adapter(tmp_path / "pending")
    optimizer.merge()
    torch.testing.assert_close(outputs(model, data), before, rtol=1e-5, atol=1e-6)
    optimizer.finalize()
    assert torch.equal(outputs(model, data), outputs(model, data))
    torch.testing.assert_close(outputs(model, data), before, rtol=1e-5, atol=1e-6)
    assert all(p.requires_grad for p in model.head.parameters())
    optimizer.save_adapter(tmp_path / "final")
    for folder in ("pending", "final"):
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / folder)
        torch.testing.assert_close(outputs(loaded, data), before, rtol=1e-5, atol=2e-6)
    optimizer.finalize(dequantize=True)
    assert all(type(m) is nn.Linear for n, m in model.named_modules() if n in optimizer.targets)
    assert list(model.state_dict()) == list(stack(3).state_dict())
    # Linear8bitLt rounds its input too, which a plain weight does not.
    torch.testing.assert_close(outputs(model, data), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 6])
def test_a_run_resumes_bitwise(kind: str, steps: int) -> None:
    """From the optimizer's state and the base it began with, in the middle of a booster or not."""
    model, data = make(kind)
    optimizer = build(model, accumulator_rank=3)  # recompressed on the way
    train(model, optimizer, data[:steps])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    train(model, optimizer, data[steps:])
    again, _ = make(kind)
    resumed = build(again, accumulator_rank=3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(again, resumed, data[steps:])
    assert torch.equal(outputs(optimizer.finalize(), data), outputs(resumed.finalize(), data))


def test_a_state_beside_another_base_is_refused() -> None:
    model, data = make()
    optimizer = build(model)
    train(model, optimizer, data[:3])
    other, _ = make()
    other.blocks[1].up.weight[0, 0] ^= 1
    fresh, start = build(other), outputs(other, data)
    with pytest.raises(RuntimeError, match=r"blocks\.1\.up\.weight.*base that the run began with"):
        fresh.load_state_dict(optimizer.state_dict())
    assert torch.equal(outputs(other, data), start)
    plain = stack(3)
    with pytest.raises(ValueError, match="plain"):
        build(make()[0]).load_state_dict(build(plain).state_dict())
    with pytest.raises(ValueError, match="quantised"):
        build(stack(3)).load_state_dict(build(make()[0]).state_dict())
    for part in ("bases", "sums"):  # as an earlier version saved it, without a seal, and damaged
        state = optimizer.state_dict()
        del state["booster"]["seal"]
        state["booster"]["beside"][part] = None
        with pytest.raises(ValueError, match="has nothing that was merged beside"):
            build(make()[0]).load_state_dict(state)


def test_settings_that_do_not_go_with_it_are_refused() -> None:
    for name, value in {
        "adapter": "direft",
        "bias": "targets",
        "carry": 0.5,
        "record": True,
        "accumulator_rank": 1,
    }.items():
        model, _ = make()
        with pytest.raises(ValueError, match=name):
            build(model, r=2, **{name: value})
        assert not any(m._forward_hooks for m in model.modules())
    model, _ = make()
    with pytest.raises(ValueError, match="modules_to_save.*quantised"):
        build(model, modules_to_save=["blocks.0.up"])
    with pytest.raises(RuntimeError, match="quantised models"):
        build(stack(2)).save_adapter("nowhere")


def test_a_state_dict_says_what_is_not_in_it(tmp_path: Path) -> None:
    """Once while the optimizer has it, always when nobody has, never when it is on the disk."""
    model, data = make()
    optimizer = build(model)
    keys = list(model.state_dict())  # nothing is trained yet
    train(model, optimizer, data[:1])
    with pytest.warns(UserWarning, match="optimizer.state_dict.*save_adapter"):
        assert list(model.state_dict()) == keys
    train(model, optimizer, data[:4])
    model.state_dict()
    twin = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="save_adapter"):
        release(twin).state_dict()
    optimizer.finalize()
    with pytest.raises(RuntimeError, match="would be lost"):
        model.state_dict()
    optimizer.save_adapter(tmp_path)
    assert list(model.state_dict()) == keys


def test_copies_compute_the_same_and_go_on() -> None:
    model, data = make()
    optimizer = build(model)
    train(model, optimizer, data[:3])  # one merged, one pending
    twin, (both, driver) = copy.deepcopy(model), copy.deepcopy((model, optimizer))
    expected = outputs(model, data)
    for copied in (twin, both, release(twin)):
        torch.testing.assert_close(outputs(copied, data), expected)
    train(model, optimizer, data[3:])
    train(both, driver, data[3:])
    assert torch.equal(outputs(model, data), outputs(both, data))


def test_nothing_is_left_of_a_run_that_trained_nothing() -> None:
    model, data = make()
    modules, start = list(model.modules()), outputs(model, data)
    optimizer = build(model)
    train(model, optimizer, data[:1])
    optimizer.finalize(discard=True)
    assert list(model.modules()) == modules
    assert not any(m._forward_hooks or m._state_dict_hooks for m in modules)
    assert torch.equal(outputs(model, data), start)


def test_another_run_goes_on_where_the_last_one_ended() -> None:
    model, data = make()
    first = build(model)
    train(model, first, data[:4])
    middle = outputs(first.finalize(), data)
    with pytest.raises(ValueError, match="accumulator_rank=6"):
        build(model, accumulator_rank=5)
    second = build(model, seed=4, accumulator_rank=32)
    assert torch.equal(outputs(model, data), middle)
    losses = train(model, second, data).losses
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_blocks_compute_the_same() -> None:
    model, data = make()
    optimizer = build(model)
    twin, _ = make()
    twin.blocks[2].compile(backend="eager")
    theirs = build(twin)
    ours = train(model, optimizer, data[:5]).losses
    torch.testing.assert_close(train(twin, theirs, data[:5]).losses, ours)


class Experts(nn.Module):
    """A stack of maps, as a mixture keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.ones(2, 3, 4), requires_grad=False)


def test_experts_beside_quantised_maps_are_told_what_can_be_done() -> None:
    """Not to name them in target_parameters, which is refused here."""
    model, _ = make()
    for block in model.blocks:
        block.experts = Experts()
    with pytest.warns(UserWarning, match=r"cannot be trained beside quantised.*plain weights"):
        build(model).finalize()
    build(model, target_parameters=[]).finalize()
