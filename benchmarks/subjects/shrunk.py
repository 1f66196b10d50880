"""Every model type of transformers, made small: its configuration shrunk, its weights random.

Widths are divided by one number, so that what must divide what still does; stacks keep two blocks,
or one of each kind; vocabularies and experts are few. Inputs are those of ``inputs``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import configuration_auto, modeling_auto

from benchmarks.subjects.inputs import Batch, batches

# The tasks a model type is tried at, the first it has: a language model before its base model.
TASKS = (
    *(
        "SEQ_TO_SEQ_CAUSAL_LM",
        "SPEECH_SEQ_2_SEQ",
        "IMAGE_TEXT_TO_TEXT",
        "MULTIMODAL_LM",
        "CAUSAL_LM",
    ),
    *("MASKED_LM", "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"),
    *("CTC", "AUDIO_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION"),
    *("UNIVERSAL_SEGMENTATION", "DEPTH_ESTIMATION", "ZERO_SHOT_IMAGE_CLASSIFICATION"),
)
# Widths are divided by a factor, the first that works; some models keep in code how a head's width
# is cut for positions of several axes: they are told, or get fewer heads of the same width.
TRIES = ((8, ""), (8, "sections"), (8, "heads"), (16, ""), (4, ""), (1, ""))
VOCABULARY, EXPERTS, POSITIONS, FRAMES, PICTURE, MOST = 192, 16, 512, 64, 224, 80e6

_WIDTH = re.compile(
    r"size|dim|width|d_model|d_ff|d_kv|d_inner|n_embd|n_inner|rank|channels|hidden|embed|ffn|units|filters"
    r"|expand_v|section|planes"
)
_NO_WIDTH = re.compile(
    r"vocab|image|img|patch|kernel|window|position|max_|^num_(?!.*dim)|length|mel|chunk|stride|spatial"
    r"|temporal|group|block_size|state_size|token|_id$|bucket|grid|context|pool|codebook_size|crop"
    r"|in_channels|num_channels|conv_kernel|input_size|feature_size|sample|batch|stage|frame|ratio"
)
_LAYERS = re.compile(
    r"(num_|n_)?(hidden_|encoder_|decoder_|\w+_)?(layers?|blocks)$|^depth$|^depths$"
)
_NO_LAYERS = re.compile(
    r"feat_extract|conv|type|every|freq|indices|idx|out_|dense|adapter|downsample"
)


@dataclass
class Specimen:
    """A small model of one type, in evaluation, with inputs it accepts.

    Attributes:
        task: Its class's name.
        model: The model.
        batch: Its inputs.
    """

    task: str
    model: nn.Module
    batch: Batch


def model_types() -> list[str]:
    """Return the model types of the installed transformers, one for each class of models."""
    named = {_class_name(name): name for name in reversed(configuration_auto.CONFIG_MAPPING_NAMES)}
    return sorted(
        name for model_class, name in named.items() if hasattr(transformers, str(model_class))
    )


def specimen(model_type: str) -> Specimen:
    """Make a small model of a type and inputs for it.

    Raises:
        RuntimeError: If none can be made generically, with the last reason.
    """
    config_class = configuration_auto.CONFIG_MAPPING[model_type]
    model_class = getattr(transformers, str(_class_name(model_type)))
    reasons: list[str] = []
    for factor, way in TRIES:
        try:
            config = shrink(_complete(config_class(), way), factor, way == "heads")
            config = _with_sections(config) if way == "sections" else config
            model = _built(model_class, config)
        except Exception as error:
            reasons.append(f"build: {_said(error)}")
        else:
            found = _accepted(model, reasons)
            if found is not None:
                # Made again: a call may leave tensors of its graph in a model.
                return Specimen(model_class.__name__, _built(model_class, config), found)
        if len(reasons) > 2 and len(set(reasons)) == 1:
            break  # the width is not what it is about
    raise RuntimeError(reasons[0])


def _built(model_class: Any, config: PretrainedConfig) -> Any:
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class._from_config(config).parameters())
    if size > MOST:
        raise ValueError(f"{size / 1e6:.0f}M parameters")
    torch.manual_seed(0)
    return model_class._from_config(config).float().eval()


def _accepted(model: Any, reasons: list[str]) -> Batch | None:
    """The first inputs that a model takes and answers with a gradient; or one more reason."""
    said = ["forward: no gradient"]
    for batch in batches(model):
        try:
            torch.manual_seed(0)
            if differentiable(model(**batch)):
                return batch
        except Exception as error:
            said.append(f"forward: {_said(error)}")
    reasons.append(next((s for s in said[1:] if "TypeError" not in s), said[-1]))
    return None


def _complete(config: PretrainedConfig, way: str) -> PretrainedConfig:
    """Fill in what a configuration leaves open, in place, and those inside it.

    A backbone that is timm's becomes a ResNet of transformers.
    """
    for name, inner in list(vars(config).items()):
        if getattr(inner, "model_type", "") == "timm_backbone":
            stages = len(getattr(inner, "out_indices", None) or [4])
            last = [f"stage{i}" for i in range(5 - stages, 5)]
            setattr(config, name, transformers.ResNetConfig(depths=[1] * 4, out_features=last))
        elif isinstance(inner, PretrainedConfig):
            _complete(inner, way)
    given = {"vocab_size": VOCABULARY, "prediction_length": 4, "context_length": 16}
    heads, hidden = (getattr(config, n, None) for n in ("num_attention_heads", "hidden_size"))
    if way == "heads" and isinstance(heads, int) and isinstance(hidden, int):
        given |= {"num_key_value_heads": heads, "head_dim": hidden // heads}
        given |= {"pad_token_id": 0, "mask_token_id": 1}
    for name, value in given.items():
        if name in vars(config) and getattr(config, name) is None:
            setattr(config, name, value)
    return config


def outputs(answer: Any) -> list[Tensor]:
    """Return the floating tensors of what a model returns."""
    if isinstance(answer, Tensor):
        return [answer] if answer.is_floating_point() else []
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, (list, tuple)):
        return [tensor for part in answer for tensor in outputs(part)]
    return []


def differentiable(answer: Any) -> list[Tensor]:
    """Return those a loss may be made of."""
    return [tensor for tensor in outputs(answer) if tensor.requires_grad and tensor.numel()]


def shrink(config: PretrainedConfig, factor: int, heads: bool = False) -> PretrainedConfig:
    """Make a configuration small, in place, and those inside it.

    Args:
        config: The configuration.
        factor: What widths are divided by.
        heads: Whether there are to be fewer heads, in the place of narrower ones.
    """
    how = _How(factor, heads, *_depths(config))
    for name, value in list(vars(config).items()):
        small = _small(name, value, how)
        if small is not value and not name.startswith("_"):
            try:
                setattr(config, name, small)
            except Exception:  # noqa: S112 - a property of others
                continue
    return config


def _with_sections(config: PretrainedConfig) -> PretrainedConfig:
    for inner in vars(config).values():
        if isinstance(inner, PretrainedConfig):
            _with_sections(inner)
    rope, hidden = getattr(config, "rope_parameters", None), getattr(config, "hidden_size", None)
    if isinstance(rope, dict) and isinstance(hidden, int):
        half = (getattr(config, "head_dim", None) or hidden // config.num_attention_heads) // 2
        third = 3 * half // 8
        rope["mrope_section"] = [half - 2 * third, third, third]
    return config


@dataclass(frozen=True)
class _How:
    """What widths are divided by, whether heads are, the layers there are and are to be."""

    factor: int
    heads: bool
    depth: int
    kept: int


def _depths(config: PretrainedConfig) -> tuple[int, int]:
    """The layers it has, and as how many it is to have: two, or one of each kind.

    Lists of a model in stages have an entry for each of them, and stay as long as they are; a
    backbone keeps all layers, as others ask for some by number.
    """
    depth = getattr(config, "num_hidden_layers", 0)
    if any(isinstance(getattr(config, n, None), (list, tuple)) for n in ("depths", "depth")):
        return 0, 3
    if not isinstance(depth, int):
        return 0, 2
    if len(getattr(config, "out_indices", None) or ()) > 1:
        return depth, depth
    listed = [v for v in vars(config).values() if isinstance(v, list) and len(v) == depth > 2]
    kinds = max((len(set(map(str, v))) for v in listed), default=1)
    return depth, min(max(2, kinds), 4)


def _small(name: str, value: Any, how: _How) -> Any:
    if isinstance(value, PretrainedConfig):
        return shrink(value, how.factor, how.heads)
    if isinstance(value, dict):
        return {k: _small(str(k), v, how) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and value:
        if len(value) == how.depth > 2 and not _NO_LAYERS.search(name.replace("layer_types", "")):
            return _one_of_each(value, how.kept)
        return type(value)(_small(name, v, how) for v in value)
    if name == "use_cache":
        return False
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return _small_number(name, value, how)


def _small_number(name: str, value: int, how: _How) -> int:
    if re.search(r"(token|_)(id|index)$|_ids?$", name):
        return value if 0 <= value < VOCABULARY else VOCABULARY - 1 - value % 32
    if "vocab" in name:
        return min(value, VOCABULARY)
    if re.search(r"experts$", name) and "_per" not in name:
        return min(value, EXPERTS)
    if "shared_layers" in name:
        return 0
    if _LAYERS.search(name) and not _NO_LAYERS.search(name):
        return min(value, how.kept)
    if "max_position" in name:
        return min(value, POSITIONS)
    if "source_position" in name:
        return min(value, FRAMES)
    if name in ("image_size", "img_size") and how.factor > 4:
        return min(value, PICTURE)
    if how.heads and re.search(r"head_dim|qk_\w*dim|v_head", name):
        return value
    if how.heads and re.search(r"heads$", name):
        return math.ceil(value / how.factor)
    if _WIDTH.search(name) and not _NO_WIDTH.search(name) and value >= 2 * how.factor:
        return value // how.factor if value % how.factor == 0 else value
    return value


def _one_of_each(value: Any, kept: int) -> Any:
    first = list({str(v): v for v in reversed(value)}.values())[::-1]
    return type(value)(sorted([*first, *value[:kept]][:kept], key=list(value).index))


def _class_name(model_type: str) -> str | None:
    for task in TASKS:
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {})
        if model_type in names:
            return _first(names[model_type])
    name = modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
    return None if name is None else _first(name)


def _first(names: Any) -> str:
    return str(names if isinstance(names, str) else names[0])


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
