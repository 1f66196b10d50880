"""What an optimizer tells its ledger: that a booster begins, and what it became."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, distributed, nn

from torch_xgb.forms import Form, Update
from torch_xgb.ledger import Chain
from torch_xgb.record import BoosterRecord, ChainHeader, originals
from torch_xgb.report import MergeReport
from torch_xgb.targets import Layer, Weight

__all__ = ["Recorder", "recorder"]


@dataclass(eq=False)
class Recorder:
    """Writes a run's boosters down.

    Attributes:
        chain: Where.
        modules: The modules trained in full, by name.
    """

    chain: Chain
    modules: Mapping[str, nn.Module]

    def check(self, booster_index: int) -> None:
        """Make sure, before a step, that the chain is this run's: see ``Chain.check_next``."""
        self.chain.check_next(booster_index)

    def write(self, report: MergeReport, updates: Iterable[tuple[Weight, Update]]) -> None:
        """Write down a booster that is about to be merged.

        Before the merge: if the disk is full, the model is unharmed, and the booster still pending.
        """
        self.chain.append(BoosterRecord.of(report, updates, self._saved()))

    def check_resumable(self, booster_index: int, run: str | None = None) -> None:
        """Make sure that ``resume`` will not fail: see ``Chain.check_resumable``."""
        self.chain.check_resumable(booster_index, run)

    def resume(self, booster_index: int, run: str | None = None) -> None:
        """Go on from a checkpoint taken in booster t: see ``Chain.truncate``."""
        self.chain.truncate(booster_index, run)

    def _saved(self) -> dict[str, Tensor]:
        # Looked up anew: load_state_dict(assign=True) replaces Parameters.
        return {
            f"{name}.{inner}": parameter
            for name, module in self.modules.items()
            for inner, parameter in module.named_parameters()
        }


def recorder(
    record: bool | str | os.PathLike[str] | None,
    model: nn.Module,
    layers: Sequence[Layer],
    form: Form,
    modules: Mapping[str, nn.Module],
    *,
    adapter: str,
    precision: str,
    seed: int,
) -> Recorder | None:
    """Return a recorder, or None if nothing is to be recorded here.

    Of several processes, which all merge the same, only the first writes to a folder.

    Args:
        record: None, True (in memory), or the path of a folder.
        model: The model, with the weights the run begins with.
        layers: Its layers.
        form: What a pair is.
        modules: The modules trained in full, by name.
        adapter: The form's name.
        precision: The policy of the merges.
        seed: Of stochastic rounding.

    Raises:
        TypeError: If ``record`` is neither.
        ValueError: If the folder holds a run of another configuration, or the model's weights are
            sharded over processes.
    """
    if record is None:
        return None
    _require_whole(weight for layer in layers for t in layer.targets for weight in form.weights(t))
    if record is not True and not _is_first_process():
        return None
    header = ChainHeader.of(
        model, layers, form, modules, adapter=adapter, precision=precision, seed=seed
    )
    return Recorder(Chain.create(record, header, partial(originals, model, header)), modules)


def _require_whole(weights: Iterable[Weight]) -> None:
    for weight in weights:
        stored = weight.parameter.detach()
        if type(stored) is not Tensor or not stored.numel():
            raise ValueError(
                f"{weight.name} is not a whole plain tensor here (a {type(stored).__name__} of "
                f"shape {tuple(stored.shape)}), and a ledger keeps whole weights: pass record=None "
                "for a model whose weights are sharded over processes"
            )


def _is_first_process() -> bool:
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )
