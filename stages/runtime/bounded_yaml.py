"""YAML that is read in a second whatever it holds: ten lines of aliases stand for billions of values, and PyYAML would make them all.

One pass over the parser's events, which keeps no tree, bounds size, depth and what aliases stand for, and finds keys that are said twice
(PyYAML takes the last one without a word). Only then is the document built, with the safe loader.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from stages.errors import VidbridgeError
from stages.runtime.plain import one_line

#: The largest recipe has 13 kB.
MOST_BYTES = 1_000_000
#: Of ``dvc.lock``, which grows with stages and files: some 400 bytes for each.
MOST_LOCK_BYTES = 32_000_000
MOST_LEVELS = 64
#: Values that aliases may stand for, all together.
MOST_REPEATED = 100_000
_QUOTED_CHARACTERS = 200

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: As git leaves them around what two sides of a merge, a rebase or a stash changed.
_CONFLICT = re.compile(r"^(<{7}|>{7})(?: |$)", re.MULTILINE)
#: Python refuses decimal numbers of 4,300 digits, and takes minutes for others of that size.
_LONG_NUMBER = re.compile(r"[-+]?[0-9.][0-9a-fA-FxXoO_:.+-]{99,}")


class YamlError(VidbridgeError, ValueError):
    """A document that cannot be used: file, line, what is wrong there, and the remedy."""

    status = 2


class MergeConflict(YamlError):
    """Two sides of a merge stand in a file: neither is taken, a person settles it."""


def read_yaml(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a YAML file, None where it is empty.

    Raises:
        FileNotFoundError: there is none.
        YamlError: as :func:`read_text`, no YAML, or it breaks a bound of this module.
    """
    return parse_yaml(read_text(path, most_bytes), str(path))


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file that a person may have put there.

    Raises:
        FileNotFoundError: there is none.
        YamlError: it is no file, larger than ``most_bytes``, or not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise YamlError(f"{path}: is {'a folder' if path.is_dir() else 'no ordinary file'}; put a YAML file there")
    size = path.stat().st_size
    if size > most_bytes:
        raise YamlError(
            f"{path}: has {size:,} bytes, and at most {most_bytes:,} are read; restore it (git checkout -- {path.name})"
        )
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(f"{path}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8") from error


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; ``name`` opens the message.

    Raises:
        MergeConflict: git's marks of a conflict stand in it.
        YamlError: no YAML, or it breaks a bound of this module.
    """
    if (mark := _CONFLICT.search(text)) is not None:
        short = name.rpartition("/")[2]
        raise MergeConflict(
            f"{name}: merge conflict in {short} (line {text.count(chr(10), 0, mark.start()) + 1}); settle it: edit the file, or take"
            f" one side whole (git checkout --ours -- {short}, or --theirs), then: git add {short}"
        )
    try:
        _check(text, name)
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - the safe one
    except yaml.YAMLError as error:
        raise YamlError(f"{name}: not YAML: {_said(error, text)}; correct it there") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, YamlError):
            raise
        # From PyYAML's constructors: a date such as 2001-99-99, `!!bool maybe`.
        said = one_line(error)[:_QUOTED_CHARACTERS]
        raise YamlError(
            f"{name}: holds a value that its YAML tag does not allow ({said}); write it in quotes, or correct it"
        ) from error


def _said(error: yaml.YAMLError, text: str) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}, column {mark.column + 1}: {one_line(problem)[:_QUOTED_CHARACTERS]}"
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: character U+{int(error.character):04X} is not allowed in YAML"  # NUL and other control characters
    return one_line(" ".join(str(error).split()))[:_QUOTED_CHARACTERS]


class _Open:
    """A list or table that the pass is in: its anchor, how many values it stands for so far, and the keys that it has had."""

    def __init__(self, anchor: str | None, is_table: bool) -> None:
        self.anchor, self.is_table = anchor, is_table
        self.values, self.entries = 1, 0
        self.keys: dict[str, int] = {}


def _check(text: str, name: str) -> None:
    """
    Raises:
        YamlError: a bound is broken, or a key stands twice in one table.
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
                    f"{name}: line {line}: nested {MOST_LEVELS + 1} levels deep, at most {MOST_LEVELS} are read; correct it"
                )
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise YamlError(f"{name}: line {line}: *{event.anchor} names nothing that stands whole above it; write it out")
            values = sizes[event.anchor]
            repeated += values
            if repeated > MOST_REPEATED:
                raise YamlError(
                    f"{name}: line {line}: with *{event.anchor} its aliases stand for more than {MOST_REPEATED:,} values; write out what"
                    " is meant"
                )
        elif isinstance(event, yaml.ScalarEvent):
            values = 1
            _check_scalar(event, name, line)
            if inside and inside[-1].is_table and inside[-1].entries % 2 == 0:
                _check_key(inside[-1].keys, event.value, name, line)
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.events.CollectionEndEvent):
            ended = inside.pop()
            values = ended.values
            if ended.anchor:
                sizes[ended.anchor] = values
        if values and inside:
            inside[-1].values += values
            inside[-1].entries += 1


def _check_scalar(event: yaml.ScalarEvent, name: str, line: int) -> None:
    if (event.implicit[0] or event.tag) and _LONG_NUMBER.fullmatch(event.value):
        raise YamlError(f"{name}: line {line}: a number of {len(event.value):,} digits; write one that is meant")


def _check_key(keys: dict[str, int], key: str, name: str, line: int) -> None:
    if key in keys:
        said = one_line(key)[:_QUOTED_CHARACTERS]
        raise YamlError(f"{name}: line {line}: {said!r} stands in line {keys[key]} of the same table already; keep one of them")
    keys[key] = line


def end_of(node: Any) -> int:
    """The index in the text at which a composed value ends; a block's own mark lies behind the comments that follow it."""
    if getattr(node, "flow_style", True) is False and node.value:
        last = node.value[-1]
        return end_of(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
