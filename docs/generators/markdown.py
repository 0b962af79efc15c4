"""Small pieces of Markdown that the generated pages share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from generators.roles import plain_roles

_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
#: Characters of prose that Markdown or HTML would read as markup.
_MARKUP = re.compile(r"([\\*_\[\]>#|{}])")


def prose(text: str) -> str:
    """Escape a text's markup, and keep its code spans; roles of reStructuredText become code
    spans."""
    parts = _CODE.split(" ".join(plain_roles(text).split()))
    return "".join(
        f"`{part.strip('`')}`" if number % 2 else _MARKUP.sub(r"\\\1", part).replace("<", "&lt;")
        for number, part in enumerate(parts)
    )


def code(text: str) -> str:
    """A code span; one that holds a backtick has two of them around it."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def definition(term: str, paragraphs: Sequence[str]) -> list[str]:
    """The lines of one entry of a definition list."""
    first, *others = paragraphs or [""]
    lines = [term, f":   {first}"]
    for paragraph in others:
        lines += ["", f"    {paragraph}"]
    return [*lines, ""]


def joined(lines: Iterable[str]) -> str:
    """A page: its lines, with a newline at the end."""
    return "\n".join(lines) + "\n"
