"""Where ``record=`` has a run's ledger, and whether it may be written there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from torch_xgb.boosters.forms import Form
from torch_xgb.ledger.archive import Archive, read_header
from torch_xgb.ledger.files import reading
from torch_xgb.ledger.header import ChainHeader, originals
from torch_xgb.ledger.scores import SCORES
from torch_xgb.ledger.sections import ORIGINALS
from torch_xgb.ledger.store import Folder, Memory
from torch_xgb.ledger.tensorfile import import_safetensors
from torch_xgb.ledger.writer import Tensors, Writer
from torch_xgb.processes import is_first
from torch_xgb.settings import Settings
from torch_xgb.targets.selection import Selection
from torch_xgb.weights.weight import Weight

__all__ = ["archive_for", "writer"]


def writer(model: nn.Module, settings: Settings, selection: Selection, form: Form) -> Writer | None:
    """Return a writer, or None if nothing is to be recorded here.

    Of several processes, which all merge the same, only the first writes to a folder.

    Args:
        model: The model, with the weights the run begins with.
        settings: What the run was told.
        selection: What of the model it is about.
        form: What a pair is.

    Raises:
        TypeError: If ``record`` is neither None, True, nor a path.
        ValueError: If the folder holds a run of another configuration, or the model's weights are
            sharded over processes.
    """
    if settings.record is None:
        return None
    _require_whole(weight for target in selection.targets for weight in form.weights(target))
    if settings.record is not True and not is_first():
        return None
    header = ChainHeader.of(model, settings, selection, form)
    archive = archive_for(settings.record, header)
    return Writer(archive, partial(originals, model, header), partial(_trained, selection))


def archive_for(record: bool | str | os.PathLike[str], header: ChainHeader) -> Archive:
    """Return the archive of a run that has not begun, or of one like it that it may go on with.

    Args:
        record: True for memory, or the path of a folder.
        header: What the boosters will have in common.

    Raises:
        TypeError: If ``record`` is neither.
        ValueError: If the folder holds the boosters of a run with another configuration, or files
            of somebody else's with the names of a ledger's.
    """
    if record is True:
        return Archive(Memory(), header)
    path = _folder(record)
    import_safetensors()
    folder = Folder(path)
    folder.prepare()
    _check_ours(folder)
    archive = Archive(folder, header)
    if not len(archive):
        return archive
    archive = Archive(folder)
    if differing := archive.header.differences(header):
        raise ValueError(
            f"{archive.where!r} holds {len(archive)} boosters of a run with another "
            f"configuration or model (it differs in {', '.join(differing)}): choose another path"
        )
    return archive


def _folder(record: object) -> Path:
    """Return the path that ``record`` gives, whatever the working directory becomes.

    Raises:
        TypeError: If it gives none.
        ValueError: If it is empty.
    """
    path = os.fspath(record) if isinstance(record, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise TypeError(f"record must be None, True or a path, got {record!r}")
    if not path.strip() or "\0" in path:
        raise ValueError(f"record must be None, True or the path of a folder, got {record!r}")
    return Path(os.path.abspath(path))


def _check_ours(folder: Folder) -> None:
    """Make sure that what has the names of a ledger's parts is one's, for it will be overwritten.

    Raises:
        ValueError: If it is not.
    """
    kept = read_header(folder) is not None
    if ORIGINALS in folder:  # written before the header
        folder.facts(ORIGINALS)
    with reading(folder.place(SCORES)):
        if not kept and folder.holds(SCORES):
            raise ValueError("there is no chain.json beside it. Choose another path for record=")


def _trained(selection: Selection) -> Tensors:
    return selection.named


def _require_whole(weights: Iterable[Weight]) -> None:
    for weight in weights:
        stored = weight.parameter.detach()
        if type(stored) is not Tensor or not stored.numel():
            raise ValueError(
                f"{weight.name} is not a whole plain tensor here (a {type(stored).__name__} of "
                f"shape {tuple(stored.shape)}), and a ledger keeps whole weights: pass record=None "
                "for a model whose weights are sharded over processes"
            )
