"""Every message that the library raises or warns with, read from its source.

A message is what a ``raise`` or ``warnings.warn`` is given, followed through names and functions of
the library; what is only known when it runs is an ellipsis. docs/troubleshooting.md quotes the
words that matter of each, in lines that begin with ``>``.

    python -m docs.tools.messages    # those that the page has no words of
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
_WARNS = {"warnings.warn", "warn"}
_DEPTH = 6


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: The exception's class, or "warning".
        text: Its words, with … for what is not known.
        place: The file and the line.
    """

    kind: str
    text: str
    place: str


@cache
def messages() -> tuple[Message, ...]:
    """Read all of them, in the order of the files."""
    found: dict[tuple[str, str], Message] = {}
    for path in _sources():
        for message in _of_file(path):
            found.setdefault((message.kind, message.text), message)
    return tuple(found.values())


def listed() -> str:
    """Write them as a list for the page, each under the words that the page quotes of it."""
    lines = []
    for message in sorted(messages(), key=lambda m: m.text.lstrip("… ").lower()):
        text = re.sub(r"\s+", " ", message.text).replace("`", "'")
        where = _heading_of(message)
        lines.append(
            f"- `{text}` — {message.kind}" + (f", [{where[0]}](#{where[1]})" if where else "")
        )
    return "\n".join(lines)


def unexplained() -> list[Message]:
    """Return the messages that the page has no words of."""
    return [message for message in messages() if _heading_of(message) is None]


def stale() -> list[str]:
    """Return the words that the page quotes and no message has."""
    texts = [_plain(message.text) for message in messages()]
    return [q for q, _ in quotes() if not any(_matches(q, text) for text in texts)]


@cache
def quotes() -> tuple[tuple[str, str], ...]:
    """Return the words that the page quotes, each with the heading that it stands under."""
    found, heading = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("> "):
            found += [(quote, heading) for quote in re.findall(r"`([^`]+)`", line)]
    return tuple(found)


def _heading_of(message: Message) -> tuple[str, str] | None:
    """Return the heading, and its anchor, of the longest quote that a message has."""
    text = _plain(message.text)
    found = [(len(quote), heading) for quote, heading in quotes() if _matches(quote, text)]
    if not found:
        return None
    heading = max(found)[1]
    return heading, re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def _matches(quote: str, text: str) -> bool:
    return all(_plain(part) in text for part in quote.split("…"))


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()


def _sources() -> list[Path]:
    core = [p for p in (ROOT / "torch_xgb").rglob("*.py") if "integrations" not in p.parts[:-1]]
    inside = [p for p in core if (ROOT / "torch_xgb" / "integrations") not in p.parents]
    return sorted(inside) + sorted((ROOT / "integrations").rglob("*.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _named() -> dict[str, list[tuple[ast.AST, Path]]]:
    """Return the functions and the constants of the library by their names."""
    found: dict[str, list[tuple[ast.AST, Path]]] = {}
    for path in _sources():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, []).append((node, path))
        for statement in _tree(path).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                found.setdefault(statement.targets[0].id, []).append((statement.value, path))
    return found


def _of_file(path: Path) -> Iterator[Message]:
    for scope in ast.walk(_tree(path)):
        if not isinstance(scope, (ast.FunctionDef, ast.Module)):
            continue
        for node in _own(scope):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call):
                continue
            name = ast.unparse(call.func)
            if not isinstance(node, ast.Raise) and name not in _WARNS:
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            kind = "warning" if name in _WARNS else name
            if not kind[0].isupper() and kind != "warning":  # a function that makes the error
                kind, texts = _made(name, call, path, scope)
            else:
                texts = _texts(call.args[0], path, scope, 0) if call.args else []
            for text in texts:
                if re.sub(r"[…\W]", "", text):
                    yield Message(kind, text, where)


def _own(scope: ast.AST) -> Iterator[ast.expr | ast.Raise]:
    """Walk a scope but for the functions in it."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, ast.FunctionDef):
            continue
        if isinstance(child, (ast.Raise, ast.Call)):
            yield child
        yield from _own(child)


def _made(name: str, call: ast.Call, path: Path, scope: ast.AST) -> tuple[str, list[str]]:
    """Return the class and the texts of an error that a function of the library makes."""
    for function, place in _named().get(name, []):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
                made, inner = ast.unparse(node.value.func), node.value.args
                given = [t for arg in call.args for t in _texts(arg, path, scope, 1)]
                outer = _texts(inner[0], place, function, 1) if inner else []
                return made, [t for t in (*outer, *given) if len(t.split()) > 4]
    return name, []


def _texts(node: ast.AST, path: Path, scope: ast.AST, depth: int) -> list[str]:
    """Return what an expression may read, as templates."""
    if depth > _DEPTH:
        return ["…"]
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value, path, scope, depth + 1)[:4]
    if isinstance(node, ast.JoinedStr):
        return _joined([_texts(part, path, scope, depth + 1) for part in node.values])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined([_texts(n, path, scope, depth + 1) for n in (node.left, node.right)])
    if isinstance(node, ast.IfExp):
        return [t for n in (node.body, node.orelse) for t in _texts(n, path, scope, depth + 1)]
    if isinstance(node, ast.Name):
        return _of_name(node.id, path, scope, depth)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _of_call(node, path, scope, depth)
    return ["…"]


def _joined(parts: list[list[str]]) -> list[str]:
    texts = [""]
    for part in parts:
        texts = [a + b for a in texts for b in part][:8]
    return [re.sub(r"…(\s*…)+", "…", text) for text in texts]


def _of_name(name: str, path: Path, scope: ast.AST, depth: int) -> list[str]:
    """Follow a name to what was assigned to it in the scope, or in a module."""
    values = [
        node.value
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]
    values += [
        v
        for v, _ in _named().get(name, [])
        if isinstance(v, (ast.Constant, ast.JoinedStr, ast.BinOp))
    ]
    texts = [t for value in values[:3] for t in _texts(value, path, scope, depth + 1)]
    return [t for t in texts if t != "…"] or ["…"]


def _of_call(call: ast.Call, path: Path, scope: ast.AST, depth: int) -> list[str]:
    """Follow a call of a function of the library to the strings that it returns."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    functions = [(f, p) for f, p in _named().get(name, []) if isinstance(f, ast.FunctionDef)]
    same = [(f, p) for f, p in functions if p == path] or functions
    texts: list[str] = []
    for function, place in same[:1]:
        given = dict(zip((a.arg for a in function.args.args), call.args, strict=False))
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                for text in _texts(node.value, place, function, depth + 1):
                    texts.append(text)
        inner = [t for arg in given.values() for t in _texts(arg, path, scope, depth + 1)]
        says = [t for t in inner if re.sub(r"[…\W]", "", t)]
        if len(texts) == 1 and texts[0].count("…") == 1 and says:
            texts = [texts[0].replace("…", t) for t in says]
    return texts or ["…"]


if __name__ == "__main__":
    for message in unexplained():
        print(f"{message.place} [{message.kind}] {message.text}")
    for words in stale():
        print(f"no message has: {words}")
    print(
        f"{len(messages())} messages, {len(unexplained())} of them not on {PAGE.relative_to(ROOT)}"
    )
