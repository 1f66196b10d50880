"""A plan before training: parameters, FLOPs and memory of a step, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from torch_xgb.boosters.recompute import Recompute
from torch_xgb.checks import finite_positive, one_of, positive_integer
from torch_xgb.forecast.methods import Steps, boosted, full, lora
from torch_xgb.forecast.needs import Forecast, Need
from torch_xgb.forecast.shapes import fake_batch, fake_model, unpacked
from torch_xgb.schedule.course import Course
from torch_xgb.settings import Settings
from torch_xgb.targets.designated import check_rank, select_layers
from torch_xgb.weights.merge import MERGE_PRECISIONS

__all__ = ["plan"]


def plan(
    model: Any,  # noqa: ANN401
    *,
    batch: int = 1,
    length: int = 512,
    dtype: torch.dtype = torch.bfloat16,
    card: float | None = None,
    lora_r: int = 8,
    inputs: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> Forecast:
    """Predict what a training step needs, without weights, GPU or network.

    The step is run on fake tensors, operator by operator, on a few of the blocks; since blocks are
    alike, the rest follows exactly. Memory is that of torch's allocator with AdamW as the base: a
    kernel's own scratch, a CUDA context and fragmentation are not in it.

    Args:
        model: A known name (``torch_xgb.forecast.KNOWN``), a folder with a ``config.json``,
            a transformers config, or a module, whose dtype counts.
        batch: Rows.
        length: Tokens a row.
        dtype: Of the weights.
        card: GiB of a card to be judged by.
        lora_r: The rank of the LoRA compared with.
        inputs: The keyword arguments of a call, for models other than transformers' or other than
            of text: then batch and length are theirs.
        **settings: Any further arguments of ``BoostedLowRankOptimizer``. Those count that memory or
            FLOPs depend on: layers_per_booster, r, adapter, bias, carry, checkpointing,
            lora_dropout, merge_precision, residual_device, target_modules, exclude_modules and
            target_parameters; modules trained in full do not.

    Returns:
        What each method needs, in bytes and FLOPs; printed, a table.

    Raises:
        ImportError: If transformers is needed and missing.
        TypeError: If a setting is unknown or of the wrong type.
        ValueError: If the model is unknown, has no targets, or cannot be run without weights; or if
            an argument is out of range.

    Example:
        >>> from torch import nn
        >>> class Model(nn.Sequential):
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return super().forward(x).square().mean()  # the loss
        >>> model = Model(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(12)])
        >>> forecast = plan(model, inputs={"x": torch.zeros(32, 64)}, card=1)
        >>> boosted, *_, full = forecast.needs
        >>> forecast.drawn, forecast.fits(boosted), boosted.peak < full.peak
        (8, True, True)
    """
    lora_r = positive_integer("lora_r", lora_r)
    card = None if card is None else finite_positive("card", card)
    batch, length = positive_integer("batch", batch), positive_integer("length", length)
    told = _told(settings)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = fake_model(model, dtype, mode).train()
    with mode, unpacked():
        if inputs is None:
            given = fake_batch(fake, batch, length)
        else:
            given = {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}
            batch, length = _size(given)
        names = (told.target_modules, told.exclude_modules, (), told.target_parameters)
        layers = select_layers(fake, *names)
        with unset_fake_temporarily():  # it draws booster 0
            course = Course(told, len(layers))
        check_rank(max(course.most_r, lora_r), layers)
        Recompute(fake, told.checkpointing).attach()
        step = Steps(fake, layers, given, alike=isinstance(told.checkpointing, bool))
        needs: tuple[Need, ...] = (
            boosted(step, told, course),
            lora(step, lora_r, None),
            lora(step, lora_r, torch.float32),
            full(step),
        )
    if next(fake.parameters()).dtype == torch.float32:
        needs = (*needs[:2], needs[3])  # PEFT's adapters are float32 either way
    return Forecast(
        model=model if isinstance(model, str) else type(fake).__name__,
        parameters=sum(p.numel() for p in fake.parameters()),
        blocks=len(layers),
        targets=sum(len(layer.targets) for layer in layers),
        drawn=course.most_L_s,
        batch=batch,
        length=length,
        needs=needs,
        card=card,
    )


def _size(inputs: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return rows and tokens a row; 0 tokens where there are none."""
    ids = inputs.get("input_ids")
    first = next(iter(inputs.values())) if ids is None else ids
    return first.shape[0], 0 if ids is None else ids.shape[1]


def _told(given: Mapping[str, Any]) -> Settings:
    if unknown := given.keys() - {field.name for field in fields(Settings)}:
        raise TypeError(
            f"plan takes its own arguments and those of the optimizer, got {sorted(unknown)}"
        )
    told = Settings(**given)
    one_of("merge_precision", told.merge_precision, MERGE_PRECISIONS)
    return told
