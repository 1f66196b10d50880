"""Models of transformers in folders: loaded as a ledger's run had them, rolled back, quietly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from torch_xgb import Chain

__all__ = ["quiet", "require_free", "rolled_back"]


def rolled_back(chain: Chain, model: Path, to: int, out: Path) -> None:
    """Write a model as it was after a booster, with its tokenizer, to a folder.

    Args:
        chain: The ledger.
        model: The folder of the trained model, or of any of its architecture.
        to: The booster; −1 is before the first.
        out: Where to: a folder that is empty, or is not there yet.

    Raises:
        ValueError: If the ledger is of another model, or ``out`` holds something.
    """
    require_free(out)
    with quiet():
        found = chain.rollback(_loaded(chain, model), to=to)
        found.save_pretrained(out)  # type: ignore[operator]
        with suppress(OSError, ValueError, KeyError):  # a model need not have one
            AutoTokenizer.from_pretrained(model).save_pretrained(out)


def require_free(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ValueError: If it does, or is none.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} holds something already: choose another --out")


def _loaded(chain: Chain, folder: Path) -> PreTrainedModel:
    """Load a folder's weights into the class that the run trained, in the dtype of its weights."""
    module, _, name = (chain.header.model_class or "").partition(":")
    kind = getattr(transformers, name, None) if module.startswith("transformers.") else None
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise ValueError(
            f"the ledger's model is a {name or 'class that it does not name'}, which is none of "
            "transformers: make the model, load its weights, and call chain.rollback(model, to=t)"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"no model at {str(folder)!r}: it has no config.json")
    dtype = next(iter(chain.header.weights.values())).dtype
    loaded: PreTrainedModel = kind.from_pretrained(folder, dtype=getattr(torch, dtype))
    return loaded


@contextmanager
def quiet() -> Iterator[None]:
    """Have transformers say errors alone for a while: whoever calls says the rest."""
    before, bars = (
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    said = transformers.logging
    said.set_verbosity_error()  # type: ignore[no-untyped-call]
    said.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            said.enable_progress_bar()  # type: ignore[no-untyped-call]
