"""The benchmark of scores at equal time: its arithmetic, what a step counts, what it shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.measures import frontier as measured
from benchmarks.methods.frontier import BLOCKS, LORA, Entry, entries
from benchmarks.runs import frontier
from benchmarks.runs.journal import Journal
from benchmarks.subjects.batched import Subject
from benchmarks.tables import overview
from benchmarks.tables.frontier import frontier_table, reached

THIRD = "XGBLoRA r=1, carry=0.97, 2 of 6 blocks"
ENTRIES = {entry.name: entry for entry in entries()}


def test_ends_of_a_draw_weigh_as_its_mean() -> None:
    (low, _), (high, fixed) = ENTRIES[THIRD].ends()
    assert low + high == 1 and high * (BLOCKS - 2) == pytest.approx(7 / 3 - 1)
    assert fixed["layer_sampler"](0, 0, 6, 2) == [4, 5]
    assert [share for share, _ in ENTRIES["BAdam, 1 block"].ends()] == [0.5, 0.5]
    assert list(ENTRIES["XGBLoRA r=1, carry=0.97"].ends()) == [(1.0, {})]


def counts(**flops: float) -> dict[str, Any]:
    return {name: {"flops": flops.get(name, 1.0), "peak": 2e8} for name in ENTRIES}


def test_a_cheaper_step_is_taken_more_often() -> None:
    found = counts(**{"full fine-tuning": 1.5, THIRD: 0.8, "PEFT LoRA r=1": 0.97})
    names = ("full fine-tuning", THIRD, "PEFT LoRA r=1")
    assert [frontier.steps(ENTRIES[name], found) for name in names] == [200, 375, 300]


def test_a_rate_without_a_search_is_that_of_most_seeds_and_least_loss(tmp_path: Path) -> None:
    journal, entry = Journal(tmp_path / "a.jsonl"), ENTRIES["GaLore r=8"]
    low, high = frontier.planned("TREC", entry, 300, 3, journal)
    for run, loss in ((low[0], 0.3), (high[0], 0.2), (high[1], 0.4)):
        journal.once(run.key, lambda loss=loss: {"score": 1 - loss, "dev_loss": loss})
    kept = frontier.records("TREC", entry, 300, 3, journal)
    assert [(r["key"]["lr"], r["key"]["seed"]) for r in kept] == [(high[0].lr, 0), (high[0].lr, 1)]
    shown = frontier_table(counts(), journal)
    assert all(name in shown for name in ENTRIES) and "70.0 ± 127.1 (2)" in shown


def test_the_frontier_is_of_what_was_reached_in_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    slow, fast = ENTRIES["GaLore r=8"], ENTRIES["BAdam, 1 block"]
    for task in frontier.TASK_NAMES:
        for entry, score in ((slow, 0.9), (fast, 0.8)):
            run = frontier.planned(task, entry, 300, 1, journal)[0][0]
            journal.once(run.key, lambda score=score: {"score": score, "dev_loss": 1.0})
    found = list(reached(counts(**{slow.name: 2.0}), journal))
    assert {one.entry.name: (one.score, one.later) for one in found} == {
        slow.name: (pytest.approx(90), True),
        fast.name: (pytest.approx(80), False),
    }
    assert overview.frontier(found) == [(2e8, pytest.approx(80))]
    overview.draw_overview(tmp_path / "a.png", found, [])
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=6, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    ids = torch.randint(32, (16, 32), generator=torch.Generator().manual_seed(0))

    def model() -> nn.Module:
        return BertForSequenceClassification(config).train()

    subject = Subject("tiny", model, {"input_ids": ids, "labels": ids[:, 0] % 2}, 6, 2)
    monkeypatch.setattr(measured, "minilm", lambda rows, tokens: subject)
    yield


def flops(entry: Entry) -> float:
    return sum(share * measured._flops(entry, settings) for share, settings in entry.ends())


def test_a_whole_step_is_counted(tiny: None) -> None:
    names = (THIRD, "PEFT LoRA r=1", LORA, f"{LORA}, checkpointed")
    third, one, eight, again = (flops(ENTRIES[name]) for name in names)
    assert third < one < eight and one < flops(ENTRIES["full fine-tuning"])
    assert flops(ENTRIES[f"{THIRD}, checkpointed"]) > 1.2 * third and again > 1.2 * eight
    found = measured.measure(ENTRIES[THIRD])
    assert found["flops"] == round(third) and found["peak"] > 0


def test_what_is_counted_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(frontier, "measure", lambda e: done.append(e.name) or {"flops": 1})
    first = frontier.counts(Journal(tmp_path / "a.jsonl"))
    again = Journal(tmp_path / "a.jsonl")
    assert frontier.counted(again) == first and list(first) == done
    assert frontier.counts(again) == first and len(done) == len(first)
