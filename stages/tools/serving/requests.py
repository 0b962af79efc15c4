"""Parse requests: JSON in one of the four forms of MLflow's scoring protocol, read within bounds
and checked row by row.

    {"dataframe_records": [{"video": "kitchen/cut-3.mp4", "question": "What happens first?",
                            "options": ["a cut", "a dish"]}]}

Python's reader makes objects of thirty times the size of a text such as ``[[],[],[]``. So the text
is scanned first, at the speed of a search, for its depth, the amount outside of strings, and the
length of strings. A video in base64 never becomes text.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from pydantic import Field, ValidationError, field_validator, model_validator

from stages.domain.core.records import Record, TaskName
from stages.tools.serving.limits import MAX_ROWS, MAX_TEXT, SHOWN, TEXT_BYTES
from stages.tools.serving.refusal import Refused

#: The forms of a request, the usual one first.
FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")
#: Bytes of JSON outside of strings: sixteen rows in indented form have six thousand.
MAX_SYNTAX = 64 << 10
#: Depth of brackets; a list of options in a row is four deep.
MAX_DEPTH = 8
#: Bytes from which on a string can only be a video: a question of MAX_TEXT characters, each written
#: as two escapes, is shorter.
LONG_BYTES = 128 << 10
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class QuestionRow(Record):
    """One row of a request."""

    question: str = Field(min_length=1, max_length=MAX_TEXT, description="What is asked about the video.")
    #: Exactly one of the two.
    video: str | None = Field(None, description="Path of a file below the server's folder, with forward slashes.")
    video_base64: bytes | None = Field(None, description="Or the bytes of a file, as standard base64.")
    options: tuple[str, ...] = Field((), max_length=26, description="Choices, for a question of multiple choice.")
    task: TaskName | None = Field(
        None, description="What the question is taken for; the version's own task when left out."
    )

    @field_validator("video_base64", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        if value is not None and not isinstance(value, str | bytes):
            raise ValueError("not text; send the file's bytes as standard base64")
        return value

    @model_validator(mode="after")
    def _has_one_video(self) -> QuestionRow:
        if (self.video is None) == (self.video_base64 is None):
            count = "none" if self.video is None else "both"
            raise ValueError(f"video, video_base64: {count} given; send one of them")
        if len(self.question) + sum(map(len, self.options)) > MAX_TEXT:
            raise ValueError(f"question: with its options over {MAX_TEXT} letters; shorten it")
        return self


def read_request(body: bytes | bytearray) -> list[QuestionRow]:
    """Parse the rows of a request's body.

    Raises:
        Refused: it is not JSON, too large, or its form, number or shape is not supported.
    """
    document, videos = _read(body)
    return parse_rows(_rows(document), videos)


def parse_rows(rows: Sequence[Mapping[str, Any]], videos: Mapping[str, bytes] | None = None) -> list[QuestionRow]:
    """Parse the rows of a request. None or, in MLflow's tables, NaN stands for a missing value.

    Args:
        rows: field to value.
        videos: the long strings, by their placeholders in the rows.

    Raises:
        Refused: there are none, too many, or one is not valid.
    """
    if not 0 < len(rows) <= MAX_ROWS:
        raise Refused(400, f"rows: {len(rows)} in one request; send 1 to {MAX_ROWS}")
    return [_row(number, row, videos or {}) for number, row in enumerate(rows)]


def _row(number: int, row: Mapping[str, Any], videos: Mapping[str, bytes]) -> QuestionRow:
    values: dict[str, Any] = {}
    for name, value in row.items():
        if not isinstance(name, str) or name not in QuestionRow.model_fields:
            raise Refused(
                400, f"row {number}: {_display(name)} is not known; a row has {', '.join(QuestionRow.model_fields)}"
            )
        if isinstance(value, str) and value in videos:
            if name != "video_base64":
                raise Refused(
                    400, f"row {number}: {name}: {len(videos[value]):,} bytes; only video_base64 may be so long"
                )
            value = videos[value]
        if not _absent(value):
            values[name] = value
    try:
        return QuestionRow.model_validate(values)
    except ValidationError as error:
        # Never include the input: it may be a whole video.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        sentence = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            sentence = "missing; say what is asked about the video"
        raise Refused(400, f"row {number}: {f'{field}: ' if field else ''}{sentence}") from error


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _rows(document: object) -> list[Mapping[str, Any]]:
    """Rows in any of the forms."""
    if not isinstance(document, dict):
        raise Refused(
            400, f'body: {_kind(document)}; send an object: {{"{FORMS[0]}": [{{"question": …, "video": …}}]}}'
        )
    forms = [name for name in document if name in FORMS]
    unknown = [name for name in document if name not in (*FORMS, "params")]
    if unknown:
        raise Refused(400, f"body: {_display(unknown[0])} is not known; a request has one of {', '.join(FORMS)}")
    if document.get("params"):
        raise Refused(400, "params: not supported, since a version has its own settings; leave them out")
    if len(forms) != 1:
        raise Refused(400, f"body: {' and '.join(forms) or 'none'} of {', '.join(FORMS)} given; send one of them")
    form, value = forms[0], document[forms[0]]
    if form == "dataframe_split":
        return _split(value)
    if isinstance(value, dict) and form in ("instances", "inputs"):
        return _columns(form, value)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise Refused(400, f'{form}: not a list of rows; send [{{"question": …, "video": …}}]')
    return value


def _split(value: object) -> list[Mapping[str, Any]]:
    if not isinstance(value, dict) or not {"columns", "data"} <= set(value) <= {"columns", "data", "index"}:
        raise Refused(400, 'dataframe_split: send {"columns": ["question", "video"], "data": [["…", "…"]]}')
    columns, data = value["columns"], value["data"]
    if (
        not isinstance(columns, list)
        or not all(isinstance(name, str) for name in columns)
        or len(set(columns)) < len(columns)
    ):
        raise Refused(400, "dataframe_split.columns: not a list of different names; send the names of a row's fields")
    if not isinstance(data, list) or not all(isinstance(row, list) and len(row) == len(columns) for row in data):
        raise Refused(
            400, f"dataframe_split.data: not a list of rows of {len(columns)} values; send one value a column"
        )
    return [dict(zip(columns, row, strict=True)) for row in data]


def _columns(form: str, value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of a table by columns; one row if each is a single value."""
    if all(not isinstance(column, list) for column in value.values()):
        return [value]
    if (
        not all(isinstance(column, list) for column in value.values())
        or len({len(column) for column in value.values()}) > 1
    ):
        raise Refused(
            400, f"{form}: its columns are not lists of one length; send a value for each row, null where there is none"
        )
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _read(body: bytes | bytearray) -> tuple[object, dict[str, bytes]]:
    """Parse the document with placeholders for long strings. Returns it and those strings by
    placeholder."""
    outline, videos = _outline(body)
    try:
        document = json.loads(
            outline.decode("utf-8"),
            object_pairs_hook=_without_doubles,
            parse_constant=_no_constant,
            parse_int=_number(int),
            parse_float=_number(float),
        )
    except UnicodeDecodeError as error:
        raise Refused(400, f"body: not UTF-8 ({error.reason}); send JSON in UTF-8") from error
    except json.JSONDecodeError as error:
        raise Refused(400, f"body: not JSON: {error.msg}; send one JSON object") from error
    return document, videos


