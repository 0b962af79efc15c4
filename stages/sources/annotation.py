"""What is said of one video, whatever format it was written in, and which of many rows can be used.

A row that breaks a rule is set aside with its file, line, field and value; it never stops the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from stages.domain.records import Question, Record, Reject, Split, Subject

Checked = TypeVar("Checked", bound=BaseModel)

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


class Found(NamedTuple):
    """A row as an adapter found it: ``FILE:LINE``, the row or why there is none, and the videos it names as far as can be made out
    (they are not reported a second time as files that no row names)."""

    where: str
    row: Annotation | Reject
    videos: frozenset[str]


def usable(found: Iterable[Found], folder: Path, file: str) -> tuple[list[Annotation], list[Reject]]:
    """The rows whose video lies in ``folder``, each video and each id once, and what was set aside.

    Reasons, beside the adapters' own: ``outside-folder``, ``missing-file``, ``duplicate-id`` (also a video that two rows name),
    ``no-annotation`` (a video that no row of ``file`` names).
    """
    rows: list[Annotation] = []
    rejects: list[Reject] = []
    mentioned: set[str] = set()
    seen: dict[tuple[str, str], str] = {}
    for where, row, videos in found:
        mentioned |= videos
        problem = row if isinstance(row, Reject) else _misplaced(row, folder, where)
        if isinstance(row, Annotation) and problem is None:
            keys = (("video", row.video), ("id", row.clip_id))
            for kind, value in keys:
                if problem is None and (first := seen.get((kind, value))):
                    problem = reject(where, "duplicate-id", f"{kind} {value!r} stands in {first} already; each row needs its own")
            if problem is None:
                seen |= dict.fromkeys(keys, where)
                rows.append(row)
        if problem is not None:
            rejects.append(problem)
    for stray in sorted(videos_in(folder) - mentioned):
        detail = f"{stray}: {file} has no usable row for it; add one, or move the file away"
        rejects.append(Reject(item=stray, reason="no-annotation", detail=detail))
    return rows, rejects


def validated(model: type[Checked], raw: Any, where: str, at: str = "") -> Checked | Reject:
    """``raw`` as ``model``, or a reject ``bad-annotation`` that names field, value and rule. ``at`` stands before the fields."""
    if not isinstance(raw, dict):
        return reject(where, "bad-annotation", f"{at or 'row'}: need one JSON object, found {type(raw).__name__}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        return reject(where, "bad-annotation", "; ".join(_complaint(e, at) for e in error.errors()))


def read_text(folder: Path, name: str, what: str) -> str:
    """The annotation file of a source folder.

    Raises:
        SourceError: folder or file does not exist, or it is not UTF-8 text. ``what`` says what to do about a missing file.
    """
    file = folder / name
    if not folder.is_dir():
        raise SourceError(f"ingest.source: {str(folder)!r} is no folder; name one with videos and {name}")
    if not file.is_file():
        raise SourceError(f"ingest.source: {str(folder)!r} has no {name}; {what}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def reject(where: str, reason: str, detail: str) -> Reject:
    return Reject(item=where, reason=reason, detail=detail)


def videos_in(folder: Path) -> set[str]:
    """Every video file below the folder, hidden ones left out, with forward slashes."""
    found = set()
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.suffix.lower() in VIDEO_SUFFIXES and not any(part.startswith(".") for part in inside.parts) and not path.is_dir():
            found.add(inside.as_posix())
    return found


def _complaint(error: Any, at: str) -> str:
    field = ".".join([*filter(None, [at]), *(str(part) for part in error["loc"])]) or "row"
    if error["type"] == "extra_forbidden":
        return f"{field}: unknown field (value {_short(error['input'])}); remove it or correct its spelling"
    if error["type"] == "missing":
        return f"{field}: missing"
    return f"{field}: {error['msg'].removeprefix('Value error, ')} (value {_short(error['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _misplaced(row: Annotation, folder: Path, where: str) -> Reject | None:
    """A path from an annotation is data: it may name a file inside the folder and nothing else."""
    path = PurePosixPath(row.video)
    if path.is_absolute() or ".." in path.parts or "\\" in row.video or "\0" in row.video:
        detail = f"video: {row.video!r} leaves the folder; name a file inside it, relative, with forward slashes"
        return reject(where, "outside-folder", detail)
    target = folder / path
    try:
        resolved = target.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        return reject(where, "missing-file", f"video: {row.video!r} does not exist in the folder ({_reason(error)})")
    if not resolved.is_relative_to(folder.resolve()):
        return reject(where, "outside-folder", f"video: {row.video!r} is a link that leaves the folder; copy the file into it")
    if not resolved.is_file():
        return reject(where, "missing-file", f"video: {row.video!r} is no file")
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
