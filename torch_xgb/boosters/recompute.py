"""Checkpointing of a model's blocks: computed again in backward, so that little of them is kept.

A block below the lowest drawn one has no backward pass. It saves nothing either way, and is not
computed again: what checkpointing costs and what it saves both begin at the lowest drawn block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.slots import Slots
from torch_xgb.checks import number
from torch_xgb.targets.blocks import find_blocks
from torch_xgb.targets.layers import is_linear

__all__ = ["Recompute"]

# What transformers' blocks call their cache of keys and values.
_CACHES = ("past_key_values", "past_key_value", "layer_past")


class Recompute:
    """Puts ``Recomputed`` in the place of the blocks' ``forward``, and takes it away again.

    Args:
        model: Whose blocks.
        share: How many of them, spread evenly, to trade time for memory.

    Raises:
        TypeError: If the share is no number or bool.
        ValueError: If it is not in (0, 1], the model has no repeated blocks, or they keep running
            statistics, which a second computation would update again.
    """

    def __init__(self, model: nn.Module, share: bool | float) -> None:
        every = [] if share is False else [block for _, block in find_blocks(model, is_linear)]
        share = _valid(share)
        self.blocks = [
            block for i, block in enumerate(every) if int((i + 1) * share) > int(i * share)
        ]
        self.forwards: list[Recomputed] = []
        if share and not every:
            raise ValueError(
                "checkpointing computes repeated blocks again in backward, and "
                f"{type(model).__name__} has none: pass checkpointing=False"
            )
        stateful = [m for b in self.blocks for m in b.modules() if isinstance(m, _BatchNorm)]
        if any(m.track_running_stats for m in stateful):
            raise ValueError(
                "checkpointing would update the running statistics of batch normalisation twice a "
                "step: pass checkpointing=False"
            )

    def attach(self, adapters: Iterable[Adapter] | None = None) -> None:
        """Have the blocks computed again from now on.

        Args:
            adapters: Those of all layers. Without them, any block may have a backward pass.
        """
        inside: defaultdict[nn.Module, list[Adapter]] = defaultdict(list)
        for adapter in adapters or ():
            for module in adapter.target.modules:
                inside[module].append(adapter)
        for block in self.blocks:
            held = [adapter for module in block.modules() for adapter in inside.get(module, ())]
            self.forwards.append(Recomputed(block, None if adapters is None else held))

    def detach(self) -> None:
        """Give them their own ``forward`` back."""
        for forward in self.forwards:
            forward.remove()
        self.forwards = []


class Recomputed:
    """A block's ``forward`` that keeps the block's inputs, and the rest only until it returns.

    It stands on the instance, and not in a hook, for a hook cannot run the block again. The block's
    own hooks stay outside, as those that shard it must.

    Args:
        block: The block, frozen but for what is trained in full.
        adapters: Of the targets inside; None is of any that somebody may put there.

    Attributes:
        on: Whether it does anything; somebody else may have wrapped it before it was removed.
    """

    def __init__(self, block: nn.Module, adapters: Sequence[Adapter] | None) -> None:
        self.block, self.adapters = block, adapters
        own = [m for m in block.modules() if not isinstance(m, Slots)]
        parameters = [p for m in own for p in m._parameters.values() if p is not None]
        self.trained = adapters is None or any(p.requires_grad for p in parameters)
        self.before = vars(block).get("forward")  # accelerate puts one there
        self.on = True
        block.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call the block."""
        forward = self.before or partial(type(self.block).forward, self.block)
        if not self.on or not self.block.training or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if getattr(self.block, "gradient_checkpointing", False):  # transformers' does it already
            return forward(*args, **kwargs)
        # A cache that a block writes to would be written to again when the block is computed again.
        # An empty one is done without, as transformers' checkpointing does; a filled one is input.
        caches = [name for name in _CACHES if hasattr(kwargs.get(name), "get_seq_length")]
        if any(_is_filled(kwargs[name], self.block) for name in caches):
            return forward(*args, **kwargs)
        kwargs |= dict.fromkeys(caches)
        # A compiler refuses to compute again what draws random numbers and has no backward pass.
        if not self._has_backward(args, kwargs):
            return forward(*args, **kwargs)
        # As an argument: of devices that no argument lies on, the random state would not be kept.
        return checkpoint(_call, forward, kwargs, *args, use_reentrant=False)

    def _has_backward(self, args: Any, kwargs: dict[str, Any]) -> bool:  # noqa: ANN401
        if self.trained or any(a.bound is not None for a in self.adapters or ()):
            return True
        given = (*args, *kwargs.values())
        return any(isinstance(one, Tensor) and one.requires_grad for one in given)

    def remove(self) -> None:
        """Give the block the ``forward`` back that it had."""
        self.on = False
        if vars(self.block).get("forward") is not self:
            return
        del self.block.forward
        if self.before is not None:
            self.block.forward = self.before


def _is_filled(cache: Any, block: nn.Module) -> bool:  # noqa: ANN401
    """Tell whether a block reads anything from a cache, which has a part for every layer."""
    known = (getattr(module, "layer_idx", None) for module in block.modules())
    layer = next((index for index in known if isinstance(index, int)), 0)
    try:
        return bool(cache.get_seq_length(layer))
    except ValueError:  # of linear attention, which has a state and no length
        return bool(cache.has_previous_state(layer))


def _call(forward: Any, kwargs: dict[str, Any], *args: Any) -> Any:  # noqa: ANN401
    return forward(*args, **kwargs)


def _valid(share: bool | float) -> float:
    if isinstance(share, bool):
        return float(share)
    allowed = "True, False, or a share of the blocks in (0, 1]"
    if not 0 < (given := number("checkpointing", share, allowed)) <= 1:
        raise ValueError(f"checkpointing must be {allowed}, got {share!r}")
    return given
