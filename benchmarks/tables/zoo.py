"""The scan of model types, counted and laid out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables.table import table

Record = Mapping[str, Any]


def counts(records: Sequence[Record]) -> str:
    """Count what was made, what PEFT adapts, and what boosters train and merge of it."""
    made = [r for r in records if not r["made"]]
    adapted = [r for r in made if not r["peft"]]
    ours = [r for r in adapted if r["trains"]]
    plain = [r for r in ours if not r["settings"]]
    also = [r for r in made if r["peft"] and r["trains"]]
    share = 100 * len(ours) / max(1, len(adapted))
    return "\n".join(
        [
            f"{len(records)} model types; {len(made)} could be made small and run.",
            f"PEFT's LoRA adapts {len(adapted)} with target_modules='all-linear'; boosters train",
            f"and merge {len(ours)} of them exactly ({share:.1f} %): {len(plain)} with no setting,",
            f"{len(ours) - len(plain)} with what the message says; {len(also)} that PEFT cannot.",
        ]
    )


def refused(records: Sequence[Record]) -> str:
    """Lay out what PEFT adapts and boosters do not, with the words."""
    rows = [[r["type"], _words(r)] for r in records if not r["made"] and not r["peft"]]
    rows = [row for row in rows if row[1]]
    return table(["refused or inexact", "why"], rows) if rows else "none refused"


def whole(records: Sequence[Record]) -> str:
    """Lay out every type that could be made."""
    rows = [
        [
            r["type"],
            r["class"],
            str(r.get("blocks", "–")),
            str(r.get("targets", "–")),
            f"{r['distance']:.0e}" if "distance" in r else "–",
            ", ".join(f"{n}={v!r}" for n, v in r["settings"].items()) or "–",
            "yes" if r["trains"] else "no",
            "no" if r["peft"] else "yes",
        ]
        for r in records
        if not r["made"]
    ]
    head = ["type", "class", "blocks", "targets", "merge off by", "needs", "boosters", "LoRA"]
    return table(head, rows)


def not_made(records: Sequence[Record]) -> str:
    """Count why types could not be made or run, whoever's the reason."""
    reasons = Counter(r["made"].split(":")[0] for r in records if r["made"])
    return table(["not made", "types"], [[why, str(n)] for why, n in reasons.most_common()])


def _words(record: Record) -> str:
    if record["trains"]:
        return ""
    return record["words"] or f"merged {record.get('distance', 0):.0e} off"
