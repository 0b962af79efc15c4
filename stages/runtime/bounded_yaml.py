"""YAML reader with bounds: ten lines of aliases can expand to billions of values, and PyYAML would
build them all.

One pass over the parser's events, which keeps no tree, limits size, depth and the expansion of
aliases, and finds duplicate keys (PyYAML silently takes the last one). Only then is the document
built, with the safe loader.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from stages.errors import InputError
from stages.runtime.plain import one_line

#: The largest recipe has 13 kB.
MOST_BYTES = 1_000_000
#: Limit of ``dvc.lock``, which grows by some 400 bytes per stage and file.
MOST_LOCK_BYTES = 32_000_000
MOST_LEVELS = 64
#: Largest number of values that all aliases of a document may expand to.
MOST_REPEATED = 100_000
_QUOTED_CHARACTERS = 200

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Conflict markers of git.
_CONFLICT = re.compile(r"^(<{7}|>{7})(?: |$)", re.MULTILINE)
#: Python refuses decimal numbers of 4,300 digits, and takes minutes for others of that size.
_LONG_NUMBER = re.compile(r"[-+]?[0-9.][0-9a-fA-FxXoO_:.+-]{99,}")


class YamlError(InputError, ValueError):
    """A document is invalid; the message names file, line, problem and remedy."""

    status = 2


class MergeConflict(YamlError):
    """A file holds both sides of a merge conflict, which a person must resolve."""


def read_yaml(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Read the value of a YAML file; None if it is empty.

    Raises:
        FileNotFoundError: the file does not exist.
        YamlError: see :func:`read_text`; or the text is not YAML, or breaks a bound of this module.
    """
    return parse_yaml(read_text(path, most_bytes), str(path))


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Read the text of a file that a person may have written.

    Raises:
        FileNotFoundError: the file does not exist.
        YamlError: it is not a regular file, is larger than ``most_bytes``, or is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise YamlError(
            str(path), f"is {'a folder' if path.is_dir() else 'not an ordinary file'}", "put a YAML file there"
        )
    size = path.stat().st_size
    if size > most_bytes:
        raise YamlError(
            str(path),
            f"has {size:,} bytes, and at most {most_bytes:,} are read",
            f"restore it (git checkout -- {path.name})",
        )
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(
            str(path), f"line {line}: byte 0x{content[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        ) from error


def parse_yaml(text: str, name: str) -> Any:
    """Parse a YAML text; messages start with ``name``.

    Raises:
        MergeConflict: the text contains git's conflict markers.
        YamlError: the text is not YAML, or breaks a bound of this module.
    """
    if (mark := _CONFLICT.search(text)) is not None:
        short = name.rpartition("/")[2]
        raise MergeConflict(
            name,
            f"merge conflict in {short} (line {text.count(chr(10), 0, mark.start()) + 1})",
            f"settle it: edit the"
            f" file, or take one side whole (git checkout --ours -- {short}, or --theirs), then: git add {short}",
        )
    try:
        _check(text, name)
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - the safe one
    except yaml.YAMLError as error:
        raise YamlError(name, f"not YAML: {_problem(error, text)}", "correct it there") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, YamlError):
            raise
        # From PyYAML's constructors: a date such as 2001-99-99, `!!bool maybe`.
        reason = one_line(error)[:_QUOTED_CHARACTERS]
        raise YamlError(
            name, f"holds a value that its YAML tag does not allow ({reason})", "write it in quotes, or correct it"
        ) from error


def _problem(error: yaml.YAMLError, text: str) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}, column {mark.column + 1}: {one_line(problem)[:_QUOTED_CHARACTERS]}"
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return (  # NUL and other control characters
            f"line {line}: character U+{int(error.character):04X} is not allowed in YAML"
        )
    return one_line(" ".join(str(error).split()))[:_QUOTED_CHARACTERS]


class _Open:
    """A list or table that is being parsed: its anchor, the number of its values so far, and the
    lines of its keys."""

    def __init__(self, anchor: str | None, is_table: bool) -> None:
        self.anchor, self.is_table = anchor, is_table
        self.values, self.entries = 1, 0
        self.keys: dict[str, int] = {}


def _check(text: str, name: str) -> None:
    """Check the bounds of a document and its keys.

    Raises:
        YamlError: a bound is broken, or a key occurs twice in one table.
    """
    inside: list[_Open] = []
    sizes: dict[str, int] = {}
    repeated = 0
    for event in yaml.parse(text, Loader=_LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 1
        values = 0
        if isinstance(event, yaml.events.CollectionStartEvent):
            inside.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(inside) > MOST_LEVELS:
                raise YamlError(
                    name,
                    f"line {line}: nested {MOST_LEVELS + 1} levels deep, at most {MOST_LEVELS} are read",
                    "correct it",
                )
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise YamlError(
                    name, f"line {line}: *{event.anchor} names nothing that stands whole above it", "write it out"
                )
            values = sizes[event.anchor]
            repeated += values
            if repeated > MOST_REPEATED:
                raise YamlError(
                    name,
                    f"line {line}: with *{event.anchor} its aliases stand for more than {MOST_REPEATED:,} values",
                    "write out what is meant",
                )
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
            _check_scalar(event, name, line)
            if inside and inside[-1].is_table and inside[-1].entries % 2 == 0:
                _check_key(inside[-1].keys, event.value, name, line)
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.events.CollectionEndEvent):
            closed = inside.pop()
            values = closed.values
            if closed.anchor:
                sizes[closed.anchor] = values
        if values and inside:
            inside[-1].values += values
            inside[-1].entries += 1


def _check_scalar(event: yaml.ScalarEvent, name: str, line: int) -> None:
    if (event.implicit[0] or event.tag) and _LONG_NUMBER.fullmatch(event.value):
        raise YamlError(name, f"line {line}: a number of {len(event.value):,} digits", "write one that is meant")


def _check_key(keys: dict[str, int], key: str, name: str, line: int) -> None:
    if key in keys:
        quoted = one_line(key)[:_QUOTED_CHARACTERS]
        raise YamlError(
            name,
            f"line {line}: {quoted!r} stands in line {keys[key]} of the same table already",
            "keep one of them",
        )
    keys[key] = line


def end_of(node: Any) -> int:
    """Index in the text at which a composed value ends; the end mark of a block lies behind the
    comments that follow it."""
    if getattr(node, "flow_style", True) is False and node.value:
        last = node.value[-1]
        return end_of(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
