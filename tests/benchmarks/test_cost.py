"""What a step computes and keeps. Everything is counted, so the bounds are exact on any machine.

FLOPs and saved bytes per token do not depend on how many tokens there are, so a batch of 1 x 16 has
the ratios of the 4 x 256 of ``python -m benchmarks.cost``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW

import tiny
from benchmarks import cost as command
from benchmarks.measures import cost
from benchmarks.measures.allocations import METHODS, allocations
from benchmarks.measures.cost import Cost
from benchmarks.measures.flops import count_flops
from benchmarks.subjects.llama import Size
from torch_xgb import BoostedLowRankOptimizer

DRAWN = 4
# The mean lowest of 4 of 12 blocks, counted from 0: over all draws, and over all windows.
UNIFORM, WINDOW = 13 / 5 - 1, (0 + 8) / 2
SMALL = Size(batch=1, tokens=16)
TINY = Size(blocks=3, hidden=16, intermediate=24, heads=2, vocabulary=32, batch=1, tokens=8)


@dataclass(frozen=True)
class Counted:
    """Costs of the benchmark's model; of boosters and limits by their lowest block."""

    forward: Cost
    lora: Cost
    boosters: Mapping[int, Cost]
    limits: Mapping[int, Cost]

    def mean(self, costs: Mapping[int, Cost], field: str, lowest: float) -> float:
        """The cost at a mean lowest block: it is linear in the lowest one."""
        first, last = (getattr(costs[i], field) for i in (0, SMALL.blocks - DRAWN))
        return first + (last - first) * lowest / (SMALL.blocks - DRAWN)


@pytest.fixture(scope="module")
def counted() -> Counted:
    model, ids = SMALL.model(), SMALL.ids()
    lowest = (0, 3, SMALL.blocks - DRAWN)
    return Counted(
        cost.cost(model, ids, backward=False),
        cost.lora_cost(model, ids, 8),
        {i: cost.boosted_cost(model, ids, range(i, i + DRAWN)) for i in lowest},
        {i: cost.limit_cost(model, ids, i) for i in lowest},
    )


@pytest.mark.parametrize("field", ["weights", "attention", "saved"])
def test_cost_is_linear_in_the_lowest_block(counted: Counted, field: str) -> None:
    for costs in (counted.boosters, counted.limits):
        assert getattr(costs[3], field) == pytest.approx(counted.mean(costs, field, 3), rel=1e-9)


def test_mean_flops_over_all_draws(counted: Counted) -> None:
    unit = counted.forward.weights
    assert counted.lora.weights / unit == pytest.approx(2.05, abs=0.005)
    assert counted.mean(counted.boosters, "weights", UNIFORM) / unit <= 1.858
    assert counted.mean(counted.boosters, "weights", WINDOW) / unit <= 1.67


def test_no_draw_computes_more_than_its_limit(counted: Counted) -> None:
    for lowest, booster in counted.boosters.items():
        assert booster.weights < counted.limits[lowest].weights
        assert booster.attention == counted.limits[lowest].attention


def test_mean_saved_bytes_over_all_draws(counted: Counted) -> None:
    saved = counted.mean(counted.boosters, "saved", UNIFORM)
    assert saved <= 0.74 * counted.lora.saved
    assert saved * (4 * 256) / (SMALL.batch * SMALL.tokens) <= 352 * 2**20


def test_drawn_blocks_keep_their_maps_inputs_and_no_more(counted: Counted) -> None:
    # Inputs of query/key/value, of gate/up and of down; the attention saves that of its output map.
    # Beside them x Aᵀ, one number a token and map, in seven maps.
    tokens = SMALL.batch * SMALL.tokens
    inputs = 4 * tokens * (2 * SMALL.hidden + SMALL.intermediate)
    products = 4 * tokens * 7
    for lowest, booster in counted.boosters.items():
        assert booster.saved - counted.limits[lowest].saved <= DRAWN * (inputs + products)


def test_frozen_forward_saves_nothing(counted: Counted) -> None:
    assert counted.forward.saved == 0


def test_counter_sees_what_torchs_own_does_not() -> None:
    y, a, b = torch.zeros(5, 7), torch.zeros(5, 2), torch.zeros(2, 7)
    assert count_flops(lambda: y.addmm_(a, b)) == {"aten.addmm_": 2 * 5 * 2 * 7}
    assert count_flops(lambda: y.addcmul_(a[:, :1], b[:1])) == {"aten.addcmul_": 2 * 5 * 7}
    assert count_flops(lambda: a[:, :1] * b[0])["aten.mul"] == 2 * 5 * 7
    assert not count_flops(lambda: y * b[0] * 2)["aten.mul"]
    eager = Size(**{**vars(TINY), "attention": "eager"})
    forward = [cost.cost(size.model(), size.ids(), backward=False) for size in (TINY, eager)]
    assert forward[0].attention == forward[1].attention > 0
    assert forward[0].weights == forward[1].weights


def test_saved_bytes_count_a_storage_once_and_no_parameter() -> None:
    linear = torch.nn.Linear(8, 8)
    x = torch.ones(4, 8, requires_grad=True)
    z = x * 1

    def run() -> torch.Tensor:
        return linear(z) + linear(z[:2]).sum()

    assert cost.count_saved(linear, run) == z.numel() * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drawn_map_allocates_no_full_size_temporaries(dtype: torch.dtype) -> None:
    large = {}
    for name, prepare in METHODS.items():
        root = nn.Sequential(nn.Linear(256, 512, dtype=dtype)).requires_grad_(False)
        held = prepare(root)
        forward, backward = allocations(root[0], torch.randn(4, 256, 256, dtype=dtype))
        row = 4 * 256 * dtype.itemsize  # bytes of one feature
        large[name] = (
            sum(size >= row * 512 / 2 for size in forward),
            sum(size >= row * 256 / 2 for size in backward),
        )
        del held
    forward, backward = large["frozen"]  # some processors' kernels take scratch of their own
    # In backward the pair's share goes into the map's own gradient of the input.
    assert large["torch_xgb r=1"] == (forward, backward)
    assert all(a > b for a, b in zip(large["PEFT LoRA r=1"], large["torch_xgb r=1"], strict=True))


def test_undrawn_modules_carry_no_forward_hook() -> None:
    model = tiny.stack(4, dtype=torch.float32)
    optimizer = BoostedLowRankOptimizer(AdamW, model, layers_per_booster=2, lr=1e-3)
    for _ in range(3):
        hooked = {n for n in optimizer.targets if model.get_submodule(n)._forward_hooks}
        assert hooked == set(optimizer.active_factors)
        assert {optimizer.targets[name] for name in hooked} == set(optimizer.active_layers)
        optimizer.merge()


def test_command_prints_every_row_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Size", lambda attention: TINY)
    command.main(["--drawn", "1", "--draws", "20", "--json", str(tmp_path / "a" / "cost.json")])
    written = json.loads((tmp_path / "a" / "cost.json").read_text())
    printed = capsys.readouterr().out
    assert {"torch_xgb r=1, window", "PEFT LoRA r=8"} < written["rows"].keys()
    assert all(name in printed for name in written["rows"])
    assert written["torch"] == torch.__version__ and written["seed"] == 0
