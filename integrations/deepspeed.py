"""DeepSpeed, ZeRO 0 to 3: import this module, then train as with any optimizer.

Importing it makes two things work:

- ``deepspeed.initialize(model=model, optimizer=BoostedLowRankOptimizer(AdamW, model, …))``;
- ``"optimizer": {"type": "BoostedLowRank", "params": {"base": "AdamW", "kappa": 8, "lr": 1e-3}}``
  in any DeepSpeed configuration, be it accelerate's or the Trainer's.

``boosted(engine).finalize()`` ends the training. docs/how-to/deepspeed.md says what has run where.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import deepspeed
import deepspeed.ops
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

from torch_xgb import BoostedLowRankOptimizer

from .unwrapping import find_boosted
from .zero.client import Client
from .zero.configuration import NAME, from_json
from .zero.limits import refuse
from .zero.partition import Partition

__all__ = ["Partition", "boosted"]


def boosted(engine: object) -> BoostedLowRankOptimizer:
    """Return the boosted optimizer of an engine, or of whatever wraps its optimizer.

    Raises:
        TypeError: If there is none.
    """
    if (found := find_boosted(engine)) is None:
        raise TypeError(f"{type(engine).__name__} does not train with a BoostedLowRankOptimizer")
    return found


# Everything of DeepSpeed that is touched, in one place: methods of its engine, each wrapped in one
# of the functions below, which call the original. An engine with another optimizer never notices.


def _is_supported_optimizer(original: Callable[..., Any], engine: Any, name: str) -> Any:  # noqa: ANN401
    """The name in the JSON: DeepSpeed looks it up in torch.optim."""
    return name == NAME or original(engine, name)


def _configure_distributed_model(original: Callable[..., Any], engine: Any, model: Any) -> None:  # noqa: ANN401
    """Before the model is cast, moved and listed, the factors leave it."""
    if isinstance(engine.client_optimizer, BoostedLowRankOptimizer):
        engine.client_optimizer.boosting.set_apart()
    original(engine, model)


def _configure_optimizer(
    original: Callable[..., Any],
    engine: Any,  # noqa: ANN401
    client_optimizer: Any,  # noqa: ANN401
    model_parameters: Any,  # noqa: ANN401
) -> None:
    """Where DeepSpeed takes or builds an optimizer and wraps it, it gets the ``Client``."""
    if client_optimizer is None and engine.optimizer_name() == NAME:
        client_optimizer = from_json(engine.module, engine.optimizer_params() or {})
    if not isinstance(client_optimizer, BoostedLowRankOptimizer):
        original(engine, client_optimizer, model_parameters)
        return
    refuse(engine, client_optimizer)
    client = Client(client_optimizer, engine)
    # ZeRO-Offload would insist on its own CPU Adam, which is compiled on first use.
    engine._config.zero_force_ds_cpu_optimizer = False
    original(engine, client, model_parameters)
    engine._boosted_client = client
    wrapper = engine.optimizer
    if wrapper is not client:
        wrapper.finalize = client.finalize
        if engine.fp16_enabled():  # the factors may overflow where what ZeRO sees does not
            finite = wrapper.has_overflow
            wrapper.has_overflow = lambda *args, **kw: finite(*args, **kw) or client.overflowed


def _take_model_step(original: Callable[..., Any], engine: Any, *args: Any) -> None:  # noqa: ANN401
    """One step: the wrapped optimizer's, the scheduler's, gradients to zero."""
    client = _client(engine)
    if client is None:
        original(engine, *args)
        return
    client.begin()
    applied = False
    try:
        original(engine, *args)
        applied = engine._step_applied
    finally:
        client.end(applied)


def _clip_fp32_gradients(original: Callable[..., Any], engine: Any) -> None:  # noqa: ANN401
    """Without ZeRO the engine clips what it finds in the model; the Client clips all there is."""
    if _client(engine) is None:
        original(engine)


def _save_checkpoint(original: Callable[..., Any], engine: Any, *args: Any, **kw: Any) -> Any:  # noqa: ANN401
    """Files that zero_to_fp32 reads hold weights as they are: the pending booster goes in."""
    client = _client(engine)
    if client is None:
        return original(engine, *args, **kw)
    client.hold_state()
    try:
        with client.optimizer.boosting.folded_in():
            return original(engine, *args, **kw)
    finally:
        client.release_state()


def _zero3_consolidated_16bit_state_dict(
    original: Callable[..., Any],
    engine: Any,  # noqa: ANN401
    *args: Any,
    **kw: Any,
) -> Any:  # noqa: ANN401
    """``save_16bit_model`` and what accelerate and the Trainer save gathers weights by itself."""
    client = _client(engine)
    if client is None:
        return original(engine, *args, **kw)
    with client.optimizer.boosting.folded_in():
        return original(engine, *args, **kw)


def _as_it_is(original: Callable[..., Any], engine: Any, *args: Any, **kw: Any) -> Any:  # noqa: ANN401
    """What is looked at by every touched method is all there is to do."""
    return original(engine, *args, **kw)


def _refuse_trained_only(original: Callable[..., Any], *args: Any, **kw: Any) -> None:  # noqa: ANN401
    """Refuse to save without what never requires a gradient, and is trained all the same."""
    client = _client(args[0])
    if client is None or not client.optimizer.boosting.attached:
        return
    given = inspect.signature(original).bind_partial(*args, **kw).arguments
    if given.get("exclude_frozen_parameters"):
        raise ValueError(
            "exclude_frozen_parameters=True would leave out every weight that the boosters are "
            "merged into: they are trained, and never require a gradient. Save without it"
        )


def _client(engine: Any) -> Client | None:  # noqa: ANN401
    client: Client | None = engine.__dict__.get("_boosted_client")
    return client


def _touch(name: str, replacement: Callable[..., Any]) -> None:
    original = getattr(DeepSpeedEngine, name, None)
    if original is None:
        raise ImportError(
            f"deepspeed {deepspeed.__version__} has no DeepSpeedEngine.{name}, which "
            "torch_xgb.integrations.deepspeed builds on; it is made for deepspeed 0.19"
        )

    @functools.wraps(original)
    def touched(engine: Any, *args: Any, **kw: Any) -> Any:  # noqa: ANN401
        _refuse_trained_only(original, engine, *args, **kw)
        return replacement(original, engine, *args, **kw)

    setattr(DeepSpeedEngine, name, touched)


_touch("_is_supported_optimizer", _is_supported_optimizer)
_touch("_configure_distributed_model", _configure_distributed_model)
_touch("_configure_optimizer", _configure_optimizer)
_touch("_take_model_step", _take_model_step)
_touch("clip_fp32_gradients", _clip_fp32_gradients)
_touch("save_checkpoint", _save_checkpoint)
_touch("save_16bit_model", _as_it_is)
_touch("module_state_dict", _as_it_is)
_touch("_zero3_consolidated_16bit_state_dict", _zero3_consolidated_16bit_state_dict)
# ZeRO asks for a flag in the configuration to accept any class but those listed here.
ZERO_SUPPORTED_OPTIMIZERS.append(Client)
if get_accelerator().device_name() == "cpu":
    # Collectives through shared memory: compiled for minutes at the first init_distributed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
