"""Savers that leave out what requires no gradient would save nothing: they are refused."""

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
)

from tiny import stack
from torch_xgb import BoostedLowRankOptimizer


@pytest.mark.parametrize("wrappers", [0, 1, 40])
def test_ignore_frozen_params_is_refused_while_weights_are_frozen(wrappers: int) -> None:
    model = stack().requires_grad_(True)
    optimizer = BoostedLowRankOptimizer(torch.optim.AdamW, model, modules_to_save=[], lr=1e-2)
    outer = model
    for _ in range(wrappers):
        outer = nn.Sequential(outer)
    frozen = StateDictOptions(ignore_frozen_params=True)
    with pytest.raises(RuntimeError, match="ignore_frozen_params=True would leave out"):
        get_model_state_dict(outer, options=frozen)
    with pytest.raises(RuntimeError, match="ignore_frozen_params=True would leave out"):
        get_state_dict(outer, (), options=frozen)
    assert len(get_model_state_dict(outer)) == len(model.state_dict())
    optimizer.finalize()
    assert len(get_model_state_dict(outer, options=frozen)) == len(model.state_dict())
