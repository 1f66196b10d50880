"""Models with a batch: what steps are timed, counted and forecast on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from benchmarks.subjects import minilm as encoder
from benchmarks.subjects.classification import Batch
from benchmarks.subjects.llama import Size


@dataclass(frozen=True)
class Subject:
    """A model with a batch, and how many of its blocks are drawn."""

    name: str
    model: Callable[[], nn.Module]
    batch: Batch
    blocks: int
    drawn: int

    @property
    def top(self) -> int:
        """The highest that the lowest drawn block can be."""
        return self.blocks - self.drawn

    @property
    def means(self) -> dict[str, float]:
        """The mean lowest block of a sampler, as a share of the highest possible."""
        uniform = (self.blocks + 1) / (self.drawn + 1) - 1
        return {"uniform": uniform / self.top, "window": 0.5}


def llama(size: Size) -> Subject:
    """Return the Llama of benchmarks.cost."""
    ids = size.ids()
    batch = {"input_ids": ids, "labels": ids}
    return Subject("llama", size.model, batch, size.blocks, max(1, size.blocks // 3))


def minilm(rows: int = 16, tokens: int = 64) -> Subject:
    """Return the real model with a batch of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (rows, tokens), generator=generator)
    batch: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["labels"] = torch.randint(2, (rows,), generator=generator)
    return Subject("minilm", lambda: encoder.classifier(["no", "yes"], 0).train(), batch, 6, 2)


def architectures() -> dict[str, tuple[nn.Module, Batch]]:
    """Return three architectures in two dtypes, each with a batch."""
    size, long = Size(batch=2), Size(batch=1, tokens=512)
    ids = torch.randint(1000, (8, 64))
    bert = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
    bert.num_attention_heads = 12
    gpt2 = GPT2Config(n_embd=384, n_layer=8, n_head=6, vocab_size=8192, use_cache=False)
    tokens = {"input_ids": ids, "labels": ids}
    found: dict[str, tuple[nn.Module, Batch]] = {
        "Llama, 12 blocks, float32": (size.model(), _causal(size)),
        "Llama, 12 blocks, bfloat16": (long.model().bfloat16(), _causal(long)),
        "BERT, 6 blocks, float32": (
            BertForSequenceClassification(bert),
            {"input_ids": ids, "labels": ids[:, 0] % 2},
        ),
        "GPT-2, 8 blocks, float32": (GPT2LMHeadModel(gpt2), tokens),
    }
    return found


def _causal(size: Size) -> Batch:
    return {"input_ids": size.ids(), "labels": size.ids()}