def _outline(body: bytes | bytearray) -> tuple[bytes, dict[str, bytes]]:
    # Random, so that no request can contain a placeholder of its own.
    mark = secrets.token_hex(16)
    pieces: list[bytes] = []
    videos: dict[str, bytes] = {}
    at = depth = syntax = text = 0
    while True:
        quote = body.find(b'"', at)
        between = (
            bytes(body[at : len(body) if quote < 0 else quote]) if quote >= 0 or len(body) - at <= MAX_SYNTAX else None
        )
        syntax += MAX_SYNTAX + 1 if between is None else len(between)
        if between is None or syntax > MAX_SYNTAX:
            raise Refused(413, f"body: over {MAX_SYNTAX:,} bytes beside its strings; send 1 to {MAX_ROWS} rows")
        for bracket in _BRACKET.findall(between):
            depth += 1 if bracket in b"[{" else -1
            if depth > MAX_DEPTH:
                raise Refused(
                    400, f"body: brackets more than {MAX_DEPTH} deep; a row is an object of strings and one list"
                )
        pieces.append(between)
        if quote < 0:
            return b"".join(pieces), videos
        match = _STRING.match(body, quote)
        if match is None:
            raise Refused(400, "body: not JSON: a string has no end; send one JSON object")
        at = match.end()
        if at - quote > LONG_BYTES:
            name = f"{mark}{len(videos)}"
            videos[name] = _unescaped(bytes(body[quote + 1 : at - 1]))
            pieces.append(f'"{name}"'.encode())
        else:
            pieces.append(match.group())
            text += at - quote
            if text > TEXT_BYTES:
                raise Refused(413, f"body: over {TEXT_BYTES >> 20} MB of text; only video_base64 may be long")


def _unescaped(text: bytes) -> bytes:
    """Undo ``\\/`` for the slash of base64, which some programs write; any other escape is not
    base64, which is reported later."""
    return text.replace(b"\\/", b"/") if b"\\" in text else text


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise Refused(400, f"body: {_display(double)} is given twice in one object; send it once")
    return table


def _no_constant(text: str) -> NoReturn:
    raise Refused(400, f"body: {text} is not JSON; send null, or leave the field out")


def _number(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        if len(text) > SHOWN:
            raise Refused(400, f"body: a number of {len(text):,} characters; no field of a row is a number")
        return kind(text)

    return read


def _display(value: object) -> str:
    text = value if isinstance(value, str) else str(type(value).__name__)
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


def _kind(value: object) -> str:
    return {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}.get(type(value), "a number")
