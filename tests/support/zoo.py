"""A tiny model of each architecture, of random weights, with a batch and its blocks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}
STACKS = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
LLAMA = [*ATTENTION, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
BERT = [
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
Batch = dict[str, Tensor]


@dataclass
class Species:
    """A model, and what is known of it from its source.

    Attributes:
        build: Makes the model.
        blocks: The names of its blocks, in order.
        targets: The linear maps of each block, in any order; or one list per block.
        batch: Its inputs, labels among them.
        saved: The task head that is found by itself.
        bypassed: Linear maps whose weights are read without calling them.
        parameters: The experts of each block.
    """

    build: Callable[[], nn.Module]
    blocks: list[str]
    targets: list[str] | list[list[str]]
    batch: Callable[[], Batch] = field(default=lambda: tokens())
    saved: list[str] = field(default_factory=list)
    bypassed: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)

    def expected(self) -> dict[str, str]:
        """Every target with its block."""
        each = [t if isinstance(t, list) else self.targets for t in self.targets]
        each = each if isinstance(self.targets[0], list) else [self.targets] * len(self.blocks)
        return {
            f"{b}.{t}": b
            for b, targets in zip(self.blocks, each, strict=True)
            for t in (*targets, *self.parameters)
        }


def tokens() -> Batch:
    ids = torch.arange(3, 15).reshape(2, 6)
    return {"input_ids": ids, "labels": ids.clone()}


def sentences() -> Batch:
    return {"input_ids": torch.arange(3, 15).reshape(2, 6), "labels": torch.tensor([0, 1])}


def images(side: int) -> Batch:
    return {"pixel_values": torch.randn(2, 3, side, side), "labels": torch.tensor([0, 1])}


def speech() -> Batch:
    ids = torch.arange(3, 13).reshape(2, 5)
    return {"input_features": torch.randn(2, 8, 20), "labels": ids}


def numbered(prefix: str, count: int = 3) -> list[str]:
    return [f"{prefix}.{i}" for i in range(count)]


def encoder_decoder(prefix: str, self_out: str, ff: list[str]) -> tuple[list[str], list[list[str]]]:
    """Two encoder and three decoder blocks, the latter with a second attention."""
    own = [*ATTENTION, f"self_attn.{self_out}"]
    cross = [name.replace("self_attn", "encoder_attn") for name in own]
    blocks = numbered(f"{prefix}.encoder.layers", 2) + numbered(f"{prefix}.decoder.layers")
    return blocks, [[*own, *ff]] * 2 + [[*own, *cross, *ff]] * 3


def t5_targets() -> list[list[str]]:
    own = [f"layer.0.SelfAttention.{name}" for name in "qkvo"]
    cross = [f"layer.1.EncDecAttention.{name}" for name in "qkvo"]
    wi_wo = ["DenseReluDense.wi", "DenseReluDense.wo"]
    encoder = [*own, *(f"layer.1.{name}" for name in wi_wo)]
    return [encoder] * 2 + [[*own, *cross, *(f"layer.2.{name}" for name in wi_wo)]] * 3


GPT2 = {
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "vocab_size": 40,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_TARGETS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
VIT = [*(f"attention.{n}_proj" for n in "qkvo"), "mlp.fc1", "mlp.fc2"]
OPT = [*ATTENTION, "self_attn.out_proj", "fc1", "fc2"]
BART_BLOCKS, BART_TARGETS = encoder_decoder("model", "out_proj", ["fc1", "fc2"])

ZOO: dict[str, Species] = {
    "bert": Species(
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZES)),
        numbered("bert.encoder.layer"),
        BERT,
        sentences,
        ["classifier"],
    ),
    "bert-base-model": Species(
        lambda: Pooled(hf.BertModel(hf.BertConfig(**SIZES))),
        numbered("body.encoder.layer"),
        BERT,
        sentences,
        ["top"],
    ),
    "roberta": Species(
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SIZES)),
        numbered("roberta.encoder.layer"),
        BERT,
        sentences,
        ["classifier"],
    ),
    "distilbert": Species(
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=32, vocab_size=40)
        ),
        numbered("distilbert.transformer.layer"),
        [*(f"attention.{n}_lin" for n in ("q", "k", "v", "out")), "ffn.lin1", "ffn.lin2"],
        sentences,
        ["pre_classifier", "classifier"],
    ),
    "albert": Species(
        lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(**SIZES, embedding_size=8)),
        ["albert.encoder.albert_layer_groups.0.albert_layers.0"],
        [*(f"attention.{n}" for n in ("query", "key", "value", "dense")), "ffn", "ffn_output"],
        sentences,
        ["classifier"],
    ),
    "gpt2": Species(
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
        numbered("transformer.h"),
        GPT2_TARGETS,
    ),
    "gpt2-classification": Species(
        lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2, pad_token_id=0)),
        numbered("transformer.h"),
        GPT2_TARGETS,
        sentences,
        ["score"],
    ),
    "gpt-neox": Species(
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)),
        numbered("gpt_neox.layers"),
        ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    ),
    "opt": Species(
        lambda: hf.OPTForCausalLM(
            hf.OPTConfig(
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                ffn_dim=32,
                vocab_size=40,
                max_position_embeddings=32,
                word_embed_proj_dim=16,
            )
        ),
        numbered("model.decoder.layers"),
        OPT,
    ),
    "llama": Species(
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)), numbered("model.layers"), LLAMA
    ),
    "llama-classification": Species(
        lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**GROUPED)),
        numbered("model.layers"),
        LLAMA,
        sentences,
        ["score"],
    ),
    "mistral": Species(
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED)), numbered("model.layers"), LLAMA
    ),
    "qwen2": Species(
        lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)), numbered("model.layers"), LLAMA
    ),
    "qwen3": Species(
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
        numbered("model.layers"),
        LLAMA,
    ),
    "gemma": Species(
        lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GROUPED, head_dim=8)),
        numbered("model.layers"),
        LLAMA,
    ),
    "phi": Species(
        lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES)),
        numbered("model.layers"),
        [*ATTENTION, "self_attn.dense", "mlp.fc1", "mlp.fc2"],
    ),
    "mixtral": Species(
        lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1)
        ),
        numbered("model.layers"),
        [*ATTENTION, "self_attn.o_proj"],
        parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "mamba": Species(
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(hidden_size=16, num_hidden_layers=3, state_size=4, vocab_size=40)
        ),
        numbered("backbone.layers"),
        [f"mixer.{name}_proj" for name in ("in", "x", "dt", "out")],
        bypassed=["dt_proj"],
    ),
    "t5": Species(
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_decoder_layers=3,
                num_heads=2,
                vocab_size=40,
                decoder_start_token_id=0,
                dropout_rate=0.0,
            )
        ),
        numbered("encoder.block", 2) + numbered("decoder.block"),
        t5_targets(),
    ),
    "bart": Species(
        lambda: hf.BartForConditionalGeneration(
            hf.BartConfig(**STACKS, max_position_embeddings=32, forced_eos_token_id=2)
        ),
        BART_BLOCKS,
        BART_TARGETS,
    ),
    "whisper": Species(
        lambda: hf.WhisperForConditionalGeneration(
            hf.WhisperConfig(
                **STACKS, num_mel_bins=8, max_source_positions=10, max_target_positions=16
            )
        ),
        BART_BLOCKS,
        BART_TARGETS,
        speech,
    ),
    "vit": Species(
        lambda: hf.ViTForImageClassification(
            hf.ViTConfig(
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=8,
                patch_size=4,
            )
        ),
        numbered("vit.layers"),
        VIT,
        lambda: images(8),
        ["classifier"],
    ),
    "swin": Species(
        lambda: hf.SwinForImageClassification(
            hf.SwinConfig(
                image_size=16,
                patch_size=2,
                embed_dim=8,
                depths=[1, 2],
                num_heads=[2, 2],
                window_size=2,
            )
        ),
        ["swin.encoder.layers.0.blocks.0", *numbered("swin.encoder.layers.1.blocks", 2)],
        VIT,
        lambda: images(16),
        ["classifier"],
    ),
}


class Pooled(nn.Module):
    """A transformers base model inside somebody's own module, with somebody's own head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.top = nn.Linear(16, 2)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        logits = self.top(self.body(input_ids).last_hidden_state.mean(1))
        return Output(nn.functional.cross_entropy(logits, labels), logits)


@dataclass
class Output:
    """As transformers' models answer."""

    loss: Tensor
    logits: Tensor
