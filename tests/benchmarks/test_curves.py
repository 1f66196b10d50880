"""The pictures of results."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables import curves
from benchmarks.tables.curves import Point, scatter


def test_every_method_of_a_picture_has_a_mark_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(curves, "_finish", lambda figure, axes, *rest: drawn.append(axes))
    points = [Point(f"method {i}", i + 1, i, 0.5) for i in range(30)]
    scatter(tmp_path / "a.png", points, "cost", "score", "title", True)
    lines = [bars.lines[0] for bars in drawn[0].containers]
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == len(points)
