"""Read annotation files as they are published: JSON, JSON Lines or Parquet, alone or in a
folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from stages.domain.core.records import Reject
from stages.errors import Fault
from stages.runtime.plain import not_json
from stages.tools.suites.published.benchmark import AnnotationError, Item, Questions

Row = TypeVar("Row", bound=BaseModel)
RowT = TypeVar("RowT")

#: Longer values are cut in messages.
_SHOWN = 60


class Raw(NamedTuple):
    """One entry of a file: ``FILE row N``, the file's name without its suffix, its index in that
    file from 0, and its value."""

    where: str
    stem: str
    number: int
    value: Any


class Unreadable(NamedTuple):
    """Placeholder for the value of an unreadable entry."""

    fault: Fault


def rows(path: Path, names: tuple[str, ...]) -> list[Raw]:
    """Read every entry of a file, or of the files in a folder (at any depth) that match one of
    ``names``, in the order of their names.

    Raises:
        AnnotationError: there is no such file, it cannot be read, or it is empty.
    """
    entries = [raw for file in _files(path, names) for raw in _entries(file)]
    if not entries:
        raise AnnotationError("annotations", f"{path}: holds no row", "download it again")
    return entries


def parse_row(kind: type[Row], raw: Raw) -> Row:
    """Parse the entry as a row of ``kind``.

    Raises:
        AnnotationError: a field is missing or of another type; the message names it, its value, and
            the entry's fields.
    """
    if isinstance(raw.value, Unreadable):
        raise AnnotationError("annotations", *raw.value.fault)
    try:
        return kind.model_validate(raw.value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the row"
        if first["type"] == "missing":
            has = ", ".join(list(raw.value)[:12]) if isinstance(raw.value, dict) else type(raw.value).__name__
            raise AnnotationError("annotations", f"{raw.where}: {field}: missing", f"the row has {has}") from error
        message = first["msg"].removeprefix("Value error, ")
        raise AnnotationError(
            "annotations", f"{raw.where}: {field}: {message} (value {display_value(first['input'])})", "correct the row"
        ) from error


def collect_questions(
    raws: Iterable[Raw],
    items_of: Callable[[Raw], Iterable[Item[RowT]]],
    id_of: Callable[[Raw], str | None],
    parts: Sequence[Reject] = (),
) -> Questions[RowT]:
    """Collect the questions of all entries.

    An entry that cannot be asked or scored is rejected and does not stop the others; so is a second
    one of the same id, whatever its content.

    Args:
        items_of: the questions of an entry; raises AnnotationError if it is faulty.
        id_of: the id of a faulty entry's question, if it has one.
        parts: of entries, rejected before.

    Raises:
        AnnotationError: more than half of the entries are faulty, so that these are other
            annotations, or damaged ones; the message is that of the first.
    """
    first_of: dict[str, tuple[str, Item[RowT]]] = {}
    set_aside = list(parts)
    not_asked: set[str] = set()
    first: AnnotationError | None = None
    faulty = entries = 0
    for raw in raws:
        entries += 1
        try:
            items = list(items_of(raw))
        except AnnotationError as error:
            first, faulty = first or error, faulty + 1
            set_aside.append(Reject(item=raw.where, reason="unusable-row", detail=f"{error.problem}; {error.remedy}"))
            if (item_id := id_of(raw)) is not None:
                not_asked.add(item_id)
            continue
        for item in items:
            if item.item_id not in first_of:
                first_of[item.item_id] = (raw.where, item)
                continue
            where, earlier = first_of[item.item_id]
            same = "the same" if earlier == item else "other words"
            detail = f"id {display_value(item.item_id)} is in {where} too, with {same}; the first one counts"
            set_aside.append(Reject(item=raw.where, reason="repeated-id", detail=detail))
    if first is not None and 2 * faulty > entries:
        others = f" (and {faulty - 1:,} more of {entries:,} rows are at fault)" if faulty > 1 else ""
        raise AnnotationError.from_error(first, remedy=f"{first.remedy}{others}") from first
    return Questions(
        tuple(item for _, item in first_of.values()), tuple(set_aside), frozenset(not_asked - first_of.keys())
    )


def without_blanks(
    raws: Iterable[Raw], path: tuple[str, ...], fields: tuple[str, ...] = ()
) -> tuple[list[Raw], list[Reject]]:
    """Remove blank elements from the entries' lists at ``path``. Returns the entries and a reject
    per blank.

    Args:
        fields: texts that an object of that list must have; empty: it is a list of texts.
    """
    whole: list[Raw] = []
    blanks: list[Reject] = []
    for raw in raws:
        inside = [raw.value]
        for key in path:
            inside.append(inside[-1].get(key) if isinstance(inside[-1], dict) else None)
        listed = inside.pop()
        if not isinstance(listed, list):
            whole.append(raw)
            continue
        blank = [number for number, entry in enumerate(listed) if _is_blank(entry, fields)]
        blanks += [
            Reject(
                item=f"{raw.where}: {'.'.join(path)}.{number}",
                reason="blank-part",
                detail=f"blank: {display_value(listed[number])}",
            )
            for number in blank
        ]
        value: Any = [entry for number, entry in enumerate(listed) if number not in blank]
        for key, around in zip(reversed(path), reversed(inside), strict=True):
            value = {**around, key: value}
        whole.append(raw._replace(value=value))
    return whole, blanks


def _is_blank(entry: object, fields: tuple[str, ...]) -> bool:
    if not fields:
        return isinstance(entry, str) and not entry.strip()
    return isinstance(entry, dict) and any(
        isinstance(text := entry.get(field), str) and not text.strip() for field in fields
    )


def text_of(raw: Raw, field: str) -> str | None:
    """A field of a possibly faulty entry, if it holds a text or a whole number."""
    value = raw.value.get(field) if isinstance(raw.value, dict) else None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def display_value(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _files(path: Path, names: tuple[str, ...]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AnnotationError(
            "annotations", f"{path}: no such file or folder", "pass the benchmark's annotation file, or its folder"
        )
    # The first name that exists: a folder may hold the same annotations in two forms.
    for name in names:
        if matches := sorted(file for file in path.rglob(name) if file.is_file()):
            return matches
    raise AnnotationError("annotations", f"{path}: holds none of {', '.join(names)}", "pass the annotation file itself")


def _entries(file: Path) -> Iterator[Raw]:
    try:
        values = _parquet(file) if file.suffix == ".parquet" else _json(file)
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError("annotations", f"{file}: cannot be read: {error}", "download it again") from error
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
    values: list[Any] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                values.append(Unreadable(Fault(f"{file.name}:{number}: {not_json(error)}", "download it again")))
    return values


def _parquet(file: Path) -> list[Any]:
    # Half a second of import that other formats need not pay; `datasets` brings it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_table(file).to_pylist())
    except pa.ArrowException as error:
        raise AnnotationError("annotations", f"{file}: not Parquet: {error}", "download it again") from error
