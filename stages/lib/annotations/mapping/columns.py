"""Columns of a row, as a mapping names them: paths, templates, conditions.

A path is names with full stops between them: ``caption.content``. ``*`` stands for each entry of a
list or object, a number for one entry of a list, ``captions[idx=-1]`` for the entry of a list whose
``idx`` is ``-1``. A question mark behind the path allows that the column is missing. ``$key`` is
the key of the row in its object (or its place in its list), ``$value`` the row itself where it is
no object, ``$outer`` the row around an entry, ``$file`` the name of the file without suffix,
``$split`` the split of a ``datasets`` folder. A text with braces is a template:
``{youtube_id}_{time_start:06d}``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isnan
from typing import Any

from pydantic import field_validator

from stages.domain.core.records import Record
from stages.lib.annotations.annotation import short

_STEP = re.compile(r"([^.\[\]?]+)(?:\[([^=\]]+)=([^\]]*)\])?(?:\.|$)")
_FORMATTER = string.Formatter()


class ColumnProblem(ValueError):
    """A value of a row does not fit the mapping. ``column``: its column; ``missing``: the row has
    no such column."""

    def __init__(self, column: str, problem: str, *, missing: bool = False) -> None:
        super().__init__(f"{column}: {problem}")
        self.column, self.missing = column, missing


@dataclass(frozen=True)
class Entry:
    """A row, or an entry of a list in a row: ``value``, and what else a path may name."""

    value: Any
    key: str | int = 0
    outer: Entry | None = None
    file: str = ""
    split: str | None = None

    def special(self, name: str) -> Any:
        """The value of a name that begins with ``$``."""
        if name == "$outer":
            return self.outer
        return {"$key": self.key, "$value": self.value, "$file": self.file, "$split": self.split}[name]


class _Absent:
    """Mark of a column that is not there."""


_ABSENT = _Absent()
SPECIAL = ("$key", "$value", "$outer", "$file", "$split")


class Step(Record):
    """One name of a path, with the condition on the entries of its list."""

    name: str
    key: str | None = None
    equals: str = ""


@lru_cache(maxsize=4096)
def steps(path: str) -> tuple[tuple[Step, ...], bool]:
    """Parse a path: its steps, and whether the column may be missing.

    Raises:
        ValueError: it is not a path.
    """
    optional = path.endswith("?")
    text = path.removesuffix("?")
    found, at = list[Step](), 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or (match[0].endswith(".") and match.end() == len(text)):
            break
        found.append(Step(name=match[1], key=match[2], equals=match[3] or ""))
        at = match.end()
    if not found or at < len(text):
        raise ValueError(f"{path!r} is no path of a column: write names with full stops between them")
    if found[0].name.startswith("$") and found[0].name not in SPECIAL:
        raise ValueError(f"{found[0].name!r} is unknown: there are {', '.join(SPECIAL)}")
    return tuple(found), optional


@lru_cache(maxsize=4096)
def template(text: str) -> tuple[tuple[str, str | None, str], ...] | None:
    """Parse a template: texts, each with the path and the format that follow it; None if the text
    has no braces.

    Raises:
        ValueError: its braces are unpaired, or hold no path.
    """
    if "{" not in text and "}" not in text:
        return None
    parts = []
    try:
        for literal, path, spec, conversion in _FORMATTER.parse(text):
            if conversion is not None:
                raise ValueError("a conversion with ! is not supported")
            if path is not None:
                steps(path)
            parts.append((literal, path, spec or ""))
    except ValueError as error:
        raise ValueError(f"{text!r} is no template: {error}") from error
    return tuple(parts)


def checked(text: str) -> str:
    """Return a path or template if it is one.

    Raises:
        ValueError: it is neither.
    """
    if template(text) is None:
        steps(text)
    return text


def path_checked(text: str) -> str:
    """Return a path if it is one.

    Raises:
        ValueError: it is none.
    """
    steps(text)
    return text


def paths_in(text: str) -> Iterator[str]:
    """Iterate over the paths of a template, or yield the path itself."""
    parts = template(text)
    if parts is None:
        yield text
    else:
        yield from (path for _, path, _ in parts if path is not None)


def value_of(entry: Entry, text: str) -> Any:
    """Read a path (None if the value is null, or missing where it may be) or fill in a template
    (None if a value of it is null).

    Raises:
        ColumnProblem: a column is missing, or does not fit the template's format.
    """
    parts = template(text)
    if parts is None:
        return _at(entry, text)
    filled = ""
    for literal, path, spec in parts:
        filled += literal
        if path is not None:
            value = _at(entry, path)
            if value is None:
                return None
            filled += _formatted(value, spec, path)
    return filled


def _formatted(value: Any, spec: str, path: str) -> str:
    if isinstance(value, list | dict):
        raise ColumnProblem(path, f"need one value, found {type(value).__name__} (value {short(value)})")
    try:
        if spec.endswith("d"):
            exact = Fraction(str(value))
            if exact.denominator != 1:
                raise ValueError("not a whole number")
            return format(int(exact), spec)
        return format(float(value) if spec[-1:] in ("f", "g", "e") else str(value), spec)
    except ValueError as error:
        raise ColumnProblem(path, f"{short(value)} does not fit the format {spec!r} ({error})") from error


def _at(entry: Entry, path: str) -> Any:
    names, optional = steps(path)
    plain = path.removesuffix("?")
    try:
        whole = isinstance(entry.value, Mapping) and plain in entry.value
        value = entry.value[plain] if whole else _walk(entry, names)
    except _Gone as error:
        if optional:
            return None
        raise ColumnProblem(plain, f"no such column; {listed(error.value)}", missing=True) from error
    # Tables of numbers write NaN where a value is missing.
    return None if isinstance(value, float) and isnan(value) else value


class _Gone(LookupError):
    """A step of a path leads nowhere from ``value``."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _walk(value: Any, names: tuple[Step, ...]) -> Any:
    for place, step in enumerate(names):
        if isinstance(value, Entry):
            value = value.special(step.name) if step.name in SPECIAL else _field(value.value, step.name)
        elif step.name == "*":
            rest = names[place + 1 :]
            entries = value.values() if isinstance(value, Mapping) else value
            if not isinstance(entries, list | tuple) and not isinstance(value, Mapping):
                raise _Gone(value)
            return [_walk(item, rest) for item in entries]
        else:
            value = _field(value, step.name)
        if step.key is not None:
            value = _matching(value, step)
        if value is None and place + 1 < len(names):
            return None
    return value.value if isinstance(value, Entry) else value


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name not in value:
            raise _Gone(value)
        return value[name]
    if isinstance(value, list | tuple) and re.fullmatch(r"-?\d+", name):
        place = int(name)
        if -len(value) <= place < len(value):
            return value[place]
    raise _Gone(value)


