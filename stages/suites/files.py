"""Annotation files as they are published: JSON, JSON Lines or Parquet, alone or in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from stages.suites.benchmark import AnnotationError, Item

Row = TypeVar("Row", bound=BaseModel)
ItemT = TypeVar("ItemT", bound=Item[Any])

#: Longer values are cut in messages.
_SHOWN = 60


class Raw(NamedTuple):
    """One entry of a file: ``FILE row N``, the file's name without its suffix, its place in that file from 0, and its value."""

    where: str
    stem: str
    number: int
    value: Any


def rows(path: Path, names: tuple[str, ...]) -> list[Raw]:
    """Every entry of a file, or of the files in a folder (at any depth) that match one of ``names``, in the order of their names.

    Raises:
        AnnotationError: there is no such file, it cannot be read, or it is empty.
    """
    found = [raw for file in _files(path, names) for raw in _entries(file)]
    if not found:
        raise AnnotationError(f"annotations: {path}: holds no row; download it again")
    return found


def typed(kind: type[Row], raw: Raw) -> Row:
    """The entry as a row of ``kind``.

    Raises:
        AnnotationError: a field is missing or of another type; the message names it, its value, and what the entry holds instead.
    """
    try:
        return kind.model_validate(raw.value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the row"
        if first["type"] == "missing":
            has = ", ".join(list(raw.value)[:12]) if isinstance(raw.value, dict) else type(raw.value).__name__
            raise AnnotationError(f"annotations: {raw.where}: {field}: missing; the row has {has}") from error
        message = first["msg"].removeprefix("Value error, ")
        raise AnnotationError(f"annotations: {raw.where}: {field}: {message} (value {shown(first['input'])})") from error


def unique(items: Iterable[ItemT]) -> list[ItemT]:
    """The items, which must have different ids.

    Raises:
        AnnotationError: two have the same.
    """
    known: dict[str, ItemT] = {}
    for item in items:
        if item.item_id in known:
            raise AnnotationError(f"annotations: id: {shown(item.item_id)} stands twice; give one copy of the annotations only")
        known[item.item_id] = item
    return list(known.values())


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _files(path: Path, names: tuple[str, ...]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AnnotationError(f"annotations: {path}: no such file or folder; give the benchmark's annotation file, or its folder")
    # The first name that is there: a folder may hold the same annotations in two forms.
    for name in names:
        if found := sorted(file for file in path.rglob(name) if file.is_file()):
            return found
    raise AnnotationError(f"annotations: {path}: holds none of {', '.join(names)}; give the annotation file itself")


def _entries(file: Path) -> Iterator[Raw]:
    try:
        values = _parquet(file) if file.suffix == ".parquet" else _json(file)
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"annotations: {file}: cannot be read: {error}; download it again") from error
    for number, value in enumerate(values):
        yield Raw(f"{file.name} row {number + 1}", file.stem, number, value)


def _json(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8-sig")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return _json_lines(file, text)
    return document if isinstance(document, list) else [document]


def _json_lines(file: Path, text: str) -> list[Any]:
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise AnnotationError(f"annotations: {file.name}:{number}: not JSON: {error}; download it again") from error
    return values


def _parquet(file: Path) -> list[Any]:
    # Half a second of import that other formats need not pay; `datasets` brings it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_table(file).to_pylist())
    except pa.ArrowException as error:
        raise AnnotationError(f"annotations: {file}: no Parquet: {error}; download it again") from error
