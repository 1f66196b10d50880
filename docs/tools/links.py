"""Links of Markdown files outside the site: whether they lead anywhere, and where on the site."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(#[^)\s]*)?\)")


def moved(text: str, page: str) -> str:
    """Rewrite a file of the root as a page of the site: its links to pages are relative to it."""

    def new(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if target.startswith("docs/"):
            target = os.path.relpath(target.removeprefix("docs/"), Path(page).parent)
        return f"]({target}{anchor})"

    return _LINK.sub(new, text)


def dead(file: Path) -> Iterator[str]:
    """Say of each link of a file that leads nowhere what is missing."""
    text = file.read_text(encoding="utf-8")
    for target, anchor in _LINK.findall(text):
        place = file.parent / target if target else file
        if not place.exists():
            yield f"the link to {target} leads nowhere"
        elif anchor and place.suffix == ".md" and anchor[1:] not in anchors(place):
            yield f"{target or 'this page'} has no {anchor}"


def anchors(file: Path) -> set[str]:
    """Return the anchors of a file's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
