"""What the site is built of beside its pages: tutorials that run, messages, the project's texts.

MkDocs calls these functions. What is wrong is a warning of MkDocs, and ``--strict`` fails on it.
``TUTORIALS=0`` leaves the tutorials' pages without output, for work on other pages.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.tools import commands, links, messages, snippets, tutorials  # noqa: E402

log = logging.getLogger("mkdocs.hooks")
_LISTS = {
    "<!-- every command -->": commands.listed,
    "<!-- every message -->": messages.listed,
}
_COUNTED = {"pages": 0, "links": 0, "snippets": 0}


@event_priority(100)  # before mkdocstrings looks for the folder
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the package together as it is installed, integrations inside the core."""
    shown = ROOT / "build" / "documented"
    shutil.rmtree(shown, ignore_errors=True)
    for source, target in (("torch_xgb", "torch_xgb"), ("integrations", "torch_xgb/integrations")):
        ignored = shutil.ignore_patterns("__pycache__", "integrations")
        shutil.copytree(ROOT / source, shown / target, ignore=ignored)  # griffe resolves links
    _COUNTED.update(dict.fromkeys(_COUNTED, 0))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made and not written."""
    for source, content in (
        ("contributing/index.md", ROOT / "CONTRIBUTING.md"),
        ("contributing/changes.md", ROOT / "CHANGELOG.md"),
    ):
        text = content.read_text(encoding="utf-8")
        files.append(File.generated(config, source, content=links.moved(text, source)))
    found = tutorials.found()
    run = os.environ.get("TUTORIALS") != "0"
    for tutorial in tutorials.run(found) if run else found:
        page = f"tutorials/{tutorial.name}.md"
        files.append(File.generated(config, page, content=tutorial.page()))
        for name, content in tutorial.pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
        if run:
            print(f"{page}: {tutorial.seconds:.1f} s of processor time", flush=True)
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Look at a page's code, and fill in what is listed on it."""
    for problem in snippets.problems(markdown):
        log.warning("%s: %s", page.file.src_uri, problem)
    _COUNTED["snippets"] += len(snippets.blocks(markdown))
    for marker, listed in _LISTS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, listed())
    return markdown


def on_post_page(output: str, page: Page, **kwargs: Any) -> str:
    """Count."""
    _COUNTED["pages"] += 1
    content = output.partition("<article")[2].partition("</article")[0]
    linked = re.findall(r"<(?:a|img)\s[^>]*(?:href|src)=[^>]*>", content)
    _COUNTED["links"] += sum("headerlink" not in link for link in linked)
    return output


def on_post_build(**kwargs: Any) -> None:
    """Follow the links of the texts outside the site, and say what was built."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for problem in links.dead(ROOT / name):
            log.warning("%s: %s", name, problem)
    print("docs:", ", ".join(f"{count:,} {name}" for name, count in _COUNTED.items()))
