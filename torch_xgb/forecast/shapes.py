"""Models of a plan, made without weights: of a known name, a folder, a config, or a module."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode, unset_fake_temporarily

__all__ = ["IN_PYTHON", "KNOWN", "fake_batch", "fake_model", "unpacked"]


def _llama(
    hidden: int,
    intermediate: int,
    blocks: int,
    heads: int,
    kv: int,
    vocabulary: int,
    positions: int,
    **more: Any,
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
        **more,
    }


def _bert(hidden: int, blocks: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "vocab_size": 30522,
    }


IN_PYTHON = (
    "From Python, torch_xgb.plan takes any module with its inputs: inputs={name: tensor}, the "
    "keyword arguments of a call whose answer is the loss or has one"
)
# The classes of transformers whose inputs are token ids and labels, by the ends of their names.
_KINDS = (
    "CausalLM",
    "LMHeadModel",
    "MaskedLM",
    "ConditionalGeneration",
    "SequenceClassification",
    "TokenClassification",
)

# The published shapes; no file is fetched. A Mistral-7B has a Llama's operators.
KNOWN: dict[str, dict[str, Any]] = {
    "llama-7b": _llama(4096, 11008, 32, 32, 32, 32000, 2048),
    "llama-13b": _llama(5120, 13824, 40, 40, 40, 32000, 2048),
    "llama2-7b": _llama(4096, 11008, 32, 32, 32, 32000, 4096),
    "llama2-13b": _llama(5120, 13824, 40, 40, 40, 32000, 4096),
    "llama3-8b": _llama(4096, 14336, 32, 32, 8, 128256, 8192),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32000, 32768),
    "tinyllama": _llama(2048, 5632, 22, 32, 4, 32000, 2048),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, 8192, tie_word_embeddings=True),
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "roberta-base": {
        **_bert(768, 12, 12),
        "model_type": "roberta",
        "architectures": ["RobertaForSequenceClassification"],
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
}


def fake_model(source: Any, dtype: torch.dtype, mode: FakeTensorMode) -> nn.Module:  # noqa: ANN401
    """Make a model of fake tensors.

    Args:
        source: A name of ``KNOWN``, a folder with a ``config.json``, a transformers config, or a
            module, which is copied without its values.
        dtype: Of the weights; a module keeps its own.
        mode: Whose tensors they become.

    Raises:
        ImportError: If transformers is needed and not installed.
        ValueError: If a name is unknown and no folder.
    """
    if isinstance(source, nn.Module):
        with unset_fake_temporarily(), FakeCopyMode(mode):
            return copy.deepcopy(source)
    with mode:
        return _from_config(_config(source), dtype)


def _config(source: Any) -> Any:  # noqa: ANN401
    try:
        from transformers import AutoConfig, PretrainedConfig
    except ImportError as error:
        raise ImportError(
            "a plan from a name, folder or config needs transformers: "
            "pip install 'torch-xgb[transformers]'"
        ) from error
    if isinstance(source, PretrainedConfig):
        return copy.deepcopy(source)
    if str(source) in KNOWN:
        known = dict(KNOWN[str(source)])
        return AutoConfig.for_model(known.pop("model_type"), **known)
    if (Path(source) / "config.json").is_file():
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    raise ValueError(
        f"{str(source)!r} is no folder with a config.json and not a known model: {sorted(KNOWN)}"
    )


def _from_config(config: Any, dtype: torch.dtype) -> nn.Module:  # noqa: ANN401
    import transformers

    names = getattr(config, "architectures", None) or []
    cls = next((getattr(transformers, n) for n in names if hasattr(transformers, n)), None)
    if cls is not None and cls is transformers.MODEL_MAPPING.get(type(config), None):  # no head
        cls = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), cls)
    if names and (cls is None or not cls.__name__.endswith(_KINDS)):
        raise ValueError(
            f"a plan makes the inputs of {', '.join(_KINDS)} alone, and the config is of "
            f"{names[0]}. {IN_PYTHON}"
        )
    config.use_cache = False
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model: nn.Module = (cls or transformers.AutoModelForCausalLM.from_config)(config)
    finally:
        torch.set_default_dtype(before)
    return model


@contextmanager
def unpacked() -> Iterator[None]:
    """Let transformers choose attention's mask as for a batch that packs no sequences.

    It cannot look into fake tensors, assumes that rows hold several sequences, and then
    materialises a mask in every block, where such a batch has none.
    """
    masking = sys.modules.get("transformers.masking_utils")
    name = "find_packed_sequence_indices"
    before = getattr(masking, name, None)
    if before is None:
        yield
        return
    setattr(masking, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(masking, name, before)


def fake_batch(model: nn.Module, batch: int, length: int) -> dict[str, Tensor]:
    """Return token ids and labels for a transformers model, within a ``FakeTensorMode``.

    Raises:
        ValueError: If the model is none: then its inputs must be given.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "vocab_size"):
        raise ValueError(
            "the model has no transformers config to make its inputs from: pass "
            "inputs={name: tensor}, the keyword arguments of a call that returns the loss"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and "roberta" in str(getattr(config, "model_type", "")):
        positions -= (config.pad_token_id or 0) + 1  # they count from behind the padding's
    if positions is not None and length > positions:
        raise ValueError(f"length must be at most the model's {positions} positions, got {length}")
    ids = torch.zeros(batch, length, dtype=torch.int64)
    sequence = "SequenceClassification" in type(model).__name__
    labels = torch.zeros((batch,) if sequence else (batch, length), dtype=torch.int64)
    if sequence and getattr(config, "problem_type", None) is None:
        config.problem_type = "single_label_classification"
    if sequence and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    return {"input_ids": ids, "labels": labels}