def _matching(value: Any, step: Step) -> Any:
    if not isinstance(value, list | tuple):
        raise _Gone(value)
    for entry in value:
        if isinstance(entry, Mapping) and str(entry.get(step.key)) == step.equals:
            return entry
    raise _Gone(value)


def listed(value: Any) -> str:
    """Name the columns that there are."""
    if isinstance(value, Mapping):
        return f"there are {', '.join(map(str, value))}" if value else "the row is empty"
    if isinstance(value, list | tuple):
        return f"there is a list of {len(value)}"
    return f"there is {short(value)}"


class Test(Record):
    """A condition on a column beside equality."""

    #: True: there must be a value that is not null and not empty; False: there must be none.
    present: bool | None = None
    #: A regular expression that must be found in it.
    matches: str | None = None

    @field_validator("matches")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        return value if value is None else regular(value)


Scalar = str | int | float | bool | None
#: By column: a test, the value that it must have, or several of which it must have one.
Conditions = dict[str, Test | list[Scalar] | Scalar]


def regular(pattern: str) -> str:
    """Return a regular expression if it is one.

    Raises:
        ValueError: it is none.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


def holds(entry: Entry, conditions: Conditions) -> bool:
    """True if a row fulfils all conditions."""
    return all(_holds(value_of(entry, path), condition) for path, condition in conditions.items())


def _holds(value: Any, condition: Test | list[Scalar] | Scalar) -> bool:
    if isinstance(condition, Test):
        present = value is not None and value not in ("", [], {})
        if condition.present is not None and condition.present != present:
            return False
        return condition.matches is None or (present and re.search(condition.matches, str(value)) is not None)
    expected = condition if isinstance(condition, list) else [condition]
    return any(str(value) == str(one) for one in expected)
