"""Inputs of random values that a model's forward may accept, the likeliest first.

They are made of the names that it asks for, and of the sizes in its configuration.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

__all__ = ["Batch", "batches"]

Batch = dict[str, Any]

_PATCHES = 4  # along each side of a picture that is given as patches


def batches(model: Any) -> Iterator[Batch]:
    """Yield inputs that a model may accept, the likeliest first."""
    asked = inspect.signature(model.forward).parameters
    required = {name for name, p in asked.items() if p.default is p.empty}
    extras = dict(_extras(model.config, set(asked)))
    needed = {name: value for name, value in extras.items() if name in required}
    for batch in _main(model, set(asked)):
        yield {**needed, **batch}
        if len(extras) > len(needed):
            yield {**extras, **batch}


def _main(model: Any, asked: set[str]) -> Iterator[Batch]:
    """The inputs that are what a model is about: text, images, sounds, series, patches."""
    config = model.config
    kinds = {name: list(made) for name, made in _kinds(config, asked).items()}
    main = getattr(model, "main_input_name", "input_ids")
    ordered = [main, *(kind for kind in kinds if kind in asked and kind != main)]
    decoder = {"decoder_input_ids": torch.arange(5, 17).reshape(2, 6)}
    for batch in (one for kind in ordered for one in kinds.get(kind, [])):
        if "decoder_input_ids" in asked:
            yield {**batch, **decoder}
        yield batch
    for text in kinds["input_ids"] if "input_ids" in asked else []:
        for kind in ordered:
            yield from ({**text, **other} for other in kinds.get(kind, []) if kind != "input_ids")


def _kinds(config: PretrainedConfig, asked: set[str]) -> dict[str, Iterator[Batch]]:
    return {
        "input_ids": _texts(asked),
        "pixel_values": _pictures(config, asked),
        "pixel_values_videos": _videos(config),
        "input_features": ({"input_features": f} for f in _features(config)),
        "input_values": ({"input_values": w} for w in _waves(config)),
        "past_values": _series(config),
        "hidden_states": _grids(config) if "grid_thw" in asked else iter(()),
    }


def _texts(asked: set[str]) -> Iterator[Batch]:
    text = {"input_ids": torch.arange(5, 21).reshape(2, 8)}
    if "bbox" not in asked:
        yield text
    else:
        yield {**text, "bbox": torch.zeros(2, 8, 4, dtype=torch.long)}
        yield {**text, "bbox": torch.zeros(2, 8, 4)}


def _pictures(config: PretrainedConfig, asked: set[str]) -> Iterator[Batch]:
    if "spatial_shapes" in asked:
        patches = torch.randn(2, _PATCHES**2, _patch(config))
        yield {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(2, _PATCHES**2, dtype=torch.long),
            "spatial_shapes": torch.full((2, 2), _PATCHES),
        }
    if name := next((n for n in ("image_grid_thw", "grid_thw") if n in asked), None):
        grid = torch.tensor([[1, _PATCHES, _PATCHES]])
        for frames in (1, _find(config, "temporal_patch_size", 2)):
            yield {"pixel_values": torch.randn(_PATCHES**2, frames * _patch(config)), name: grid}
    height, width = _sides(config)
    channels, frames = _find(config, "num_channels", 3), _find(config, "num_frames", 0)
    rows = 2 if height * width <= 256 * 256 else 1
    if frames:
        yield {"pixel_values": torch.randn(rows, frames, channels, height, width)}
    for sides in ((height, width), (224, 224)):
        picture = torch.randn(rows, channels, *sides)
        yield {"pixel_values": picture}
        prompted = {f"prompt_{n}": picture for n in ("pixel_values", "masks")}
        if prompted.keys() <= asked:
            yield {"pixel_values": picture, **prompted}
    yield {"pixel_values": torch.randn(1, 2, channels, height, width)}  # a pair


def _videos(config: PretrainedConfig) -> Iterator[Batch]:
    height, width = _sides(config)
    channels = _find(config, "num_channels", 0) or _find(config, "in_chans", 3)
    frames = next((v for n in ("num_frames", "frames_per_clip") if (v := _find(config, n, 0))), 4)
    yield {"pixel_values_videos": torch.randn(1, frames, channels, height, width)}


def _grids(config: PretrainedConfig) -> Iterator[Batch]:
    """Patches of a picture in a row, and how they stood."""
    grid = torch.tensor([[1, _PATCHES, _PATCHES]])
    for frames in (_find(config, "temporal_patch_size", 1), 1):
        patches = torch.randn(_PATCHES**2, frames * _patch(config))
        yield {"hidden_states": patches, "grid_thw": grid}


def _features(config: PretrainedConfig) -> Iterator[Tensor]:
    names = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
    bins = next((v for n in names if (v := _find(config, n, 0))), 80)
    frames = 2 * _find(config, "max_source_positions", 0) or _find(config, "max_length", 0) or 96
    for length in dict.fromkeys((frames, 96)):
        yield torch.randn(2, bins, length)
        yield torch.randn(2, length, bins)


def _waves(config: PretrainedConfig) -> Iterator[Tensor]:
    yield torch.randn(2, 3840)
    yield torch.randn(2, 1, 3840)
    yield from _features(config)


def _series(config: PretrainedConfig) -> Iterator[Batch]:
    length, channels = _past(config), _find(config, "num_input_channels", 1)
    yield {"past_values": torch.randn(2, length, channels)}
    yield {"past_values": torch.randn(2, length)}


def _past(config: PretrainedConfig) -> int:
    """Return how much of a series is seen, with the lags that look back further."""
    lags: list[int] = _find(config, "lags_sequence", None) or [0]
    return int(_find(config, "context_length", 64) + max(lags))


def _extras(config: PretrainedConfig, asked: set[str]) -> Iterator[tuple[str, Tensor]]:
    """What else a forward asks for by name, whatever it is about."""
    shapes = {**_shapes(config), **_shapes_of_series(config)}
    wanted = {name: torch.randn(shape) for name, shape in shapes.items()} | _counted(config)
    yield from ((name, value) for name, value in wanted.items() if name in asked)


def _shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    hidden = _find(config, "hidden_size", 64)
    return {
        "query_embeds": (2, _find(config, "num_query_tokens", 4), hidden),
        "encoder_hidden_states": (2, 6, _find(config, "encoder_hidden_size", hidden)),
        "state": (2, _find(config, "max_state_dim", 32)),
        "actions": (2, _find(config, "chunk_size", 4), _find(config, "max_action_dim", 32)),
        "prompt_depth": (2, 1, 32, 32),
        "visual_feats": (2, 6, _find(config, "visual_feat_dim", 64)),
        "visual_pos": (2, 6, 4),
    }


def _shapes_of_series(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    past, future = _past(config), _find(config, "prediction_length", 4)
    known = _find(config, "num_time_features", 0)
    return {
        "past_time_features": (2, past, known),
        "future_values": (2, future),
        "future_time_features": (2, future, known),
    }


def _counted(config: PretrainedConfig) -> Batch:
    length = 2 * _find(config, "max_source_positions", 0) or 96
    return {
        "qformer_input_ids": torch.arange(5, 13).reshape(2, 4),
        "input_features_mask": torch.ones(2, length, dtype=torch.long),
        "past_values_padding": torch.zeros(2, _past(config)),
        "past_observed_mask": torch.ones(2, _past(config)),
        "merge_sizes": torch.ones(1, dtype=torch.long),
        "freq": torch.zeros(2, 1, dtype=torch.long),
        "target_sizes": torch.full((2, 2), _PATCHES),
        "input_features": next(_features(config)),
    }


def _sides(config: PretrainedConfig) -> tuple[int, int]:
    size = _find(config, "image_size", 0) or _find(config, "crop_size", 64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height, width


def _patch(config: PretrainedConfig) -> int:
    """Return how many numbers a patch of one frame is."""
    side = _find(config, "patch_size", 16)
    channels = next((v for n in ("num_channels", "in_channels") if (v := _find(config, n, 0))), 3)
    return int(channels * (math.prod(side) if isinstance(side, (list, tuple)) else side**2))


def _find(config: PretrainedConfig, name: str, default: Any) -> Any:
    """Return the first value of a name in a configuration or those inside it."""
    value = getattr(config, name, None)
    if value is not None and not isinstance(value, PretrainedConfig):
        return value
    inner = (v for v in vars(config).values() if isinstance(v, PretrainedConfig))
    return next((v for c in inner if (v := _find(c, name, None)) is not None), default)
