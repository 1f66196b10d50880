import json
from pathlib import Path

import pytest
import torch

from benchmarks import merge_precision
from benchmarks.measures.kept import kept
from benchmarks.methods.precision import FLOAT32, POLICIES, ROUNDED, VARIANTS, build
from benchmarks.runs.precision import Lab, Setting, synthetic, synthetic_records
from benchmarks.subjects.classification import Row, make_task
from pretrained import needs_minilm


def test_kept_is_projection_and_angle() -> None:
    true = torch.tensor([1.0, 0.0])
    half = kept([torch.tensor([0.5, 0.5])], [true])
    assert (half.retained, half.cosine) == pytest.approx((0.5, 0.5**0.5))
    nothing = kept([torch.zeros(2)], [true])
    assert (nothing.retained, nothing.cosine) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_residual_keeps_what_nearest_loses(dtype: torch.dtype) -> None:
    small = 2e-5 if dtype == torch.bfloat16 else 2e-6
    found = {policy: synthetic(policy, dtype, small, size=128) for policy in POLICIES}
    assert found["nearest"].retained < 0.5
    assert found["stochastic"].retained == pytest.approx(1, abs=0.1)
    assert found["residual"].retained > 0.8  # the last half unit is still in the residual
    assert found["residual"].cosine > max(found[p].cosine for p in ("nearest", "stochastic"))


@needs_minilm
def test_variants_differ_in_how_weights_are_held_alone() -> None:
    rows = [Row(f"row {i}", None, i % 2) for i in range(8)]
    task = make_task("tiny", rows, rows)
    query = "bert.encoder.layer.0.attention.self.query"
    models = {name: build(task, v, seed=0) for name, v in VARIANTS.items()}
    reference = models[FLOAT32]
    for name, model in models.items():
        linear = model.get_submodule(query)
        assert (linear.weight.dtype, linear.bias.dtype) == (
            VARIANTS[name].adapted,
            VARIANTS[name].frozen,
        )
        assert (
            model.classifier.weight.dtype == model.bert.pooler.dense.weight.dtype == torch.float32
        )
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            assert torch.equal(p.float(), q)


@needs_minilm
def test_a_short_run_of_every_variant() -> None:
    rows = [Row(f"rain number {i}" if i % 2 else f"bank {i}", None, i % 2) for i in range(16)]
    lab = Lab(make_task("tiny", rows, rows), Setting(steps=8, batch_size=2, length=8))
    runs = dict(lab.runs(1e-3, seed=0))
    assert runs.keys() == {*VARIANTS, ROUNDED}
    assert runs[FLOAT32]["distance"] == 0
    assert runs[FLOAT32]["retained"] == pytest.approx(1, abs=1e-4)
    assert all(0 < figures["distance"] < 20 for n, figures in runs.items() if n != FLOAT32)


def test_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic_records, "__defaults__", (32,))
    path = tmp_path / "a" / "precision.json"
    merge_precision.main(["--part", "synthetic", "--lr", "1e-3", "--json", str(path)])
    assert "bfloat16, lr 0.001" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert len(written["synthetic"]) == 2 * len(POLICIES) and written["torch"] == torch.__version__


def test_a_missing_task_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_XGB_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="TORCH_XGB_DATA"):
        merge_precision.main(["--task", "trec"])
