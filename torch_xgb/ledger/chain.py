"""The chain of boosters, kept: score, roll back, apply, save, export."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from torch_xgb.checks import integer
from torch_xgb.ledger.archive import Archive
from torch_xgb.ledger.export import ExportReport, write_adapter
from torch_xgb.ledger.header import ChainHeader
from torch_xgb.ledger.plot import draw_chain
from torch_xgb.ledger.records import BoosterRecord
from torch_xgb.ledger.restore import Restoration
from torch_xgb.ledger.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Chain", "ExportReport"]

PathLike = str | os.PathLike[str]


class Chain:
    """Every booster of a run in order, in memory or on disk, read one at a time.

    ``chain[t]`` is booster t's ``BoosterRecord``; ``len``, iteration and negative indices work as a
    list's. Made by ``BoostedLowRankOptimizer(..., record=...)`` as its ``chain``, or by
    ``Chain.load(path)``, also while the run that writes it goes on.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch_xgb import BoostedLowRankOptimizer
        >>> model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)])
        >>> optimizer = BoostedLowRankOptimizer(
        ...     torch.optim.AdamW, model, kappa=1, record=True, lr=1e-2
        ... )
        >>> for t, score in enumerate([0.7, 0.9, 0.8]):  # kappa=1: a step is a booster
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     optimizer.chain.score(t, score)
        >>> model = optimizer.finalize()
        >>> optimizer.chain
        Chain(3 boosters, 3 scored, in 'memory')
        >>> model = optimizer.chain.rollback(model, to=optimizer.chain.best)
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    @classmethod
    def load(cls, path: PathLike) -> Chain:
        """Open a folder, or a file written by ``save``; one still growing is read as it is now.

        Raises:
            ValueError: If there is no ledger.
        """
        return cls(Archive.at(Path(path)))

    @property
    def header(self) -> ChainHeader:
        """What all boosters have in common."""
        return self._archive.header

    @property
    def scores(self) -> Scores:
        """The scores given so far, by booster."""
        return self._archive.scores

    def __len__(self) -> int:
        return len(self._archive)

    def __getitem__(self, t: int) -> BoosterRecord:
        integer("a booster's index", t)
        if not -len(self) <= t < len(self):
            raise IndexError(f"no booster {t}: the ledger holds {len(self)}")
        return self._archive.sections.record(t % len(self))

    def __iter__(self) -> Iterator[BoosterRecord]:
        return self._archive.sections.records(len(self) - 1)

    def __repr__(self) -> str:
        scored = f"{len(self.scores)} scored"
        return f"Chain({len(self)} boosters, {scored}, in {self._archive.where!r})"

    @property
    def run(self) -> str | None:
        """The name of the run, random and kept with the chain; None before its first step."""
        return self.header.run if self._archive.begun else None

    # Scores

    def score(self, t: int, value: float) -> None:
        """Give booster t a score: the higher, the better the model after it (of a loss, −loss).

        It is a score of the model that ``rollback(model, to=t)`` gives: evaluate right after
        booster t was merged, as a function given to ``optimizer.on_merge`` does. A few steps later
        the model holds a part of the next booster.

        Raises:
            ValueError: If there is no booster t, or the score is not finite.
        """
        self.scores.give(self._booster("t", t, 0), value)

    @property
    def best(self) -> int:
        """The booster with the highest score, the first of equals.

        Raises:
            RuntimeError: If none has one.
        """
        return self.scores.best

    @property
    def best_iteration(self) -> int:
        """The same, by XGBoost's name."""
        return self.scores.best

    def should_stop(self, early_stopping_rounds: int) -> bool:
        """Tell whether the last n scored boosters brought no better score, as XGBoost stops.

        What is counted are boosters that have a score, not evaluations and not boosters without
        one: scores given to every tenth booster make n rounds of 10·n boosters.

        Args:
            early_stopping_rounds: n, a positive integer.
        """
        return self.scores.should_stop(early_stopping_rounds)

    # Back into models

    def rollback(self, model: nn.Module, to: int) -> nn.Module:
        """Give a model the weights it had after booster ``to``; −1 gives the original ones.

        The original weights are put back and the boosters merged anew, under the same policy: on
        the same kind of device the result is bitwise the model of a run that ended there. The
        modules trained in full are as they were then, too.

        Args:
            model: The trained model, or any of its architecture and dtype; changed in place.
            to: t, at most ``len(chain) - 1``.

        Returns:
            The model.

        Raises:
            RuntimeError: If an optimizer is still attached to the model, or nothing was recorded.
            ValueError: If there is no booster t, the ledger belongs to another model, or anything
                that is needed of it is damaged. Nothing is changed.
        """
        to = self._booster("to", to, -1)
        Restoration(model, self._archive).roll_back(to)
        return model

    def apply(
        self, model: nn.Module, to: int | None = None, exact: bool | None = None
    ) -> nn.Module:
        """Turn the original model into the trained one.

        Args:
            model: With the weights the run began with; changed in place.
            to: The last booster to apply, by default the last there is.
            exact: False merges booster by booster, bitwise as in training. True sums all boosters
                in float64 and rounds once, closer to their sum than training in 16 bits came. None
                takes the first for weights of 32 or 64 bits and the second for others.

        Returns:
            The model.

        Raises:
            RuntimeError: If an optimizer is still attached to the model, or nothing was recorded.
            ValueError: If there is no booster ``to``, the model's weights are not the original
                ones, or anything that is needed of the ledger is damaged. Nothing is changed.
        """
        to = self._last(to)
        Restoration(model, self._archive).apply(to, exact)
        return model

    def delta(self, name: str, to: int | None = None) -> tuple[Tensor, Tensor]:
        """Return a weight's whole update as one product, the boosters' factors side by side.

        Args:
            name: Of a weight or bias, e.g. ``"encoder.layer.0.output.dense.weight"``.
            to: The last booster to count, by default the last there is.

        Returns:
            left (out, R) with the scales folded in, and right (R, in), in float64; of a stack of
            experts left (E, out, R) and right (E, R, in).

        Raises:
            ValueError: If the name is not of a weight the ledger follows.
        """
        if name not in self.header.weights:
            known = ", ".join(list(self.header.weights)[:3])
            raise ValueError(f"no weight {name!r} in the ledger; it follows {known}, …")
        return self._archive.delta(name, self._last(to))

    # Out of here

    def save(self, file: PathLike) -> None:
        """Pack everything into one safetensors file, which ``load`` reads.

        Raises:
            RuntimeError: If nothing was recorded.
            ValueError: If anything of the ledger is damaged, or there is a folder of this name.
        """
        self._archive.require_begun()
        if Path(file).is_dir():
            raise ValueError(f"a packed ledger is a file, and {os.fspath(file)!r} is a folder")
        self._archive.sections.verify(len(self) - 1, originals=True)
        self._archive.save(Path(file))

    def to_peft(
        self,
        folder: PathLike,
        rank: int | None = None,
        base_model_name_or_path: str | None = None,
        to: int | None = None,
    ) -> ExportReport:
        """Write the chain as a LoRA adapter that ``peft.PeftModel.from_pretrained`` loads.

        Args:
            folder: Where to write the adapter, its configuration and a model card.
            rank: None keeps the whole update; k keeps each weight's best approximation of rank k.
            base_model_name_or_path: The original model, by default what it was loaded from.
            to: The last booster to export, by default the last there is.

        Returns:
            The rank and the relative error (Frobenius) per weight, and the error in total.

        Raises:
            RuntimeError: If nothing was recorded.
            ValueError: If a LoRA adapter cannot express the chain.
        """
        self._archive.require_begun()
        last = self._last(to)
        base = base_model_name_or_path or self.header.base_model
        return write_adapter(
            Path(folder),
            replace(self.header, base_model=base),
            lambda name: self.delta(name, last),
            self._archive.sections.saved(last),
            rank,
            last + 1,
        )

    def plot(self, path: PathLike | None = None) -> Figure:
        """Draw update norms per layer and booster, in total, and the effective rank over time.

        Args:
            path: Where to save the figure, in the format of its ending.

        Returns:
            The matplotlib figure.
        """
        facts = [self._archive.sections.facts(t) for t in range(len(self))]
        figure = draw_chain(self.header, facts, self.delta, self.scores)
        if path is not None:
            figure.savefig(path)
        return figure

    # Inside

    def _booster(self, argument: str, t: int, lowest: int) -> int:
        integer(argument, t)
        if not lowest <= t < len(self):
            raise ValueError(
                f"{argument} must be from {lowest} to {len(self) - 1}, for the ledger holds "
                f"{len(self)} boosters; got {t}"
            )
        return t

    def _last(self, to: int | None) -> int:
        return len(self) - 1 if to is None else self._booster("to", to, -1)
