"""A small Llama with random weights, and batches for it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Size:
    """The model and the batch that are counted."""

    blocks: int = 12
    hidden: int = 512
    intermediate: int = 1408
    heads: int = 8
    vocabulary: int = 4096
    batch: int = 4
    tokens: int = 256
    attention: str = "sdpa"

    def model(self) -> LlamaForCausalLM:
        """Build the model, with the same random weights every time."""
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.tokens,
            use_cache=False,
            attn_implementation=self.attention,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LlamaForCausalLM(config).train()

    def ids(self) -> Tensor:
        """Return a batch of tokens."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.vocabulary, (self.batch, self.tokens), generator=generator)
