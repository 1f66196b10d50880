"""The benchmark of step times: its arithmetic, and two rounds of some contenders."""

import cProfile
import json
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from benchmarks import scaling
from benchmarks.measures import scaling as varied_settings
from benchmarks.measures import speed
from benchmarks.methods.contenders import contenders
from benchmarks.subjects.batched import Subject, llama
from benchmarks.subjects.llama import Size
from benchmarks.subjects.maps import WIDTH, Block
from benchmarks.tables.speed import speed_table
from torch_xgb import BoostedLowRankOptimizer

TINY = Size(blocks=4, hidden=16, intermediate=24, heads=2, vocabulary=32, batch=1, tokens=8)


def test_a_samplers_mean_lies_between_the_ends() -> None:
    subject = Subject("x", lambda: torch.nn.Identity(), {}, 12, 4)
    assert subject.means == {"uniform": pytest.approx(1.6 / 8), "window": 0.5}
    times = {
        f"{speed.OURS}@0": [(10.0, 0.0)],
        f"{speed.OURS}@8": [(5.0, 0.0)],
        f"{speed.OURS} merge": [(8.0, 0.0)],
        "PEFT LoRA r=8": [(12.0, 0.0)],
    }
    means = speed.means(subject, times, 0)
    assert means[f"{speed.OURS}, uniform"] == [pytest.approx(10 - 0.2 * 5 + 1)]
    assert means[f"{speed.OURS}, window"] == [pytest.approx(7.5 + 1)]
    assert means["PEFT LoRA r=8"] == [12.0]


def test_a_round_times_every_contender() -> None:
    subject = llama(TINY)
    names = (speed.OURS, speed.LIMIT, "PEFT LoRA r=8")
    build = contenders(subject.drawn)
    made = {name: build[name](subject.model(), subject.batch) for name in names}
    times = speed.rounds(subject, made, 2, 0)
    rows = speed.summary(subject, times, {})
    assert {f"{speed.OURS}, uniform", f"{speed.LIMIT}, window", "PEFT LoRA r=8"} <= rows.keys()
    assert all(row["cpu_s"] > 0 for row in rows.values())
    assert "PEFT LoRA r=8" in speed_table(rows)
    share = speed.own_share(subject, times, made[speed.OURS], steps=1)
    assert share.keys() == {"uniform", "window", "AdamW", "step() beside it", "merge / κ"}
    assert share["AdamW"] > 0 and share["step() beside it"] > 0 and share["merge / κ"] > 0


def test_scaling_tells_the_whole_step_and_the_bases_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    varied = {"blocks": (2, 3), "drawn": (1,), "kappa": (1, 2), "r": (1,)}
    monkeypatch.setattr(varied_settings, "VARIED", varied)
    monkeypatch.setattr(varied_settings, "BASE", {"blocks": 2, "drawn": 1, "kappa": 2, "r": 1})
    files = tmp_path / "a" / "scaling.json", tmp_path / "a" / "scaling.png"
    scaling.main(["--boosters", "1", "--json", str(files[0]), "--plot", str(files[1])])
    found = json.loads(files[0].read_text())
    assert found["torch"] == torch.__version__
    steps = [s for base in found["us"].values() for some in base.values() for s in some.values()]
    assert len(steps) == 2 * 6 and all(step["whole"] > step["base"] > 0 for step in steps)
    assert "kappa = 2" in capsys.readouterr().out and files[1].stat().st_size > 0


def test_a_steps_own_work_does_not_grow_with_the_model() -> None:
    """Calls of functions, counted: in a booster none for what is not drawn, at its ends few."""

    def calls(blocks: int) -> tuple[int, int]:
        model = torch.nn.Sequential(*[Block() for _ in range(blocks)])
        optimizer = BoostedLowRankOptimizer(AdamW, model, kappa=4, layers_per_booster=4, lr=1e-3)
        x, found = torch.ones(1, WIDTH), [0, 0]
        for step in range(16):
            model(x).sum().backward()
            profile = cProfile.Profile()
            if step >= 4:
                profile.enable()
            optimizer.step()
            optimizer.zero_grad()
            profile.disable()
            ends = step % 4 in (0, 3)
            found[ends] += sum(entry.callcount for entry in profile.getstats())
        return found[0], found[1]

    (few, few_at_ends), (many, many_at_ends) = calls(64), calls(256)
    assert many <= 1.02 * few
    parameters = 3 * 192 * sum(1 for _ in Block().parameters())  # of three boosters
    assert many_at_ends <= few_at_ends + 40 * parameters
