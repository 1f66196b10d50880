"""The benchmark of routes: what it measures of one, and that it skips what is not installed."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import distributed


@pytest.mark.distributed
def test_the_routes_are_compared_with_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    distributed.main(["--route", "DDP", "--steps", "5", "--json", str(file)])
    rows = json.loads(file.read_text())["routes"]
    assert [(row["world size"], row["dtype"]) for row in rows] == [
        (size, dtype) for size in (1, 2) for dtype in ("float32", "bfloat16")
    ]
    for row in rows:
        assert row["merges"] == 1 and row["in merges"] == 0
        assert row["sent"] == row["factors"] > 0
        assert row["loss difference"] < (1e-6 if row["dtype"] == "float32" else 0.02)
    assert capsys.readouterr().out.count("| DDP") == 4


def test_a_route_that_lacks_its_framework_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(distributed, "run", lambda *args: {})
    distributed.main(["--route", "DeepSpeed stage 3"])
    assert "skipped DeepSpeed stage 3: deepspeed is not installed" in capsys.readouterr().out
