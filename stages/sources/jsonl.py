"""``annotations.jsonl``: one JSON object a line for one video of a folder, times in seconds.

An example, of which only ``video`` has to be there::

    {"video": "kitchen/0001.mp4", "caption": "A man peels an onion.", "source": "kitchen", "split": "train",
     "label": "cooking", "licence": "CC BY 3.0", "events": [{"start": 0.0, "end": 1.5, "caption": "He peels it."}],
     "qa": [{"question": "What is peeled?", "options": ["An apple", "An onion"], "answer": "B"}],
     "subjects": [{"name": "man", "attributes": ["tall"], "actions": ["peels an onion"]}]}

Seconds are read exactly (``2.1`` is 21/10, ``"1001/30000"`` is that fraction). A row that breaks a rule is set aside with
its line, field and value; it never stops the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from stages.domain.records import Question, Record, Reject, Split, Subject
from stages.layout import ANNOTATIONS_FILE

#: What counts as a video when a folder is searched for files that no row names.
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv")
)

# Bounded, because Fraction("1e999999999") would compute for days.
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,18})?(e-?\d{1,2})?(/[1-9]\d{0,12})?")


class SourceError(ValueError):
    """A source folder that cannot be used at all; the message names the folder and the remedy."""


def _read_seconds(value: Any) -> Fraction:
    text = "" if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction) else str(value)
    if not _SECONDS.fullmatch(text):
        raise ValueError('no time in seconds: need a number of at least 0, such as 1.5 or "1001/30000"')
    whole, _, divisor = text.partition("/")
    return Fraction(whole) / int(divisor or 1)


def _write_seconds(value: Fraction) -> float | str:
    # A plain number where it is exact, so that the file stays readable for other tools.
    return float(value) if Fraction(str(float(value))) == value else str(value)


Seconds = Annotated[Fraction, BeforeValidator(_read_seconds), PlainSerializer(_write_seconds)]


class TimedEvent(Record):
    """Something that happens in ``[start, end)``, in seconds of its clip."""

    start: Seconds
    end: Seconds
    caption: str = Field(min_length=1)

    @model_validator(mode="after")
    def _takes_time(self) -> TimedEvent:
        if self.end <= self.start:
            raise ValueError(f"start {float(self.start):g} s and end {float(self.end):g} s: need start < end")
        return self


class Annotation(Record):
    """One row: what is said of one video. ``video`` is relative to the folder, with forward slashes."""

    video: str = Field(min_length=1)
    id: str | None = Field(default=None, min_length=1)
    #: The recording that the clip was cut from; clips of one source never stand in two splits.
    source: str | None = Field(default=None, min_length=1)
    split: Split | None = None
    label: str | None = None
    licence: str | None = None
    caption: str | None = Field(default=None, min_length=1)
    events: tuple[TimedEvent, ...] = ()
    qa: tuple[Question, ...] = ()
    subjects: tuple[Subject, ...] = ()

    @property
    def clip_id(self) -> str:
        """The row's ``id``, else the video's path without its suffix."""
        return self.id or str(PurePosixPath(self.video).with_suffix(""))

    @property
    def source_id(self) -> str:
        return self.source or self.clip_id


def read_annotations(folder: Path) -> tuple[list[Annotation], list[Reject]]:
    """The usable rows of a folder's ``annotations.jsonl``, and what was set aside.

    Reasons: ``bad-annotation`` (not JSON, or a field breaks a rule), ``outside-folder``, ``missing-file``, ``duplicate-id``
    (also a video that two rows name), ``no-annotation`` (a video that no row names).

    Raises:
        SourceError: the folder or its annotation file does not exist, or is not UTF-8 text.
    """
    file = folder / ANNOTATIONS_FILE
    if not folder.is_dir():
        raise SourceError(f"ingest.source: {str(folder)!r} is no folder; name one with videos and {ANNOTATIONS_FILE}")
    if not file.is_file():
        raise SourceError(f"ingest.source: {str(folder)!r} has no {ANNOTATIONS_FILE}; write one JSON object a line, see README")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    rows: list[Annotation] = []
    rejects: list[Reject] = []
    mentioned: set[str] = set()
    ids: dict[str, int] = {}
    videos: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parsed = _parse(line, number)
        if isinstance(parsed, Reject):
            rejects.append(parsed)
            mentioned |= _videos_of(line)
            continue
        mentioned.add(parsed.video)
        problem = _misplaced(parsed, folder, number)
        for kind, value, seen in (("video", parsed.video, videos), ("id", parsed.clip_id, ids)):
            if problem is None and value in seen:
                problem = _reject(
                    number, "duplicate-id", f"{kind} {value!r} stands in line {seen[value]} already; each row needs its own"
                )
        if problem is not None:
            rejects.append(problem)
            continue
        ids[parsed.clip_id] = videos[parsed.video] = number
        rows.append(parsed)
    for stray in sorted(_videos_in(folder) - mentioned):
        detail = f"{stray}: {ANNOTATIONS_FILE} has no usable row for it; add one with at least its `video`"
        rejects.append(Reject(item=stray, reason="no-annotation", detail=detail))
    return rows, rejects


def write_annotations(rows: Iterable[Annotation], file: Path) -> None:
    """Write rows in the format that :func:`read_annotations` reads, a line each; empty fields are left out."""
    with file.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            plain = row.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
            out.write(json.dumps(plain, ensure_ascii=False) + "\n")


def _parse(line: str, number: int) -> Annotation | Reject:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _reject(number, "bad-annotation", f"not JSON: {error}")
    if not isinstance(raw, dict):
        return _reject(number, "bad-annotation", f"need one JSON object, found {type(raw).__name__}")
    try:
        return Annotation.model_validate(raw)
    except ValidationError as error:
        return _reject(number, "bad-annotation", "; ".join(_complaint(e) for e in error.errors()))


def _complaint(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "row"
    if error["type"] == "extra_forbidden":
        return f"{field}: unknown field (value {_short(error['input'])}); remove it or correct its spelling"
    if error["type"] == "missing":
        return f"{field}: missing"
    return f"{field}: {error['msg'].removeprefix('Value error, ')} (value {_short(error['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _misplaced(row: Annotation, folder: Path, number: int) -> Reject | None:
    """A path from an annotation is data: it may name a file inside the folder and nothing else."""
    path = PurePosixPath(row.video)
    if path.is_absolute() or ".." in path.parts or "\\" in row.video or "\0" in row.video:
        detail = f"video: {row.video!r} leaves the folder; name a file inside it, relative, with forward slashes"
        return _reject(number, "outside-folder", detail)
    target = folder / path
    try:
        resolved = target.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        return _reject(number, "missing-file", f"video: {row.video!r} does not exist in the folder ({_reason(error)})")
    if not resolved.is_relative_to(folder.resolve()):
        return _reject(number, "outside-folder", f"video: {row.video!r} is a link that leaves the folder; copy the file into it")
    if not resolved.is_file():
        return _reject(number, "missing-file", f"video: {row.video!r} is no file")
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _videos_of(line: str) -> set[str]:
    """The video that a broken row names, as far as it can be made out, so that it is not reported a second time."""
    match = re.search(r'"video"\s*:\s*("(?:[^"\\]|\\.)*")', line)
    return {json.loads(match[1], strict=False)} if match else set()


def _videos_in(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.suffix.lower() in VIDEO_SUFFIXES and not any(part.startswith(".") for part in inside.parts) and not path.is_dir():
            found.add(inside.as_posix())
    return found


def _reject(number: int, reason: str, detail: str) -> Reject:
    return Reject(item=f"{ANNOTATIONS_FILE}:{number}", reason=reason, detail=detail)
