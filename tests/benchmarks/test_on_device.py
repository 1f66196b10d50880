"""The benchmarks of devices: they run here, and say what they cannot."""

import pytest
import torch

from benchmarks import merge_cost, on_gpu
from benchmarks.measures import merging, on_device
from benchmarks.measures.remote import DEVICE, Remote, counting

CPU = torch.device("cpu")


def test_without_a_gpu_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_gpu.main([])
    assert "no GPU" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["draws", "merges", "losses", "waits"])
def test_a_check_holds_on_the_cpu(name: str) -> None:
    found = on_device.CHECKS[name](CPU)
    assert found.held, found.says


def test_a_check_that_fails_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "_merged", lambda *_: [torch.randn(3)])
    assert not on_device.merges(CPU).held
    assert not on_gpu.check_all(torch.device("meta"))["late"].held


def test_what_a_device_that_is_none_is_asked() -> None:
    with counting() as asked:
        x = torch.ones(2, device=DEVICE)
        y = (x + x).view(2, 1)
        assert isinstance(y, Remote) and asked.launches == 2 and not asked.waits
        assert y.sum().item() == 4.0
        torch.ones(2).to(DEVICE)
        assert y.cpu().tolist() == [[2.0], [2.0]]
    assert asked.waits.total() == 3 and (asked.up, asked.down) == (1, 1)


@pytest.mark.parametrize(("case", "passes"), [("float32, nearest", 2), ("bfloat16, residual", 11)])
def test_a_merge_is_measured(case: str, passes: int) -> None:
    """Of a weight of 256 columns what is one number a row is little beside what is one an entry."""
    cost = merging.merge_cost(case, 256, 2, 2, CPU)
    assert cost.merge > 0 and cost.looks > 0 and cost.sums > 0 and cost.temporary < 3e6
    assert passes <= cost.passes < passes + 1
    assert case in merge_cost.rows_table({case: cost})
