"""Documents of the repository's root as pages of the documentation."""

from __future__ import annotations

import posixpath
import re
from itertools import count

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
#: A decision is a paragraph that opens with its sentence in bold.
_DECISION = re.compile(r"^\*\*(.+?)\*\*", re.MULTILINE | re.DOTALL)


def page(text: str, name: str, path: str) -> str:
    """The page at ``path`` that shows the document ``name``; decisions are numbered there, each
    with a heading of its own."""
    shown = numbered(text) if name == "DECISIONS.md" else text
    return _LINK.sub(lambda match: _moved(match, path), shown)


def numbered(text: str) -> str:
    """Give each decision a number and a heading, so that it can be linked and found. Newest last,
    so numbers stay."""
    numbers = count(1)
    entries = re.sub(
        _DECISION, lambda match: f"## {next(numbers)} · {' '.join(match[1].split()).rstrip('.')}\n\n", text
    )
    return f"---\nhide: [toc]\n---\n\n{entries}"


def _moved(match: re.Match[str], path: str) -> str:
    """A link of a document at the root, as the page at ``path`` has to write it; files outside of
    docs/ are named, not linked."""
    picture, text, target = match.groups()
    if "://" in target or target.startswith("#"):
        return match[0]
    if target.startswith("docs/") and target.partition("#")[0].endswith(".md"):
        return f"{picture}[{text}]({posixpath.relpath(target.removeprefix('docs/'), posixpath.dirname(path))})"
    return text
