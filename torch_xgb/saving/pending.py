"""A pending booster in a checkpoint: folded into the weights, and taken out again on loading.

``model.state_dict()`` at any moment is the plain model's: a drawn target's entry is W + s·B A,
rounded once to W's dtype. Beside such weights an optimizer resumes by subtracting the same product.
Rounding both ways restores W but for a few entries, where an exponent changed; those travel in the
optimizer's state as a repair, so that a resumed run goes on bitwise. Fingerprints tell whether
weights and state belong together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_xgb.boosters.adapter import Adapter
from torch_xgb.boosters.pair import Pair
from torch_xgb.saving.fold import FoldIn, fold, unfold
from torch_xgb.saving.memory import Memory
from torch_xgb.saving.repairs import differing, everyones, repair
from torch_xgb.saving.start_over import Resumed, StartOver
from torch_xgb.saving.trained_only import refuse_trained_only
from torch_xgb.weights.fingerprints import NUMBERING, Numbering
from torch_xgb.weights.merge import Merger
from torch_xgb.weights.own import require_own
from torch_xgb.weights.places import shard_group
from torch_xgb.weights.weight import Weight

__all__ = ["Pending"]


class Pending:
    """The state-dict hooks of every target, and the checkpoint's entries about weights.

    Args:
        adapters: The adapters of every layer.
        merger: Whose residuals belong to the weights.
        memory: What else does.
    """

    def __init__(self, adapters: Iterable[Adapter], merger: Merger, memory: Memory) -> None:
        self.adapters = list(adapters)
        self._tied = [weight for weight in self.weights if len(weight.modules) > 1]
        self.merger = merger
        self.memory = memory
        self.resumed = Resumed()
        self._model: nn.Module | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def weights(self) -> list[Weight]:
        """Every weight that may be merged into."""
        return [weight for _, weight in self._weights()]

    def attach(self, model: nn.Module) -> None:
        """Register the hooks."""
        self._model = model
        self._handles.append(model.register_state_dict_pre_hook(refuse_trained_only))
        for adapter in self.adapters:
            fold_in, start_over = FoldIn(adapter), StartOver(adapter, self.memory, self.resumed)
            for module in adapter.target.modules:
                self._handles.append(module.register_state_dict_post_hook(fold_in))
                self._handles.append(module.register_load_state_dict_pre_hook(start_over))

    def detach(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._model = [], None

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Return what ties the state to the weights: fingerprints, repairs, residuals.

        The same on every process; where weights are sharded, all of them must call it.
        """
        require_own(self.weights, self._model)
        folded, repairs = [], {}
        for adapter, weight in self._weights():
            if adapter.pending:
                merged = fold(adapter, weight)
                folded.append((weight, merged))
                pair = adapter.pair.map(Tensor.detach)
                found = unfold(adapter.form, weight, merged, pair, adapter.s)
                repairs[weight.name] = differing(weight, found)
        weights = self.weights
        return {
            "frozen": NUMBERING.of_weights((w, w.place.local) for w in weights),
            "folded": NUMBERING.of_weights(folded),
            "repairs": everyones(repairs, shard_group([w.parameter for w in weights])),
            "residuals": self.merger.state_dict(weights),
        }

    @torch.no_grad()
    def unfold(
        self,
        state: Mapping[str, Any],
        pairs: Iterable[tuple[Adapter, Pair[nn.Parameter]]],
        r: int,
        s: float,
        sealed: bool,
        numbering: Numbering,
    ) -> dict[str, Tensor]:
        """Return the weights that hold a saved booster without it, changing nothing.

        Args:
            state: What was saved of the weights.
            pairs: The saved booster's, with the adapters they are for.
            r: Its rank.
            s: Its scaling.
            sealed: Whether its factors are known to be those of the moment of saving, or cannot be.
            numbering: That of the version that has saved them.

        Raises:
            RuntimeError: If some weight is neither the saved one nor the saved one folded, or is
                not the saved one when its pair is taken out.
        """
        folded = self._find_folded(state, numbering)
        unfolded: list[tuple[Weight, Tensor]] = []
        for adapter, pair in pairs:
            narrow = adapter.form.narrow(pair.map(Tensor.detach), r)
            for weight in adapter.weights:
                if weight.name in folded:
                    kept = unfold(adapter.form, weight, weight.place.local, narrow, s)
                    repair(weight, kept, state["repairs"][weight.name])
                    unfolded.append((weight, kept))
        frozen = numbering.of_weights(unfolded)
        wrong = [name for name, value in frozen.items() if value != state["frozen"][name]]
        if wrong and not sealed:
            raise RuntimeError(
                f"taking the pending booster out of {len(wrong)} weights does not give back what "
                f"they were, first {wrong[0]!r}: weights and state are not of one moment. Take "
                "another checkpoint"
            )
        if wrong:
            warnings.warn(
                f"{len(wrong)} weights (first {wrong[0]!r}) differ in their last bits from those "
                "saved, as arithmetic here is not that of the machine that saved them: the run "
                "goes on, but not bitwise",
                stacklevel=5,
            )
        return {weight.name: kept for weight, kept in unfolded}

    def _find_folded(self, state: Mapping[str, Any], numbering: Numbering) -> set[str]:
        """Return the weights that hold the saved booster at present.

        Raises:
            RuntimeError: If some weight is neither the saved one nor the saved one folded.
        """
        weights = self.weights
        present = numbering.of_weights((w, w.place.local) for w in weights)
        folded = {name for name, value in present.items() if value == state["folded"].get(name)}
        strangers = [
            weight
            for weight in weights
            if weight.name not in folded and present[weight.name] != state["frozen"][weight.name]
        ]
        if strangers:
            raise RuntimeError(
                "the optimizer's state does not belong to the model's weights: "
                f"{len(strangers)} of {len(state['frozen'])} differ, first {strangers[0].name!r} "
                f"({strangers[0].parameter.dtype}). Load the model saved together with this state, "
                "in the same dtype, first: model.load_state_dict(...), then "
                "optimizer.load_state_dict(...)"
            )
        return folded

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], unfolded: Mapping[str, Tensor]) -> None:
        """Take over weights without the booster they held, and the residuals."""
        for weight in self.weights:
            if weight.name in unfolded:
                _overwrite(weight, unfolded[weight.name])
        self.merger.load_state_dict(state["residuals"], self.weights)
        self.memory.forget_all()
        self.memory.note(self.adapters)
        self.resumed.loaded()

    def stepped(self) -> None:
        """Take note of a step."""
        self.resumed.stepped()
        self.memory.stepped()

    def retie(self) -> None:
        """Tie what was tied: ``load_state_dict(assign=True)`` gives each module its own Parameter.

        Raises:
            RuntimeError: If the modules of a weight hold different values.
        """
        for weight in self._tied:
            own = weight.parameter
            others = [m for m in weight.modules if getattr(m, weight.attribute) is not own]
            for module in others:
                other = getattr(module, weight.attribute)
                if other.shape != own.shape or not torch.equal(other, own.to(other)):
                    raise RuntimeError(
                        f"{weight.name} was tied among {len(weight.modules)} modules when the "
                        "optimizer was built, and they hold different weights now: a merge is "
                        "computed once for all. Tie them again (a.weight = b.weight), or build a "
                        "new optimizer after finalize()"
                    )
                module._parameters[weight.attribute] = own

    @contextmanager
    def folded_in(self) -> Iterator[None]:
        """Have the pending booster in the weights themselves for a while, and nowhere else.

        For whoever saves weights without asking for ``state_dict()``. Afterwards they are what they
        were, bitwise.
        """
        require_own([weight for adapter, weight in self._weights() if adapter.pending])
        found = [(a, w, w.place.local.clone()) for a, w in self._weights() if a.pending]
        with ExitStack() as aside:
            try:
                with torch.no_grad():
                    for adapter, weight, _ in found:
                        _overwrite(weight, fold(adapter, weight))
                for adapter in (adapter for adapter in self.adapters if adapter.weights):
                    aside.enter_context(adapter.aside())
                yield
            finally:
                with torch.no_grad():
                    for _, weight, kept in found:
                        _overwrite(weight, kept)

    @torch.no_grad()
    def follow(self, original: Pending) -> None:
        """Undo what copying did to a model whose optimizer was copied with it: see ``FoldIn``."""
        for adapter, theirs in zip(self.adapters, original.adapters, strict=True):
            if adapter.accumulator is not None and theirs.accumulator is not None:
                adapter.accumulator.put(*theirs.accumulator.product)
            if adapter.wake():
                for weight, source in zip(adapter.weights, theirs.weights, strict=True):
                    weight.parameter.copy_(source.parameter)

    def _weights(self) -> Iterator[tuple[Adapter, Weight]]:
        return ((adapter, weight) for adapter in self.adapters for weight in adapter.weights)


def _overwrite(weight: Weight, kept: Tensor) -> None:
    """Make what this process keeps of a weight equal to a tensor laid out alike."""
    place = weight.place
    place.local.copy_(kept)
    place.changed()
