"""The scan of model types: small models of a kind, and what is said of them."""

import json
from pathlib import Path

import pytest

from benchmarks import zoo
from benchmarks.subjects.shrunk import model_types, specimen
from benchmarks.tables.zoo import counts, refused, whole


def test_types_are_scanned_once_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Linear maps under another name, a body for images beside text, and one that none can make."""
    journal = tmp_path / "zoo.jsonl"
    types = ["falcon", "llava", "layoutlmv2"]
    assert set(types) <= set(model_types())
    zoo.main(["--types", *types, "--journal", str(journal)])
    printed = capsys.readouterr().out
    assert "2 could be made small and run" in printed
    assert "merge 2 of them exactly (100.0 %)" in printed
    falcon, llava, layoutlm = (json.loads(line) for line in journal.read_text().splitlines())
    assert falcon["trains"] and falcon["targets"] == 8 and falcon["distance"] <= 1e-5
    assert llava["trains"] and llava["settings"] == {"unused": "skip"}  # a batch of text alone
    assert "detectron2" in layoutlm["made"]
    zoo.main(["--types", *types, "--journal", str(journal)])
    assert capsys.readouterr().out == printed
    assert len(journal.read_text().splitlines()) == 3


def test_a_small_model_keeps_its_proportions() -> None:
    subject = specimen("deepseek_v3")
    assert sum(p.numel() for p in subject.model.parameters()) < 80e6
    assert len(subject.model.model.layers) == 2 and subject.batch


def test_what_is_refused_is_told_with_its_words() -> None:
    made = {"made": "", "class": "Mine", "peft": "", "settings": {}, "words": ""}
    records = [
        {**made, "type": "good", "trains": True, "distance": 1e-7, "blocks": 2, "targets": 4},
        {**made, "type": "bad", "trains": False, "words": "ValueError: no linear maps"},
        {**made, "type": "ours", "trains": True, "peft": "refuses", "distance": 0.0},
        {"type": "none", "made": "forward: it needs more"},
    ]
    assert "merge 1 of them exactly (50.0 %)" in counts(records)
    assert "ValueError: no linear maps" in refused(records) and "good" not in refused(records)
    assert whole(records).count("\n") == 4
