"""The chain of boosters, kept: append, score, roll back, apply, save, export."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_xgb.export import ExportReport, write_adapter
from torch_xgb.fingerprints import fingerprint
from torch_xgb.fold import add_product
from torch_xgb.history import History
from torch_xgb.plot import draw_chain
from torch_xgb.record import BoosterRecord, ChainHeader, snapshot
from torch_xgb.replay import find, replay, require_original, require_plain
from torch_xgb.scores import Scores
from torch_xgb.store import Folder, Memory, Packed, Store, import_safetensors, pack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Chain"]

PathLike = str | os.PathLike[str]
_HEADER, _SCORES = "chain", "scores"


class Chain:
    """Every booster of a run in order, in memory or on disk, read one at a time.

    ``chain[t]`` is booster t's ``BoosterRecord``; ``len``, iteration and negative indices work as a
    list's. Made by ``BoostedLowRankOptimizer(..., record=...)`` as its ``chain``, or by ``load``.

    Attributes:
        header: What all boosters have in common.
        scores: The scores given so far, by booster.

    Example:
        >>> chain = Chain.load("run")  # doctest: +SKIP
        >>> chain.score(3, 0.91)  # doctest: +SKIP
        >>> model = chain.rollback(model, to=chain.best)  # doctest: +SKIP
    """

    def __init__(
        self,
        store: Store,
        header: ChainHeader,
        base: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.header = header
        self._store = store
        self._base = base
        self._history = History(store)
        self.scores = Scores(store, len(self._history))
        # Whether the original weights in the store are this run's.
        self._begun = base is None and self._history.has_originals

    @classmethod
    def create(
        cls, record: bool | PathLike, header: ChainHeader, base: Callable[[], Mapping[str, Tensor]]
    ) -> Chain:
        """Begin a chain, or open a folder's to go on with it.

        Args:
            record: True for memory, or the path of a folder.
            header: What the boosters will have in common.
            base: Returns the original weights and saved Parameters, as stored, by name. Called
                once, before the first booster is trained.

        Raises:
            TypeError: If ``record`` is neither.
            ValueError: If the folder holds the boosters of a run with another configuration.
        """
        if record is True:
            return cls(Memory(), header, base)
        if not isinstance(record, (str, os.PathLike)):
            raise TypeError(f"record must be None, True or a path, got {record!r}")
        import_safetensors()
        folder = Folder(Path(record))
        folder.prepare()
        if not len(History(folder)):
            return cls(folder, header, base)
        chain = cls.load(record)
        if differing := chain.header.differences(header):
            raise ValueError(
                f"{str(record)!r} holds {len(chain)} boosters of a run with another configuration "
                f"or model (it differs in {', '.join(differing)}): choose another path"
            )
        return chain

    @classmethod
    def load(cls, path: PathLike) -> Chain:
        """Open a folder, or a file written by ``save``; one still growing is read as it is now.

        Raises:
            ValueError: If there is no ledger.
        """
        place = Path(path)
        store: Store = Packed(place) if place.is_file() else Folder(place)
        facts = store.document(_HEADER)
        if facts is None:
            raise ValueError(f"no ledger at {str(path)!r}: a folder with chain.json is one")
        return cls(store, ChainHeader.read(facts))

    def __len__(self) -> int:
        return len(self._history)

    def __getitem__(self, t: int) -> BoosterRecord:
        if isinstance(t, bool) or not isinstance(t, int):
            raise TypeError(f"a booster's index must be an integer, got {t!r}")
        if not -len(self) <= t < len(self):
            raise IndexError(f"no booster {t}: the ledger holds {len(self)}")
        return self._history.record(t % len(self))

    def __iter__(self) -> Iterator[BoosterRecord]:
        return iter(self._history.records(len(self) - 1))

    def __repr__(self) -> str:
        where = getattr(self._store, "path", "memory")
        return f"Chain({len(self)} boosters, {len(self.scores)} scored, in {str(where)!r})"

    @property
    def run(self) -> str | None:
        """The name of the run, random and kept with the chain; None before its first step."""
        return self.header.run if self._begun else None

    # Growing

    def check_next(self, booster_index: int) -> None:
        """Make sure that booster t is the next one; keep the original weights before the first.

        To be called before anything of booster t is trained.

        Raises:
            RuntimeError: If it is not the next one. Nothing is changed.
        """
        if booster_index != len(self):
            raise RuntimeError(
                f"the ledger holds {len(self)} boosters and the run is at booster {booster_index}: "
                + (_EARLIER_RUN if len(self) > booster_index else _LOST)
            )
        if not self._begun:
            self._begin()

    def append(self, record: BoosterRecord) -> None:
        """Write down the next booster, whole or not at all.

        Raises:
            RuntimeError: If it is not the next one. Nothing is changed.
        """
        self.check_next(record.booster_index)
        self._history.append(record)

    def check_resumable(self, length: int, run: str | None = None) -> None:
        """Make sure that a run may go on from a checkpoint: see ``truncate``.

        Raises:
            RuntimeError: If the chain is another run's, or too short.
        """
        if not 0 <= length <= len(self):
            raise RuntimeError(
                f"the run is resumed at booster {length} and the ledger holds {len(self)}: {_LOST}"
            )
        kept = self.header if self.run else self._left_behind()
        if run is not None and (kept is None or kept.run != run):
            raise RuntimeError(f"the ledger is not the one of the checkpoint: {_LOST}")

    def truncate(self, length: int, run: str | None = None) -> None:
        """Drop the boosters from ``length`` on: a run goes on from a checkpoint taken there.

        Args:
            length: How many boosters the checkpoint's run had merged.
            run: That run's ``chain.run``; None leaves it unchecked.

        Raises:
            RuntimeError: If the chain is another run's, or too short. Nothing is changed.
        """
        self.check_resumable(length, run)
        kept = None if self.run else self._left_behind()
        if kept is not None:
            self.header, self._begun, self._base = kept, True, None
        self.scores.truncate(length)
        self._history.truncate(length)

    # Scores

    def score(self, t: int, value: float) -> None:
        """Give booster t a score: the higher, the better the model after it (of a loss, −loss).

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

        Args:
            early_stopping_rounds: n, a positive integer.
        """
        return self.scores.should_stop(early_stopping_rounds)

    # Back into models

    @torch.no_grad()
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
            ValueError: If there is no booster t, or the ledger belongs to another model. Nothing is
                changed.
        """
        to = self._booster("to", to, -1)
        require_plain(model)
        weights, saved = find(model, self.header)
        self._require_begun()
        for name, weight in weights.items():
            weight.parameter.copy_(self._history.original(name))
        replay(self._history.records(to), weights, self.header)
        self._restore(saved, to)
        return model

    @torch.no_grad()
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
            ValueError: If there is no booster ``to``, or the model's weights are not the original
                ones. Nothing is changed.
        """
        to = self._last(to)
        require_plain(model)
        weights, saved = find(model, self.header)
        self._require_begun()
        require_original(weights, self.header.fingerprints)
        narrow = {n for n, w in weights.items() if w.parameter.element_size() < 4}
        summed = narrow if exact is None else set(weights) if exact else set()
        if merged := {name: weights[name] for name in weights if name not in summed}:
            replay(self._history.records(to), merged, self.header)
        for name in summed:
            W = weights[name].place.local
            W.copy_(add_product(weights[name], W, *self.delta(name, to), 1.0))
        self._restore(saved, to)
        return model

    def delta(self, name: str, to: int | None = None) -> tuple[Tensor, Tensor]:
        """Return a weight's whole update as one product, the boosters' factors side by side.

        Args:
            name: Of a weight or bias, e.g. ``"encoder.layer.0.output.dense.weight"``.
            to: The last booster to count, by default the last there is.

        Returns:
            left (out, R) with the scales folded in, and right (R, in), in float64.

        Raises:
            ValueError: If the name is not of a weight the ledger follows.
        """
        if name not in self.header.weights:
            known = ", ".join(list(self.header.weights)[:3])
            raise ValueError(f"no weight {name!r} in the ledger; it follows {known}, …")
        return self._history.delta(name, self.header.weights[name].shape, self._last(to))

    # Out of here

    def save(self, file: PathLike) -> None:
        """Pack everything into one safetensors file, which ``load`` reads.

        Raises:
            RuntimeError: If nothing was recorded.
        """
        self._require_begun()
        pack(self._store, Path(file), (_HEADER, _SCORES))

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
        self._require_begun()
        last = self._last(to)
        base = base_model_name_or_path or self.header.base_model
        return write_adapter(
            Path(folder),
            dataclasses.replace(self.header, base_model=base),
            lambda name: self.delta(name, last),
            self._history.saved(self.header.saved, last),
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
        facts = [self._history.facts(t) for t in range(len(self))]
        figure = draw_chain(self.header, facts, self.delta, self.scores)
        if path is not None:
            figure.savefig(path)
        return figure

    # Inside

    def _booster(self, argument: str, t: int, lowest: int) -> int:
        if isinstance(t, bool) or not isinstance(t, int):
            raise TypeError(f"{argument} must be an integer, got {t!r}")
        if not lowest <= t < len(self):
            raise ValueError(
                f"{argument} must be from {lowest} to {len(self) - 1}, for the ledger holds "
                f"{len(self)} boosters; got {t}"
            )
        return t

    def _last(self, to: int | None) -> int:
        return len(self) - 1 if to is None else self._booster("to", to, -1)

    def _begin(self) -> None:
        """Write down the original weights and the header."""
        if self._base is None:
            raise RuntimeError("the ledger has lost base.safetensors, the original weights")
        tensors = {name: snapshot(tensor) for name, tensor in self._base().items()}
        prints = {
            name: fingerprint(_matrix(tensors[name], facts.transposed))
            for name, facts in self.header.weights.items()
        }
        self.header = dataclasses.replace(self.header, fingerprints=prints)
        self.scores.truncate(0)
        self._history.keep_originals(tensors)
        self._store.write_document(_HEADER, self.header.plain)
        self._begun, self._base = True, None

    def _left_behind(self) -> ChainHeader | None:
        """Return the header of a run like this one that ended before its first merge."""
        facts = self._store.document(_HEADER)
        if facts is None or not self._history.has_originals:
            return None
        header = ChainHeader.read(facts)
        return None if header.differences(self.header) else header

    def _require_begun(self) -> None:
        if not self._begun:
            raise RuntimeError("the ledger is empty: nothing was trained with it yet")

    def _restore(self, saved: Mapping[str, nn.Parameter], t: int) -> None:
        for name, tensor in self._history.saved(saved, t).items():
            saved[name].copy_(tensor)


_EARLIER_RUN = (
    "they are an earlier run's. Resume it with optimizer.load_state_dict(...), or choose another "
    "path for record="
)
_LOST = (
    "the ledger is another run's, or lost its last boosters (one in memory ends with its process). "
    "Give record= the path the run was recorded to, or None"
)


def _matrix(stored: Tensor, transposed: bool) -> Tensor:
    if stored.ndim == 1:
        return stored.unsqueeze(1)
    return stored.T if transposed else stored
