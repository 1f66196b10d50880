"""The causal LM on text of a domain: what is split, trained, searched, recorded, shown."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.methods import causal
from benchmarks.runs import domain
from benchmarks.runs.journal import Journal
from benchmarks.subjects import prose
from benchmarks.tables.domain import domain_table


class Bytes:
    """A tokenizer of ASCII, and 0 for the end of a text."""

    eos_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [min(byte, 127) for byte in text.encode()]}


def test_a_text_is_in_one_part_alone(tmp_path: Path) -> None:
    parts = prose.texts()
    whole = [text for found in parts.values() for text in found]
    assert len(whole) == len(set(whole)) > 1000
    shares = {part: len(found) / len(whole) for part, found in parts.items()}
    assert shares == pytest.approx({"train": 0.8, "held out": 0.1, "scored": 0.1}, abs=0.03)
    with pytest.raises(ValueError, match="lacks the source"):
        prose.texts(tmp_path)


def test_windows_are_the_texts_in_order_and_batches_the_seeds() -> None:
    read = prose.windows(Bytes(), ["ab", "c" * 200])
    assert read.shape == (3, prose.LENGTH)
    assert read.flatten()[:4].tolist() == [97, 98, 0, 99]
    read = torch.arange(6 * prose.LENGTH).view(6, -1)
    found = [[b["input_ids"][:, 0] for b in prose.batches(read, 3, seed)] for seed in (0, 0, 1)]
    first, again, other = map(torch.cat, found)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert sorted(first[:6].tolist()) == read[:, 0].tolist()  # each once before any twice


def test_a_loss_is_the_mean_over_windows_that_are_evenly_spread() -> None:
    class Tells(nn.Module):
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=input_ids[:, 0].float().mean())

    read = torch.arange(11)[:, None].expand(11, prose.LENGTH)
    assert prose.loss(Tells(), read, 6) == pytest.approx(5)  # 0, 2, 4 ... 10
    assert prose.loss(Tells(), read, 100) == pytest.approx(5)


def test_a_queue_searches_then_scores_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small() -> LlamaForCausalLM:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=128, use_cache=False, **sizes, **heads))

    read = prose.windows(Bytes(), ["def of nothing in particular. " * 40])
    monkeypatch.setattr(domain.smollm, "model", small)
    monkeypatch.setattr(domain, "read", lambda part: read)
    path, size = tmp_path / "domain.jsonl", domain.Size(1, (3,), 2, 2)
    assert "PEFT" not in domain_table(size, Journal(path))
    domain.run(size, Journal(path))
    text = path.read_text(encoding="utf-8")
    domain.run(size, Journal(path))
    assert path.read_text(encoding="utf-8") == text
    journal = Journal(path)
    rates = sum(len(rates) for _, rates in causal.METHODS.values())
    assert len(journal) == 1 + rates + 2 * len(causal.METHODS)
    untrained = journal[domain.untrained(size)]["loss"]
    for method in causal.METHODS:
        losses = [record["loss"] for record in domain.records(method, 3, size, journal)]
        assert len(losses) == 2 and all(0 < loss < untrained for loss in losses)
        mean = sum(losses) / 2
        assert f"{mean:.3f} ± " in (shown := domain_table(size, journal))
        assert f"{math.exp(mean):.2f} (2)" in shown


def test_the_rate_of_least_loss_on_held_out_windows_is_taken(tmp_path: Path) -> None:
    journal, size = Journal(tmp_path / "domain.jsonl"), domain.Size()
    method, rates = "PEFT LoRA r=8", causal.METHODS["PEFT LoRA r=8"][1]
    for lr, loss in zip(rates, (2.0, 1.0), strict=True):
        assert domain.rate(method, size, journal) is None
        journal.once(domain.key(method, lr, 0, 48, "held out", size), lambda x=loss: {"loss": x})
    assert domain.rate(method, size, journal) == rates[1]
