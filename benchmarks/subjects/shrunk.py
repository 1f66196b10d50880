"""Every model type of transformers, made small: its configuration shrunk, its weights random.

Widths are divided by one number, so that what must divide what still does; stacks keep two blocks,
or one of each kind; vocabularies and experts are few. Inputs are made of what a forward asks for.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import configuration_auto, modeling_auto

Batch = dict[str, Any]

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
# is cut for positions of several axes, and are told.
TRIES = ((8, False), (8, True), (16, False), (4, False), (1, False))
VOCABULARY, EXPERTS, POSITIONS, MOST = 192, 16, 512, 80e6

_WIDTH = re.compile(
    r"size|dim|width|d_model|d_ff|d_kv|d_inner|n_embd|n_inner|rank|channels|hidden|embed|ffn|units"
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
    for factor, cut in TRIES:
        try:
            config = shrink(config_class(), factor)
            model = _built(model_class, _with_sections(config) if cut else config)
        except Exception as error:
            reasons.append(f"build: {_said(error)}")
        else:
            found = _accepted(model, reasons)
            if found is not None:
                return Specimen(model_class.__name__, model, found)
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
    said = "forward: no gradient"
    for batch in batches(model):
        try:
            torch.manual_seed(0)
            if differentiable(model(**batch)):
                return batch
        except Exception as error:
            said = f"forward: {_said(error)}"
    reasons.append(said)
    return None


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


def shrink(config: PretrainedConfig, factor: int) -> PretrainedConfig:
    """Make a configuration small, in place, and those inside it."""
    depth, kinds = _depths(config)
    for name, value in list(vars(config).items()):
        small = _small(name, value, factor, depth, kinds)
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


def _depths(config: PretrainedConfig) -> tuple[int, int]:
    """The layers it has, and as how many it is to have: two, or one of each kind."""
    depth = int(getattr(config, "num_hidden_layers", 0) or 0)
    listed = [v for v in vars(config).values() if isinstance(v, list) and len(v) == depth > 2]
    kinds = max((len(set(map(str, v))) for v in listed), default=1)
    return depth, min(max(2, kinds), 4)


def _small(name: str, value: Any, factor: int, depth: int, kept: int) -> Any:
    if isinstance(value, PretrainedConfig):
        return shrink(value, factor)
    if isinstance(value, dict):
        return {k: _small(str(k), v, factor, depth, kept) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and value:
        if len(value) == depth > 2 and not _NO_LAYERS.search(name.replace("layer_types", "")):
            return _one_of_each(value, kept)
        return type(value)(_small(name, v, factor, depth, kept) for v in value)
    if name == "use_cache":
        return False
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return _small_number(name, value, factor, kept)


def _small_number(name: str, value: int, factor: int, kept: int) -> int:
    if re.search(r"(token|_)(id|index)$|_ids?$", name):
        return value if 0 <= value < VOCABULARY else VOCABULARY - 1 - value % 32
    if "vocab" in name:
        return min(value, VOCABULARY)
    if re.search(r"experts$", name) and "per" not in name:
        return min(value, EXPERTS)
    if "shared_layers" in name:
        return 0
    if _LAYERS.search(name) and not _NO_LAYERS.search(name):
        return min(value, kept)
    if "max_position" in name:
        return min(value, POSITIONS)
    if _WIDTH.search(name) and not _NO_WIDTH.search(name) and value >= 2 * factor:
        return value // factor if value % factor == 0 else value
    return value


def _one_of_each(value: Any, kept: int) -> Any:
    first = list({str(v): v for v in reversed(value)}.values())[::-1]
    return type(value)(sorted([*first, *value[:kept]][:kept], key=list(value).index))


def batches(model: Any) -> Iterator[Batch]:
    """Yield inputs that a model may accept, the likeliest first."""
    config, asked = model.config, set(_parameters(model))
    text: Batch = {"input_ids": torch.arange(5, 21).reshape(2, 8)}
    if "bbox" in asked:
        text["bbox"] = torch.zeros(2, 8, 4, dtype=torch.long)
    decoder = {"decoder_input_ids": torch.arange(5, 17).reshape(2, 6)}
    main = getattr(model, "main_input_name", "input_ids")
    images = [{"pixel_values": image} for image in _images(config)]
    sounds = [{"input_features": f} for f in _features(config)]
    waves = [{"input_values": w} for w in (torch.randn(2, 4000), *_features(config))]
    series = [
        {
            "past_values": torch.randn(
                2, _find(config, "context_length", 64), _find(config, "num_input_channels", 1)
            )
        }
    ]
    kinds = {"pixel_values": images, "input_features": sounds, "input_values": waves}
    kinds |= {"input_ids": [text], "past_values": series}
    ordered = [main, *(kind for kind in kinds if kind in asked and kind != main)]
    singles = [batch for kind in ordered for batch in kinds.get(kind, [])]
    for batch in singles:
        if "decoder_input_ids" in asked:
            yield {**batch, **decoder}
        yield batch
    for image in images if {"pixel_values", "input_ids"} <= asked else []:
        yield {**text, **image}
    for sound in (*sounds, *waves) if "input_ids" in asked else []:
        yield {**text, **sound}


def _images(config: PretrainedConfig) -> Iterator[Tensor]:
    size = _find(config, "image_size", 64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels, frames = _find(config, "num_channels", 3), _find(config, "num_frames", 0)
    if frames:
        yield torch.randn(2, frames, channels, height, width)
    yield torch.randn(2, channels, height, width)
    yield torch.randn(2, channels, 224, 224)


def _features(config: PretrainedConfig) -> Iterator[Tensor]:
    bins = next(
        (
            v
            for n in ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
            if (v := _find(config, n, 0))
        ),
        80,
    )
    frames = 2 * _find(config, "max_source_positions", 0) or _find(config, "max_length", 0) or 96
    for length in dict.fromkeys((frames, 96)):
        yield torch.randn(2, bins, length)
        yield torch.randn(2, length, bins)


def _find(config: PretrainedConfig, name: str, default: Any) -> Any:
    """Return the first value of a name in a configuration or those inside it."""
    value = getattr(config, name, None)
    if value is not None and not isinstance(value, PretrainedConfig):
        return value
    inner = (v for v in vars(config).values() if isinstance(v, PretrainedConfig))
    return next((v for c in inner if (v := _find(c, name, None)) is not None), default)


def _parameters(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


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
