"""The model card of an exported adapter."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from torch_xgb.ledger.files import exists, require_file
from torch_xgb.ledger.header import ChainHeader

__all__ = ["FILE", "card", "is_card"]

FILE = "README.md"
_TITLE = "# A LoRA adapter of"


def card(
    header: ChainHeader, boosters: int, ranks: Collection[int], parameters: int, kept: str
) -> str:
    """Return the text; the hub takes names of its own models alone for a base.

    Args:
        header: The chain's.
        boosters: How many the adapter sums up.
        ranks: Of the weights it adapts.
        parameters: How many it has.
        kept: A sentence, without its full stop, on what it keeps of the boosters' sum.
    """
    base, in_full = header.base_model, header.saved_modules
    is_known = base and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) and not Path(base).exists()
    least, most = min(ranks), max(ranks)
    size = f"{least}" if least == most else f"{least} to {most}"
    base_line = f"base_model: {base}\n" if is_known else ""
    in_full_line = f"\nTrained in full and included: {', '.join(in_full)}.\n" if in_full else ""
    return f"""---
library_name: peft
{base_line}tags:
- lora
- torch_xgb
---

{_TITLE} {boosters} boosters

Trained with torch_xgb as a chain of {boosters} low-rank boosters. {kept}.
It adapts {len(ranks)} weights with ranks {size}; {parameters:,} parameters.
{in_full_line}
```python
from peft import PeftModel

# base: the model it was trained from{f", {base}" if is_known else ""}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""


def is_card(file: Path) -> bool:
    """Tell whether a card may be written: over nothing, or over one of an earlier export."""
    if not exists(file):
        return True
    with suppress(OSError, ValueError):
        return require_file(file) < 1 << 16 and _TITLE in file.read_text(encoding="utf-8")
    return False
