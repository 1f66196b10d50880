"""The benchmark of quantised weights: its grids, and what each way of merging keeps."""

from typing import Any

import pytest
import torch

from benchmarks.methods.beside import WAYS, bfloat16, hold, tensors_of
from benchmarks.methods.grids import GRIDS, Grid, Update
from benchmarks.runs import quantised
from benchmarks.runs.quantised import Trained
from benchmarks.tables.precision import beside_table, quantised_table


def weight(rows: int = 64, columns: int = 128) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) / 50


def updates(count: int = 12) -> list[tuple[int, Update]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            t,
            (
                torch.randn(64, 1, generator=generator) / 6000,
                torch.rand(1, 128, generator=generator),
            ),
        )
        for t in range(count)
    ]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_a_grid_rounds_to_its_nearest_code(grid: Grid) -> None:
    W = weight()
    groups = W.reshape(-1, grid.group or W.shape[1])
    scale = groups.abs().amax(1, keepdim=True)
    nearest = (groups / scale)[..., None].sub(grid.codes).abs().argmin(-1)
    torch.testing.assert_close(grid.round(W), (grid.codes[nearest] * scale).view_as(W))
    torch.testing.assert_close(grid.round(grid.round(W)), grid.round(W))


def test_nf4_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    W = weight()
    theirs = functional.dequantize_4bit(
        *functional.quantize_4bit(W, quant_type="nf4", blocksize=64)
    )
    torch.testing.assert_close(GRIDS[0].round(W), theirs)


def test_rounding_at_random_is_right_on_average() -> None:
    W, chance = weight(2, 64), torch.Generator().manual_seed(0)
    for grid in GRIDS:
        mean = torch.stack([grid.round(W, chance) for _ in range(4000)]).mean(0)
        torch.testing.assert_close(mean, W, atol=2e-3, rtol=0)
        assert not torch.allclose(grid.round(W), W, atol=1e-4)


def test_each_way_keeps_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requantising forgets, what stands beside does not; a residual costs 16 bits."""
    trained = Trained(torch.nn.Identity(), {"w": weight()}, {"w": updates()})
    monkeypatch.setattr(quantised, "evaluate", lambda *_: (0.0, 0.0))
    lab: Any = None
    rows = {(r["grid"], r["way"]): r for r in quantised.records(lab, trained)}
    kept = {key: row["retained"] for key, row in rows.items()}
    assert kept["float32", "merged"] == pytest.approx(1, abs=1e-5)
    assert kept["NF4", "not trained"] == 0
    assert kept["NF4", "requantised"] < 0.5 < kept["NF4", "quantised at the end"]
    assert kept["NF4", "beside, rank 8"] > 0.9
    assert rows["NF4", "requantised"]["bits"] == 4.5
    assert rows["NF4", "with a residual"]["bits"] == 20.5
    assert "int8, requantised" in quantised_table([{"lr": 0.1, **row} for row in rows.values()])


def test_what_is_trained_beside_a_base_is_counted_and_laid_out() -> None:
    model = torch.nn.ModuleDict({"up": torch.nn.Linear(4, 8), "classifier": torch.nn.Linear(8, 2)})
    kept = tensors_of(hold(model, bfloat16))
    assert [(tuple(t.shape), t.dtype) for t in kept] == [((8, 4), torch.bfloat16)]
    assert model["classifier"].weight.dtype == torch.float32
    figures = {"lr": 1e-3, "base": 5e6, "beside": 1e6, "loss": 0.5, "lost": None}
    rows = [{"way": w.name, "score": s, **figures} for w in WAYS for s in (0.25, 0.75)]
    table = beside_table(rows)
    assert all(way.name in table for way in WAYS)
    assert table.count("0.250 0.750") == len(WAYS) and "5.0" in table
