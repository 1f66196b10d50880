"""The parts of the DeepSpeed integration that need no engine: the JSON, the limits, overflow."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch_xgb.integrations.zero.client import Client
from torch_xgb.integrations.zero.configuration import NAME, from_json
from torch_xgb.integrations.zero.limits import refuse

from quantised import quantised_stack
from tiny import batches, stack
from torch_xgb import BoostedLowRankOptimizer


def test_json_takes_every_argument() -> None:
    optimizer = from_json(
        stack(dtype=torch.float32),
        {"base": "SGD", "r": 2, "kappa": [3, 5], "layers_per_booster": None, "lr": 0.1},
    )
    assert type(optimizer.base) is SGD
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(optimizer.active_layers) == 3


def test_json_defaults_to_adamw_and_makes_tuples() -> None:
    optimizer = from_json(stack(dtype=torch.float32), {"lr": 0.1, "betas": [0.8, 0.9]})
    assert type(optimizer.base) is AdamW
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("stage", range(4))
def test_the_examples_configurations(stage: int) -> None:
    folder = Path(__file__).resolve().parents[2] / "examples" / "deepspeed"
    config = json.loads((folder / f"zero{stage}.json").read_text(encoding="utf-8"))
    assert config["zero_optimization"]["stage"] == stage
    assert config["optimizer"]["type"] == NAME
    assert from_json(stack(dtype=torch.float32), config["optimizer"]["params"]).booster_index == 0


def test_json_base_by_dotted_path() -> None:
    optimizer = from_json(stack(dtype=torch.float32), {"base": "torch.optim.sgd.SGD", "lr": 0.1})
    assert type(optimizer.base) is SGD


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"kapa": 8, "lr": 0.1}, "'kapa'.*Known are base, r, kappa.*for AdamW, lr, betas"),
        ({"max_grad_norm": 1.0}, "gradient_clipping"),
        ({"torch_adam": True}, "torch.optim's already"),
        ({"base": "Adamm"}, "torch.optim.*'Adamm'"),
        ({"base": "Optimizer"}, "torch.optim"),
        ({"base": "no.such.Class"}, "dotted path"),
        ({"base": 3}, "dotted path"),
        ({"kappa": "auto"}, 'kappa is still "auto"'),
        ({"lr": "auto"}, 'lr is still "auto"'),
    ],
)
def test_json_errors(params: dict[str, Any], says: str) -> None:
    model = stack(dtype=torch.float32)
    with pytest.raises(ValueError, match=says):
        from_json(model, params)
    assert not any(module._forward_hooks for module in model.modules())


def engine(model: nn.Module, **differing: Any) -> Any:
    """What the integration asks of an engine, in one process without ZeRO."""
    answers = {
        "zero_optimization": False,
        "zero_optimization_partition_weights": False,
        "fp16_enabled": False,
        "torch_autocast_enabled": False,
        "torch_autocast_dtype": torch.float16,
        "autotp_size": 1,
        "gradient_clipping": 0.0,
        "_get_optimizer_loss_scale": 4.0,
        "zero_offload_param": None,
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
        "zero_quantized_nontrainable_weights": False,
    }
    facts = {
        "module": model,
        "pipeline_parallelism": False,
        "has_moe_layers": False,
        "sequence_parallel_size": 1,
        "zenflow": False,
        "gradient_average": True,
        "device": torch.device("cpu"),
        "seq_data_parallel_group": None,
        "optimizer": SimpleNamespace(_global_grad_norm=0.0, clip_grad=1.0),
    }
    for name, answer in answers.items():
        facts[name] = partial(_same, differing.pop(name, answer))
    return SimpleNamespace(**{**facts, **differing})


def _same(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("differing", "says"),
    [
        ({"pipeline_parallelism": True}, "pipeline"),
        ({"has_moe_layers": True}, "expert"),
        ({"autotp_size": 2}, "tensor parallelism"),
        ({"sequence_parallel_size": 2}, "sequence"),
        ({"gradient_average": False}, "gradient_allreduce_op"),
        ({"fp16_enabled": True}, "fp16 without ZeRO"),
        ({"torch_autocast_enabled": True}, "torch_autocast"),
    ]
    + [
        ({"zero_optimization_partition_weights": True, name: value}, says)
        for name, value, says in [
            ("zero_hpz_partition_size", 2, "hpz"),
            ("zero_quantized_weights", True, "zero_quantized_weights"),
            ("zero_quantized_nontrainable_weights", True, "nontrainable"),
            ("zero_offload_param", SimpleNamespace(device="nvme"), "NVMe"),
        ]
    ],
)
def test_limits_are_said(differing: dict[str, Any], says: str) -> None:
    model = stack(dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=0.1)
    refuse(engine(model), optimizer)
    with pytest.raises(ValueError, match=says):
        refuse(engine(model, **differing), optimizer)


def test_quantised_weights_are_a_limit() -> None:
    model = quantised_stack(dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=0.1)
    with pytest.raises(ValueError, match="quantised weights"):
        refuse(engine(model), optimizer)


def test_limit_ledger_under_zero3() -> None:
    model = stack(dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=0.1, record=True)
    refuse(engine(model), optimizer)
    with pytest.raises(ValueError, match="record="):
        refuse(engine(model, zero_optimization_partition_weights=True), optimizer)


def test_limit_another_model() -> None:
    optimizer = BoostedLowRankOptimizer(AdamW, stack(dtype=torch.float32), lr=0.1)
    with pytest.raises(ValueError, match="another model"):
        refuse(engine(stack(dtype=torch.float32)), optimizer)


@pytest.fixture
def one_process(tmp_path: Any) -> Any:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def scaled_backward(model: nn.Module, scale: float) -> None:
    x, y = batches(1, torch.float32)[0]
    (nn.functional.cross_entropy(model(x), y) * scale).backward()


def test_overflow_of_the_factors_alone_is_seen_and_does_not_count(one_process: None) -> None:
    """fp16's loss scale, which no CPU runs: the Client against an engine that answers as one."""
    model = stack(dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, kappa=3, layers_per_booster=2, lr=0.1)
    fp16 = engine(model, fp16_enabled=True, zero_optimization=True, gradient_clipping=1.0)
    client = Client(optimizer, fp16)
    scaled_backward(model, 4.0)
    optimizer.boosting.lent[0].grad.fill_(float("inf"))
    before = [factor.detach().clone() for factor in optimizer.boosting.factors]
    client.begin()
    assert client.overflowed  # what makes DeepSpeed skip the step and lower the scale
    client.end(applied=False)
    assert optimizer.booster_step == 0
    assert all(map(torch.equal, before, optimizer.boosting.factors))
    assert all(factor.grad is None for factor in optimizer.boosting.factors)

    scaled_backward(model, 4.0)
    expected = optimizer.boosting.lent[1].grad / 4
    client.begin()
    assert not client.overflowed
    assert torch.equal(optimizer.boosting.lent[1].grad, expected)
    assert fp16.optimizer.clip_grad == 0
    client.step()
    client.end(applied=True)
    assert optimizer.booster_step == 1


