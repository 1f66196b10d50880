"""A plan: counted against real modules, measured against a real step, and its limits said."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from benchmarks import cost
from benchmarks.memory import peak_memory
from torch_xgb import BoostedLowRankOptimizer, plan
from torch_xgb.__main__ import main
from torch_xgb.shapes import fake_model

CONFIG = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 512,
}
F32 = {"dtype": torch.float32, "batch": 4, "length": 128}


def config(blocks: int = 6) -> LlamaConfig:
    return LlamaConfig(**{**CONFIG, "num_hidden_layers": blocks}, use_cache=False)


def test_counts_are_those_of_the_real_model() -> None:
    model = LlamaForCausalLM(config())
    forecast = plan(config(), layers_per_booster=2, **F32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, layers_per_booster=2, lr=1e-3)
    ours, _, full = forecast.needs
    assert (
        forecast.parameters
        == full.trained
        == sum(p.numel() for p in LlamaForCausalLM(config()).parameters())
    )
    assert ours.trained == sum(p.numel() for p in optimizer.param_groups[0]["params"])
    assert (forecast.blocks, forecast.targets) == (6, len(optimizer.targets))


def test_flops_and_saved_bytes_are_those_of_the_worst_and_mean_draw() -> None:
    model, ids = LlamaForCausalLM(config()).train(), torch.zeros(4, 128, dtype=torch.int64)
    ours, _, full = plan(config(), layers_per_booster=2, **F32).needs
    worst = cost.boosted_cost(model, ids, [0, 1])
    least = cost.boosted_cost(model, ids, [4, 5])
    mean = 7 / 3 - 1  # the mean lowest of 2 of 6
    flops = worst.flops + (least.flops - worst.flops) * mean / 4
    assert ours.flops == pytest.approx(flops, rel=1e-6)
    assert full.flops == pytest.approx(cost.cost(model.requires_grad_(), ids).flops, rel=1e-6)
    # What is held beside what autograd saves: the loss and the batch's masks.
    assert ours.saved == pytest.approx(worst.saved, rel=0.03)


def test_a_truncated_model_tells_the_whole_ones_footprint() -> None:
    """Four blocks or fewer are run in full; six are extrapolated from two to four."""
    kwargs = dict(layers_per_booster=3, **F32)
    deep = [
        n.saved for n in plan(LlamaConfig(**{**CONFIG, "num_hidden_layers": 6}), **kwargs).needs
    ]
    mixed = LlamaForCausalLM(config())
    mixed.config.layer_types = ["full_attention", "other"] * 3  # unlike blocks: no extrapolation
    whole = [n.saved for n in plan(mixed, **kwargs).needs]
    assert deep == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("method", ["boosted", "checkpointed", "full"])
def test_peak_is_that_of_a_real_step(method: str) -> None:
    model, ids = LlamaForCausalLM(config()).train(), torch.zeros(4, 128, dtype=torch.int64)
    checkpointing = method == "checkpointed"
    ours, _, full = plan(config(), layers_per_booster=2, checkpointing=checkpointing, **F32).needs
    need = full if method == "full" else ours

    def run() -> None:
        if method != "full":
            optimizer: torch.optim.Optimizer = BoostedLowRankOptimizer(
                AdamW,
                model,
                layers_per_booster=2,
                layer_sampler=lambda *_: [0, 1],
                checkpointing=checkpointing,
                lr=1e-3,
            )
        else:
            optimizer = AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    measured = peak_memory(run, torch.device("cpu"))
    assert need.peak - need.weights == pytest.approx(measured, rel=0.1)


def test_checkpointing_needs_less_memory_and_more_flops() -> None:
    plain, less = (plan(config(2), checkpointing=c, **F32).needs[1] for c in (False, True))
    assert less.saved < plain.saved and less.flops > plain.flops


def test_residual_is_counted_where_it_lives() -> None:
    def ours(**kwargs: object) -> float:
        return plan(config(2), length=8, **kwargs).needs[0].residual  # type: ignore[arg-type]

    targets = sum(
        2 * p.numel() for n, p in LlamaForCausalLM(config(2)).named_parameters() if "_proj" in n
    )
    assert ours() == targets
    assert ours(merge_precision="residual", residual_device="cpu") == 0
    assert ours(dtype=torch.float32) == 0


def test_largest_batch_fits_and_a_few_more_do_not() -> None:
    card = 1.0
    largest = plan(config(2), card=card, **F32).largest_batch(plan(config(2), **F32).needs[0])
    assert largest is not None and largest > 4
    for batch, fits in ((largest, True), (largest + 3, False)):
        forecast = plan(config(2), card=card, **{**F32, "batch": batch})
        assert forecast.fits(forecast.needs[0]) is fits


def test_any_module_with_its_inputs() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny.stack(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).square().mean()

    model = Loss()
    before = {n: p.clone() for n, p in model.named_parameters()}
    forecast = plan(model, inputs={"x": torch.randn(2, 5, tiny.INPUTS).double()}, lora_r=2)
    assert forecast.blocks == 4 and forecast.needs[0].saved > 0
    assert all(torch.equal(p, before[n]) and p.requires_grad for n, p in model.named_parameters())
    with pytest.raises(ValueError, match="inputs="):
        plan(model)


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(ValueError, match="known model.*llama3-8b"):
        plan("no-such-model")
    with pytest.raises(ValueError, match="512 positions"):
        plan("bert-base", length=1024)
    with pytest.raises(ValueError, match="batch must be"):
        plan(config(), batch=0)


def test_command_plans_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**CONFIG, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    main(["plan", str(tmp_path), "--length", "64", "--card", "24", "--layers", "2"])
    printed = capsys.readouterr().out
    assert "42 targets in 6 blocks, 2 drawn" in printed and "fits 24 GiB" in printed
    with pytest.raises(SystemExit, match="known model"):
        main(["plan", "nothing"])


def test_published_shapes_have_the_published_sizes() -> None:
    sizes = {"llama3-8b": 8030261248, "mistral-7b": 7241732096, "llama-13b": 13015864320}
    for name, size in sizes.items():
        model = fake_model(name, torch.bfloat16, FakeTensorMode())
        assert sum(p.numel() for p in model.parameters()) == size
