"""Entries of a row, and texts in it."""

from __future__ import annotations

import re
from typing import Any

from stages.lib.annotations.annotation import short
from stages.lib.annotations.mapping.columns import ColumnProblem, Entry, value_of
from stages.lib.annotations.mapping.schema import Each, Text


def entries_of(entry: Entry, each: Each | None, name: str) -> list[Entry]:
    """List the entries of a row: the row itself, those of its list or object, or those of several
    lists side by side.

    Raises:
        ColumnProblem: a list is missing or of another type, or the lists have different lengths.
    """
    if each is None:
        return [entry]
    if isinstance(each, str):
        pairs = _pairs(value_of(entry, each), each)
        return [Entry(value, key, entry, entry.file, entry.split) for key, value in pairs]
    lists = {to: [value for _, value in _pairs(value_of(entry, path), path)] for to, path in each.items()}
    if len({len(values) for values in lists.values()}) > 1:
        counted = " and ".join(
            f"{len(values)} {path.removesuffix('?')}"
            for path, values in zip(each.values(), lists.values(), strict=True)
        )
        raise ColumnProblem(name, f"{counted}: need as many; which belong together cannot be told")
    return [
        Entry(dict(zip(lists, values, strict=True)), place, entry, entry.file, entry.split)
        for place, values in enumerate(zip(*lists.values(), strict=True))
    ]


def _pairs(value: Any, path: str) -> list[tuple[str | int, Any]]:
    if value is None:
        return []
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    raise ColumnProblem(path, f"need a list, found {type(value).__name__} (value {short(value)})")


def text_of(entry: Entry, text: Text) -> str:
    """Read a text: a constant, a column, or what stands between the tags in a column.

    Raises:
        ColumnProblem: the column is missing, is no text, or has no such tags.
    """
    if text.text is not None:
        return text.text
    assert text.of is not None
    found = plain_text(value_of(entry, text.of), text.of)
    if text.tag is None:
        return found
    match = re.search(rf"<{text.tag}>(.*?)</{text.tag}>", found, re.DOTALL)
    if match is None:
        raise ColumnProblem(text.of, f"{short(found)} has no <{text.tag}>…</{text.tag}>")
    return match[1].strip()


def plain_text(value: Any, column: str) -> str:
    """Return a text or number as a text without blanks around it; null is the empty text.

    Raises:
        ColumnProblem: it is neither.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ColumnProblem(
            column.removesuffix("?"), f"need a text, found {type(value).__name__} (value {short(value)})"
        )
    return str(value).strip()


def single(values: Any, column: str) -> str | None:
    """Return the only text of a value, or of a list of equal ones; None if the list has different
    ones or none.

    Raises:
        ColumnProblem: it is no text.
    """
    if values is None:
        return None
    if isinstance(values, list | tuple):
        texts = {plain_text(value, column) for value in values}
        return texts.pop() or None if len(texts) == 1 else None
    return plain_text(values, column) or None
