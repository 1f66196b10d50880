"""What is said of names that match nothing, or not what was meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from torch_xgb.targets.layers import is_linear
from torch_xgb.targets.names import Names, matcher

__all__ = ["explain_unmatched", "nothing_found"]


def explain_unmatched(
    names: Names, model: nn.Module, chosen: dict[str, nn.Module], candidates: dict[str, nn.Module]
) -> None:
    """Warn of names in a list that match no linear map while others do.

    Args:
        names: What was given as target_modules.
        model: The model.
        chosen: What it matches.
        candidates: The linear maps that it could have matched.
    """
    if isinstance(names, str) or not chosen:
        return
    all_names = [name for name, _ in model.named_modules()]
    for entry in names:
        matches = matcher([entry], "target_modules")
        if any(matches(name) for name in candidates):
            continue
        found = next((name for name in all_names if matches(name)), None)
        if found is not None and is_linear(model.get_submodule(found)):
            continue  # trained in full
        what = f"is no linear map (found {found!r})" if found else "matches no module"
        warnings.warn(f"target_modules: {entry!r} {what}; the other entries are used", stacklevel=6)


def nothing_found(
    names: Names, exclude: Names | None, candidates: dict[str, nn.Module], in_full: Sequence[str]
) -> str:
    """Return what to say where nothing is matched: what there is, and how to name it.

    Args:
        names: What was given as target_modules.
        exclude: The same as exclude_modules.
        candidates: The linear maps that could have been matched.
        in_full: Names of those trained in full.
    """
    if not candidates:
        return _nothing_linear(in_full)
    suffixes = sorted({name.rpartition(".")[2] or name for name in candidates})
    shown = ", ".join(suffixes[:20]) + (", …" if len(suffixes) > 20 else "")
    return (
        f"no module matches target_modules={names!r}, exclude_modules={exclude!r}; "
        f"the model's {len(candidates)} linear maps end in: {shown}. A string is a regular "
        f"expression for the whole name, e.g. {next(iter(candidates))!r}; a list holds names or "
        "their endings"
    )


def _nothing_linear(in_full: Sequence[str]) -> str:
    nothing = "the model has no torch.nn.Linear or transformers Conv1D that can be adapted"
    if not in_full:
        return nothing
    head = ", ".join(map(repr, in_full[:6])) + ", …" * (len(in_full) > 6)
    return (
        f"{nothing} but {head}, trained in full; convolutions and embeddings are not. "
        "Have it adapted with modules_to_save=[], or train it alone with an ordinary optimizer"
    )