def test_not_finite_is_an_error_before_anything_changes(one_process: None) -> None:
    model = stack(dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=0.1)
    client = Client(optimizer, engine(model))
    scaled_backward(model, float("inf"))
    with pytest.raises(RuntimeError, match="not finite"):
        client.begin()


def test_a_dry_run_of_deepspeed_is_no_step(one_process: None) -> None:
    model = stack(dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=0.1, modules_to_save=["head"])
    client = Client(optimizer, engine(model))
    before = model.head.weight.detach().clone()
    model.head.weight.grad = torch.ones_like(before)
    client.step()
    assert torch.equal(before, model.head.weight)
    assert not client.state


@pytest.mark.parametrize("base", [torch.optim.Adagrad, torch.optim.Adam, SGD])
def test_heads_are_trained_as_the_base_does(one_process: None, base: Any) -> None:
    """On flat partitions that did not exist when the base made its state."""
    model, twin = (stack(dtype=torch.float32) for _ in range(2))
    optimizer = BoostedLowRankOptimizer(base, model, lr=0.1, modules_to_save=["head"])
    client = Client(optimizer, engine(model))
    flat = nn.Parameter(model.head.weight.detach().flatten())
    client.param_groups[1]["params"] = [flat]
    plain = base(twin.head.parameters(), lr=0.1)
    for value in (1.0, 0.5):
        flat.grad = torch.full_like(flat, value)
        for p in twin.head.parameters():
            p.grad = torch.full_like(p, value)
        scaled_backward(model, 1.0)
        client.begin()
        client.step()
        client.end(applied=True)
        plain.step()
    assert torch.equal(flat.view_as(twin.head.weight), twin.head.weight)


def test_schedulers_may_write_to_either_side(one_process: None) -> None:
    model = stack(dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=0.1, modules_to_save=["head"])
    client = Client(optimizer, engine(model))
    client.param_groups[0]["lr"] = 0.2
    optimizer.param_groups[1]["lr"] = 0.3
    client.state_dict()
    assert [group["lr"] for group in client.param_groups] == [0.2, 0.3]
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.3]


def test_another_optimizers_checkpoint(one_process: None) -> None:
    model = stack(dtype=torch.float32)
    client = Client(BoostedLowRankOptimizer(AdamW, model, lr=0.1), engine(model))
    with pytest.raises(ValueError, match="load_module_only"):
        client.load_state_dict({"state": {}, "param_groups": []})


def test_nothing_to_borrow(one_process: None) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    optimizer = BoostedLowRankOptimizer(AdamW, model, lr=0.1)
    with pytest.raises(ValueError, match="exclude_modules"):
        Client(optimizer, engine(model))


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("save_checkpoint", {"save_dir": "out"}),
        ("save_16bit_model", {"save_dir": "out"}),
        ("module_state_dict", {}),
        ("_zero3_consolidated_16bit_state_dict", {}),
    ],
)
def test_saving_without_what_is_frozen_is_refused(method: str, given: dict[str, Any]) -> None:
    pytest.importorskip("torch_xgb.integrations.deepspeed", reason="an extra of its own")
    from deepspeed.runtime.engine import DeepSpeedEngine

    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])
    optimizer = BoostedLowRankOptimizer(torch.optim.SGD, model, lr=0.1)
    engine = SimpleNamespace(_boosted_client=SimpleNamespace(optimizer=optimizer))
    with pytest.raises(ValueError, match="exclude_frozen_parameters=True would leave out"):
        getattr(DeepSpeedEngine, method)(engine, **given, exclude_frozen_parameters=True)
