"""Rows on disk: JSON Lines of records, written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from stages.domain.core.records import Record
from stages.errors import InputError
from stages.runtime import paths

R = TypeVar("R", bound=Record)


#: Most characters of a value in a message.
QUOTED_CHARACTERS = 200


class RowError(InputError, ValueError):
    """A file between stages has an invalid row; the message names file, line and field."""


def iterate_rows(path: Path, kind: type[R]) -> Iterator[R]:
    """Iterate over the records of a JSON Lines file.

    Raises:
        RowError: a line is not a ``kind``; the message names file, line and field.
        FileNotFoundError: no such file.
    """
    # As bytes: a line that is not UTF-8 is then an invalid row with a line number, not a decoding
    # error of the file.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield parse_row(line, kind, f"{path}:{number}")


def parse_row(line: bytes, kind: type[R], where: str) -> R:
    """Parse the record of one line; ``where`` opens the message.

    Raises:
        RowError: the line is not a ``kind``.
    """
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"{part}." for part in first["loc"]).rstrip(".")
        remedy = "it is damaged, or was written by another version: dvc repro --force the stage that makes it"
        problem = f"{f'{field}: ' if field else ''}{first['msg']}"
        raise RowError(where, f"{problem} (value {_short(first['input'])})", remedy) from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]}…"


def read_rows(path: Path, kind: type[R]) -> list[R]:
    return list(iterate_rows(path, kind))


def write_rows(path: Path, rows: Iterable[Record]) -> int:
    """Write records as JSON Lines and return their number. A temporary file is written and renamed,
    so the file is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + paths.UNFINISHED)
    count = 0
    with unfinished.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(row.model_dump_json(exclude_none=True) + "\n")
            count += 1
    unfinished.replace(path)
    return count


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON with a final line break, keys in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_record(path: Path, record: Record) -> None:
    """Write one record as :func:`write_json` does, fields in their order; None is written as
    null."""
    write_json(path, record.model_dump(mode="json"))


def read_record(path: Path, kind: type[R]) -> R:
    """Read the one record of a JSON file.

    Raises:
        RowError: it is not a ``kind``; the message names file and field.
        FileNotFoundError: no such file.
    """
    return parse_row(path.read_bytes(), kind, str(path))


def read_json(path: Path) -> Any:
    """Read a JSON file, such as one that :func:`write_json` wrote.

    Raises:
        FileNotFoundError: no such file.
        RowError: it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RowError(
            str(path), f"not JSON ({error})", "it is damaged: dvc repro --force the stage that makes it"
        ) from error
