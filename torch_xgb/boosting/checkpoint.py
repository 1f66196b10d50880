"""What a run saves beside its model and resumes from: the base's state and the boosting's entry.

Everything is checked before anything is changed; what fails all the same is taken back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch_xgb.base.saved import check_counters, check_saved, load_saved, unchanged_on_error
from torch_xgb.base.wrapped import Wrapped
from torch_xgb.boosting.alone import alone
from torch_xgb.boosting.handle import Boosting
from torch_xgb.callers import callers
from torch_xgb.ledger.resume import Bookmark
from torch_xgb.saving.entry import ENTRY, find
from torch_xgb.saving.one_piece import (
    blank,
    in_one_piece,
    is_being_read,
    is_being_written,
    taken_apart,
)
from torch_xgb.saving.seal import check_seal, seal
from torch_xgb.settings import Contract

__all__ = ["resume", "save"]


@alone
def save(boosting: Boosting, wrapped: Wrapped) -> dict[str, Any]:
    """Return what a resumed run needs beside the model, in tensors and plain types.

    Nothing in it is written to later: a state that is kept in memory stays what it was.

    Raises:
        RuntimeError: If it is asked for by somebody who would drop the boosting's part of it, or
            the model's modules are not those that are trained any more.
    """
    base = wrapped.optimizer
    boosting.pace.complete()
    _refuse_getters()
    if is_being_read():
        return blank()
    boosting.settle(base)
    if boosting.attached:
        boosting.followed.look(base)
    entry = {
        "settings": boosting.told(base, Contract.RUN),
        **boosting.entry.state_dict(),
        "counters": wrapped.counters,
        **({"run": None, "tip": None} if boosting.writer is None else boosting.writer.bookmark),
    }
    state = copy.deepcopy(base.state_dict())
    saved = {**state, ENTRY: {**entry, "seal": seal(state, entry)}}
    return in_one_piece(saved) if is_being_written() else saved


@alone
def resume(boosting: Boosting, wrapped: Wrapped, state_dict: Mapping[str, Any]) -> None:
    """Take a saved state over.

    Raises:
        TypeError: If it is no mapping.
        ValueError: If it is of another optimizer, model or configuration, or damaged.
        RuntimeError: If it does not belong to the model's weights, or to the ledger. Whatever is
            raised, nothing is changed.
    """
    state_dict = taken_apart(state_dict)
    saved, base = find(state_dict), wrapped.optimizer
    of_base = {key: one for key, one in state_dict.items() if key != ENTRY}
    boosting.entry.compare(saved, boosting.told(base, Contract.RUN))
    boosting.pace.complete()
    boosting.settle(base)
    check_saved(base, of_base)
    counters = check_counters(saved.get("counters", {}))
    check_seal(of_base, saved)
    resumption = boosting.entry.check(saved)
    writer, bookmark = boosting.writer, Bookmark.of(saved)
    if writer is not None:
        writer.check_resumable(bookmark)
    with unchanged_on_error(base):
        load_saved(base, of_base, saved["factors"])
        boosting.share_out(base)
        boosting.entry.load_state_dict(resumption, base)
        if resumption.begins:
            boosting.begin(resumption.progress, resumption.draw)
        if writer is not None:  # last: what it drops is gone
            writer.resume(bookmark)
    wrapped.resume(counters)
    boosting.pace.catch_up_later()


def _refuse_getters() -> None:
    """Refuse ``torch.distributed.checkpoint.state_dict``'s getters.

    They keep what can be named by a Parameter, which a booster's place in the run cannot, and drop
    the rest without a word.

    Raises:
        RuntimeError: If they do.
    """
    for frame in callers():
        if frame.f_code.co_name == "_get_optim_state_dict" and str(
            frame.f_globals.get("__name__")
        ).startswith("torch.distributed.checkpoint"):
            raise RuntimeError(
                "get_state_dict and get_optimizer_state_dict name an optimizer's state by "
                "Parameters and would leave the booster out. Give torch.distributed.checkpoint's "
                'save and load {"model": model, "optimizer": optimizer}, or save '
                "optimizer.state_dict() itself, as it is, and load it by "
                "optimizer.load_state_dict(). See docs/how-to/distributed.md, Checkpoints"
            )
