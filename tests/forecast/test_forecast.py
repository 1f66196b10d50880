"""A plan: counted against real modules, measured against a real step, and its limits said."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import AdamW
from transformers import (
    BartConfig,
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    WhisperConfig,
)

import tiny
from benchmarks.measures import cost
from benchmarks.measures.memory import peak_memory
from torch_xgb import BoostedLowRankOptimizer, plan
from torch_xgb.__main__ import main
from torch_xgb.forecast.needs import Forecast
from torch_xgb.forecast.shapes import fake_model

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


@cache
def two_of_six(checkpointing: bool = False) -> Forecast:
    """A plan of boosters on two of six blocks, made once for all tests."""
    return plan(config(), layers_per_booster=2, checkpointing=checkpointing, **F32)


def test_counts_are_those_of_the_real_model() -> None:
    model = LlamaForCausalLM(config())
    forecast = two_of_six()
    optimizer = BoostedLowRankOptimizer(AdamW, model, layers_per_booster=2, lr=1e-3)
    ours, _, full = forecast.needs
    assert (
        forecast.parameters
        == full.trained
        == sum(p.numel() for p in LlamaForCausalLM(config()).parameters())
    )
    assert ours.trained == sum(p.numel() for p in optimizer.param_groups[0]["params"])
    assert (forecast.blocks, forecast.targets) == (6, len(optimizer.targets))


def test_as_many_blocks_are_drawn_as_by_the_optimizer() -> None:
    model = LlamaForCausalLM(config(9))
    drawn = len(BoostedLowRankOptimizer(AdamW, model, lr=1e-3).active_layers)
    assert plan(config(9), length=8).drawn == drawn < 9
    assert plan(config(9), length=8, layers_per_booster=None).drawn == 9


def test_flops_and_saved_bytes_are_those_of_the_worst_and_mean_draw() -> None:
    model, ids = LlamaForCausalLM(config()).train(), torch.zeros(4, 128, dtype=torch.int64)
    ours, _, full = two_of_six().needs
    worst = cost.boosted_cost(model, ids, [0, 1])
    least = cost.boosted_cost(model, ids, [4, 5])
    mean = 7 / 3 - 1  # the mean lowest of 2 of 6
    flops = worst.flops + (least.flops - worst.flops) * mean / 4
    assert ours.flops == pytest.approx(flops, rel=1e-6)
    assert full.flops == pytest.approx(cost.cost(model.requires_grad_(), ids).flops, rel=1e-6)
    # What is held beside what autograd saves: the loss and the batch's masks.
    assert ours.saved == pytest.approx(worst.saved, rel=0.03)


@pytest.mark.long
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
    ours, _, full = two_of_six(checkpointing).needs
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


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.stack(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).square().mean()


def test_any_module_with_its_inputs() -> None:
    model = Squares()
    model.requires_grad_(True)
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


def test_batch_and_length_are_those_of_the_inputs() -> None:
    model = LlamaForCausalLM(config(2))
    ids = torch.zeros(4, 32, dtype=torch.int64)
    given = plan(model, inputs={"input_ids": ids, "labels": ids}, card=1.0)
    asked = plan(model, batch=4, length=32, card=1.0)
    assert (given.batch, given.length) == (4, 32)
    assert [given.largest_batch(n) for n in given.needs] == [
        asked.largest_batch(n) for n in asked.needs
    ]
    x = torch.randn(3, 5, tiny.INPUTS).double()
    forecast = plan(Squares(), inputs={"x": x}, lora_r=2)
    assert "batch of 3" in str(forecast) and "tokens" not in str(forecast)


@pytest.mark.parametrize("name", ["r", "lora_r", "card"])
@pytest.mark.parametrize("value", [0, -3, float("nan")])
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(
        TypeError if name != "card" and value != value else ValueError, match=f"{name} must be"
    ):
        plan(config(2), **{name: value})  # type: ignore[arg-type]


def test_devices_of_the_residual() -> None:
    size = plan(config(2), length=8).needs[0].residual
    assert plan(config(2), length=8, residual_device="cuda").needs[0].residual == size
    with pytest.raises(ValueError, match="residual_device"):
        plan(config(2), residual_device="gpuu")


def test_a_residual_that_is_asked_for_is_kept_of_float32_too() -> None:
    model = LlamaForCausalLM(config(2))
    optimizer = BoostedLowRankOptimizer(
        AdamW, model, kappa=1, lr=1e-2, layers_per_booster=None, merge_precision="residual"
    )
    ids = torch.randint(512, (2, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    kept = sum(
        E.numel() * E.element_size() for E in optimizer.boosting._turns.merger.residuals.values()
    )
    planned = plan(config(2), length=8, dtype=torch.float32, merge_precision="residual")
    assert planned.needs[0].residual == kept > 0


def test_experts_products_are_counted() -> None:
    sizes = {**CONFIG, "num_key_value_heads": 4, "num_local_experts": 4}
    flops = {}
    for experts in (1, 2):
        mixtral = MixtralConfig(**sizes, num_experts_per_tok=experts, use_cache=False)
        planned = plan(mixtral, batch=1, length=16, target_parameters=[])
        flops[experts] = planned.needs[-1].flops
    more = (
        6
        * 16
        * 3
        * CONFIG["hidden_size"]
        * CONFIG["intermediate_size"]
        * CONFIG["num_hidden_layers"]
    )  # forward and backward of an expert's three maps, for every token and block
    assert flops[2] - flops[1] == pytest.approx(more, rel=0.02)


def test_experts_are_held_once_for_each_drawn_block() -> None:
    sizes = {**CONFIG, "num_key_value_heads": 4, "num_local_experts": 4, "num_hidden_layers": 3}
    names = ["experts.gate_up_proj", "experts.down_proj"]
    held = {}
    for drawn in (1, 2):
        config = MixtralConfig(**sizes, use_cache=False)
        settings = {"layers_per_booster": drawn, "target_parameters": names}
        need = plan(config, length=16, target_modules=[], **settings).needs[0]
        held[drawn] = need.saved
        pair = 4 * (2 * CONFIG["intermediate_size"] + 2 * CONFIG["hidden_size"])
        pair += 4 * CONFIG["intermediate_size"]
        assert need.trained == drawn * pair
    stacks = 3 * 4 * CONFIG["hidden_size"] * CONFIG["intermediate_size"]
    assert held[2] - held[1] == pytest.approx(2 * stacks, rel=0.1)


def test_models_that_a_plan_cannot_make_inputs_for() -> None:
    with pytest.raises(ValueError, match="BertForQuestionAnswering.*inputs="):
        plan(BertConfig(architectures=["BertForQuestionAnswering"]))
    with pytest.raises(ValueError, match="cannot be run without weights.*inputs="):
        plan(WhisperConfig(architectures=["WhisperForConditionalGeneration"], **WHISPER))
    assert plan(BartConfig(**BART), length=8).blocks == 4  # of both stacks


def test_an_encoder_without_a_head_is_planned_as_a_classifier() -> None:
    bare, headed = (
        plan(BertConfig(**CONFIG, architectures=[name]), length=16)
        for name in ("BertModel", "BertForSequenceClassification")
    )
    assert bare == headed


BART = {
    "architectures": ["BartForConditionalGeneration"],
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 40,
}
WHISPER = {key: value for key, value in BART.items() if key != "architectures"} | {
    "pad_token_id": 0
}


def test_positions_are_the_models_own() -> None:
    assert plan("roberta-base", length=512).length == 512
    with pytest.raises(ValueError, match="512 positions"):
        plan("roberta-base", length=513)
    with pytest.raises(ValueError, match="2048 positions"):
        plan("llama-7b", length=4096)


def test_a_damaged_ledger_is_said(tmp_path: Path) -> None:
    (tmp_path / "chain.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="no part of a ledger, or damaged"):
        main(["plot", str(tmp_path / "chain.safetensors")])
