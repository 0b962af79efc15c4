"""Rows of a JSON document, one after the other: each is parsed when it is reached, and its line is
known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stages.lib.annotations.annotation import SourceError

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
#: Names of a document's fields that an error lists.
_NAMED = 12


class Element(NamedTuple):
    """An entry of a list or an object: its line in the text, its key or place, its value."""

    line: int
    key: str | int
    value: Any


def elements(text: str, path: Sequence[str], file: str) -> Iterator[Element]:
    """Iterate over the entries of the list or object that ``path`` leads to; an empty path: of the
    document itself.

    Raises:
        SourceError: the text is not JSON, the path leads nowhere, or to no list or object.
    """
    scanner = _Scanner(text, file)
    yield from scanner.walk(_skip(text, 0), path)
    if not path and (rest := _skip(text, scanner.closed + 1)) < len(text):
        raise scanner.broken(rest, "something stands behind the document")


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None  # it matches the empty text
    return match.end()


class _Scanner:
    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.counted_to, self.line = 0, 1
        #: Place of the bracket that closes the list or object of the entries.
        self.closed = 0

    def walk(self, at: int, path: Sequence[str], passed: tuple[str, ...] = ()) -> Iterator[Element]:
        opening = self.text[at : at + 1]
        if opening not in ("{", "["):
            value = self.parsed(at)[0]
            raise SourceError(
                self.file,
                f"rows: {'.'.join(passed) or 'the document'} is {type(value).__name__}, not a list or an object",
                "name the list of the rows in `rows` of the mapping",
            )
        if not path:
            yield from self.entries(at)
            return
        names = []
        for name, begins in self.fields(at):
            if name == path[0]:
                yield from self.walk(begins, path[1:], (*passed, path[0]))
                return
            names.append(name)
        listed = f"it has {', '.join(map(repr, names[:_NAMED]))}" if names else "it is empty, or a list"
        raise SourceError(
            self.file,
            f"rows: {'.'.join(passed) or 'the document'} has no field {path[0]!r} ({listed})",
            "correct `rows` of the mapping, or see ingest.format and ingest.annotations",
        )

    def entries(self, at: int) -> Iterator[Element]:
        if self.text[at] == "{":
            for name, begins in self.fields(at, skips=False):
                line = self.line_of(begins)
                value, self.next = self.parsed(begins)
                yield Element(line, name, value)
            return
        place, at = 0, _skip(self.text, at + 1)
        while self.text[at : at + 1] != "]":
            line = self.line_of(at)
            value, at = self.parsed(at)
            yield Element(line, place, value)
            place, at = place + 1, self.behind_comma(at, "]")
        self.closed = at

    def fields(self, at: int, *, skips: bool = True) -> Iterator[tuple[str, int]]:
        """Iterate over the names of an object at ``at`` and the places of their values; without
        ``skips`` the caller parses each and sets ``next``."""
        if self.text[at] == "[":
            return
        at = _skip(self.text, at + 1)
        while self.text[at : at + 1] != "}":
            name, at = self.parsed(at)
            at = _skip(self.text, at)
            if not isinstance(name, str) or self.text[at : at + 1] != ":":
                raise self.broken(at, "need a name and a colon")
            begins = self.next = _skip(self.text, at + 1)
            yield name, begins
            if skips:
                _, self.next = self.parsed(begins)
            at = self.behind_comma(self.next, "}")
        self.closed = at

    def behind_comma(self, at: int, closing: str) -> int:
        at = _skip(self.text, at)
        if self.text[at : at + 1] == ",":
            at = _skip(self.text, at + 1)
            if self.text[at : at + 1] == closing:
                raise self.broken(at, "a comma with nothing behind it")
        elif self.text[at : at + 1] != closing:
            raise self.broken(at, f"need a comma or {closing}")
        return at

    def parsed(self, at: int) -> tuple[Any, int]:
        try:
            return _DECODER.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            raise self.broken(error.pos, error.msg) from error
        except (ValueError, RecursionError) as error:
            raise self.broken(at, str(error)) from error

    def broken(self, at: int, problem: str) -> SourceError:
        line = self.text.count("\n", 0, at) + 1
        remedy = "download it again, or correct it"
        if self.text.lstrip().startswith("{") and "\n{" in self.text:
            remedy = "if each line is an object, set `container: jsonl` in the mapping"
        return SourceError(self.file, f"not JSON: line {line}: {problem}", remedy)

    def line_of(self, at: int) -> int:
        self.line += self.text.count("\n", self.counted_to, at)
        self.counted_to = at
        return self.line
