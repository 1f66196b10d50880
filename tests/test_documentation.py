"""The documentation keeps up with the library. What else is wrong with it, ``make docs`` says."""

from pathlib import Path

import pytest

from docs.tools import links, messages, snippets, tutorials

ROOT = Path(__file__).resolve().parents[1]


def test_every_message_is_explained() -> None:
    missing = [f"{m.place}: {m.kind}: {m.text}" for m in messages.unexplained()]
    assert not missing, (
        "docs/troubleshooting.md has no words of these: quote some in the line that begins with > "
        f"under the heading that fits, or under a new one: {missing}"
    )
    assert len(messages.messages()) > 200  # they are found at all


def test_nothing_is_explained_that_nobody_says() -> None:
    assert not messages.stale(), "docs/troubleshooting.md quotes what no message has (any more)"


def test_messages_are_followed_to_their_words() -> None:
    texts = {message.text for message in messages.messages()}
    assert any(t.startswith("… drawn targets got no gradient: ") for t in texts)  # by a function
    assert "… after finalize(): the model is plain again; build a new optimizer" in texts  # a name


def test_every_tutorial_is_on_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")
    for tutorial in tutorials.found():
        page = f"{tutorial.name}.md"
        assert f"tutorials/{page}" in site and f"({page})" in index
        assert str(tutorial.path.relative_to(ROOT)) in tutorial.command


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("BoostedLowRankOptimizer(AdamW, model, rank=1)", "has no argument rank"),
        ("from torch_xgb import Chains", "has no Chains"),
        ("import torch.", "invalid syntax"),
        ("from torch_xgb.nowhere import x", "no module torch_xgb.nowhere"),
    ],
)
def test_code_that_does_not_fit_is_found(code: str, says: str) -> None:
    page = f"Text.\n\n```python\n{code}\n```\n"
    assert [says in problem for problem in snippets.problems(page)] == [True]


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](page.md#a-title) [b](gone.md) [c](page.md#gone)")
    assert len(list(links.dead(page))) == 2
