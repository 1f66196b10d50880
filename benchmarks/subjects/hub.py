"""Text classification tasks of the Hugging Face hub, by name; needs ``datasets`` and a network."""

from collections.abc import Iterable
from typing import Any

from benchmarks.subjects.classification import Row, Task, make_task

_DEV_PARTS = ("validation", "validation_matched", "test")


def hub_task(name: str, scores: bool = False) -> Task:
    """Load ``"glue/mrpc"``, ``"user/name"`` or ``"user/name/configuration"``.

    With ``scores``, labels are numbers to be predicted.

    Raises:
        ValueError: If ``datasets`` is missing, the hub cannot be reached or does not know the
            name, or the dataset has no text, label or part to score on.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            f"--dataset {name} is read by the package datasets, which is not installed: "
            "pip install datasets"
        ) from None
    configured = name.startswith(("glue/", "super_glue/")) or name.count("/") == 2
    path, configuration = name.rsplit("/", 1) if configured else (name, None)
    try:
        parts = load_dataset(path, configuration)
    except Exception as error:  # every kind of network and hub trouble has a class of its own
        raise ValueError(
            f"could not load {name} from the hub ({type(error).__name__}: {error}); is there a "
            "network? Data of your own is read offline by --train and --dev"
        ) from error
    dev = next((part for part in _DEV_PARTS if part in parts), None)
    if dev is None or "train" not in parts:
        raise ValueError(f"{name} has the parts {list(parts)}; needed are train and {_DEV_PARTS}")
    train, held = (_rows(name, parts[part], scores) for part in ("train", dev))
    return make_task(name, train, held, f"scored on {dev}")


def _rows(name: str, part: Iterable[dict[str, Any]], scores: bool) -> list[Row]:
    """Take the columns of text, one or two, and the label; leave out rows without a label."""
    rows = []
    for fields in part:
        texts = [
            value for key, value in fields.items() if isinstance(value, str) and key != "label"
        ]
        label = fields.get("label")
        kinds = (int, float) if scores else (int, str)
        if not 1 <= len(texts) <= 2 or isinstance(label, bool) or not isinstance(label, kinds):
            raise ValueError(
                f"{name}: expected one or two columns of text and a label that is a whole number "
                f"or a word, got {fields!r:.200}"
            )
        if label != -1:
            value = float(label) if scores else label
            rows.append(Row(texts[0], texts[1] if len(texts) > 1 else None, value))
    return rows
