"""Annotation of one video, independent of its format, and the checks that decide which rows are
usable.

A row that breaks a rule is rejected with its file, line, field and value; it never stops the
others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from stages.domain.core.records import Exact, Fields, OpenQuestion, Question, Record, Reject, Split, Subject, TaskName
from stages.errors import InputError
from stages.lib.annotations.answers import read_answers
from stages.lib.annotations.choices import stated_letter, unlettered
from stages.lib.annotations.links import walk

Checked = TypeVar("Checked", bound=BaseModel)

#: Suffixes of videos, for the search for files that no row names.
VIDEO_SUFFIXES = frozenset(
    (
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".m2ts",
        ".mts",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".3gp",
        ".ogv",
        ".3g2",
        ".gif",
        ".h264",
        ".264",
        ".h265",
        ".265",
    )
)

# Bounded, because Fraction("1e999999999") would take days. Negative, because annotators' clocks
# round: ingest cuts or refuses.
_SECONDS = re.compile(r"-?\d{1,12}(\.\d{1,18})?(e-?\d{1,2})?(/[1-9]\d{0,12})?")


class SourceError(InputError, ValueError):
    """The source folder cannot be used at all; the message names the folder and the remedy."""


def _read_seconds(value: Any) -> Fraction:
    if isinstance(value, Fraction):
        return value
    return _seconds("" if isinstance(value, bool) or not isinstance(value, int | float | str) else str(value))


@lru_cache(maxsize=4096)
def _seconds(text: str) -> Fraction:
    if not _SECONDS.fullmatch(text):
        raise ValueError('no time in seconds: need a number such as 1.5 or "1001/30000"')
    whole, _, divisor = text.partition("/")
    return Fraction(whole) / int(divisor or 1)


def _write_seconds(value: Fraction) -> float | str:
    # A plain number if it is exact, so that other tools can read the file.
    return float(value) if Fraction(str(float(value))) == value else str(value)


Seconds = Annotated[Fraction, BeforeValidator(_read_seconds), PlainSerializer(_write_seconds)]


class TimedEvent(Record):
    """Something that happens in ``[start, end)``, in seconds of its clip."""

    start: Seconds
    end: Seconds
    caption: str = Field(min_length=1)

    @model_validator(mode="after")
    def _takes_time(self) -> TimedEvent:
        if not self.caption.strip():
            raise ValueError("caption is blank; say what happens, or leave the event out")
        if self.end <= self.start:
            raise ValueError(f"start {float(self.start):g} s and end {float(self.end):g} s: need start < end")
        return self


class Annotation(Record):
    """One row: the annotation of one video, or of one part of it. ``video`` is relative to the
    folder, with forward slashes; it names a file, or a folder of numbered pictures.

    All times are seconds of the file, also those of events in a part. The reader sets the last
    three fields; they are not in the file.
    """

    video: str = Field(min_length=1)
    #: The part ``[start, end)`` of the file that the row is about; None: from its beginning, to its
    #: end.
    start: Seconds | None = None
    end: Seconds | None = None
    id: str | None = Field(default=None, min_length=1)
    #: The recording from which the clip was cut; clips of one source are never in two splits.
    source: str | None = Field(default=None, min_length=1)
    split: Split | None = None
    label: str | None = None
    licence: str | None = None
    caption: str | None = Field(default=None, min_length=1)
    #: Further captions, by other people.
    captions: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    events: tuple[TimedEvent, ...] = ()
    qa: tuple[Question, ...] = ()
    #: Questions without options. In a file they may stand among those of ``qa``.
    open_qa: tuple[OpenQuestion, ...] = ()
    subjects: tuple[Subject, ...] = ()
    #: Objects that tasks read, by the task's name; each task knows their fields, and synthesis
    #: checks them. In a file, one of them need not stand in a list.
    answers: dict[TaskName, tuple[Fields, ...]] | None = None
    #: Frames per second, of a video that does not tell it: a folder of pictures, or a raw stream.
    rate: Annotated[Exact, Field(gt=0)] | None = None
    #: ``FILE:LINE`` of the row.
    where: str = Field(default="", exclude=True)
    #: Duration of the video file according to the annotation, in seconds; a longer file is another
    #: recording.
    length_s: Seconds | None = Field(default=None, exclude=True)
    #: Number of rows of the file that are joined in it.
    rows: int = Field(default=1, gt=0, exclude=True)

    @model_validator(mode="after")
    def _part_takes_time(self) -> Annotation:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"start {float(self.start):g} s and end {float(self.end):g} s: need start < end")
        return self

    @property
    def recording(self) -> str:
        """The video's path without its suffix."""
        return _without_suffix(self.video)

    @property
    def clip_id(self) -> str:
        """The row's ``id``, else the recording, and the part of it that the row is about."""
        if self.id is not None:
            return self.id
        if self.start is None and self.end is None:
            return self.recording
        start = f"{float(self.start or 0):.10g}"
        return f"{self.recording}@{start}-{'' if self.end is None else f'{float(self.end):.10g}'}"

    @property
    def source_id(self) -> str:
        """The row's ``source``; else the recording if the row is about a part of it, or the id."""
        if self.source is not None:
            return self.source
        return self.clip_id if self.start is None and self.end is None else self.recording


class Found(NamedTuple):
    """A row as a reader found it.

    ``where``: ``FILE:LINE``; ``row``: the row, or the reject instead of it; ``videos``: the videos
    that it names, as far as readable (they are not reported again as files that no row names);
    ``parts``: rejects of parts of the row.
    """

    where: str
    row: Annotation | Reject
    videos: frozenset[str]
    parts: tuple[Reject, ...] = ()


#: Parts of a row: by field, the type of its entries and their name in reasons of rejects.
_PARTS: dict[str, tuple[type[BaseModel], str]] = {
    "events": (TimedEvent, "event"),
    "qa": (Question, "question"),
    "subjects": (Subject, "subject"),
    "open_qa": (OpenQuestion, "question"),
}
_READERS_OWN = ("where", "length_s", "rows")
#: Reasons of rejects that concern a part of a row (event, question, subject, caption); the clip
#: itself may still be accepted.
PART_REASONS = frozenset(
    {
        *(f"bad-{part}" for part in ("event", "question", "subject", "caption", "answer")),
        *("event-outside-clip", "event-without-frame", "caption-beyond-clip", "repeated-part"),
        *("event-across-parts", "about-whole-recording"),
    }
)
#: Reasons of rejects of files that no row is about.
FILE_REASONS = frozenset({"no-annotation"})


def rows_rejected(rejects: Iterable[Reject]) -> int:
    """Count the rows that these rejects are of: none for a part of a row, or for a file without
    one, unless the reject says otherwise."""
    return sum(
        (reject.reason not in PART_REASONS | FILE_REASONS) if reject.rows is None else reject.rows for reject in rejects
    )


# Sorting, splitting and naming ask a dozen times for that of a row.
@lru_cache(maxsize=1 << 18)
def _without_suffix(video: str) -> str:
    folder, slash, name = video.rpartition("/")
    if name in ("", ".", "..") or "//" in video or f"/{video}".count("/./"):
        return str(PurePosixPath(video).with_suffix(""))
    # As with_suffix does, at a tenth of its cost.
    dot = name.rfind(".")
    return f"{folder}{slash}{name[:dot] if 0 < dot < len(name) - 1 else name}"


def annotated(
    raw: Any, where: str, at: str = "", length_s: Fraction | None = None
) -> tuple[Annotation | Reject, tuple[Reject, ...]]:
    """Validate one row: the row, or its reject, and the rejects of its events, questions and
    subjects (``bad-event`` …).

    Args:
        raw: the row as the file has it, in the fields of :class:`Annotation`; null counts as
            absent.
        where: ``FILE:LINE``.
        at: prefix of the fields in a reject's detail.
        length_s: duration of the video file according to the annotation, in seconds.
    """
    if not isinstance(raw, dict):
        return validated(Annotation, raw, where, at), ()
    for field in _READERS_OWN:
        if field in raw:
            return reject(where, "bad-annotation", _unknown(".".join(filter(None, [at, field])), raw[field])), ()
    whole, parts = dict(raw), list[Reject]()
    if isinstance(questions := whole.get("qa"), list | tuple):
        # A question without options is open; among others it stands where its author put it.
        is_open = [isinstance(entry, dict) and entry.get("options") is None for entry in questions]
        if any(is_open):
            of_kind = [[e for e, o in zip(questions, is_open, strict=True) if o is kind] for kind in (False, True)]
            whole["qa"], whole["open_qa"] = of_kind[0], [*whole.get("open_qa", ()), *map(_without_options, of_kind[1])]
    for field in _PARTS:
        entries = whole.pop(field, None)
        if entries is not None:
            whole[field], problems = _entries(field, entries, where, at)
            parts += problems
    if (given := whole.pop("answers", None)) is not None:
        whole["answers"], problems = read_answers(given, where, ".".join(filter(None, [at, "answers"])))
        parts += problems
    row = validated(Annotation, whole, where, at)
    # A row that is rejected is one reject; its parts are not reported as well.
    return (
        (row, ())
        if isinstance(row, Reject)
        else (row.model_copy(update={"where": where, "length_s": length_s}), tuple(parts))
    )


def _without_options(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "options"}


def _entries(field: str, entries: Any, where: str, at: str) -> tuple[list[Any], list[Reject]]:
    """Validate the entries of a field: the usable ones, and rejects of the others."""
    model, part = _PARTS[field]
    at = ".".join(filter(None, [at, field]))
    if field == "qa" and isinstance(entries, list | tuple):
        return _sorted_out(question(entry, where, f"{at}.{number}") for number, entry in enumerate(entries))
    return each(model, entries, where, at, part)


def each(model: type[Checked], entries: Any, where: str, at: str, part: str) -> tuple[list[Checked], list[Reject]]:
    """Validate each entry of a list as ``model``, with a reject ``bad-PART`` for each that
    fails."""
    if not isinstance(entries, list | tuple):
        return [], [
            reject(where, f"bad-{part}", f"{at}: need a list, found {type(entries).__name__} (value {short(entries)})")
        ]
    return _sorted_out(validated(model, entry, where, f"{at}.{number}", part) for number, entry in enumerate(entries))


def _sorted_out(entries: Iterable[Checked | Reject]) -> tuple[list[Checked], list[Reject]]:
    good, problems = list[Checked](), list[Reject]()
    for entry in entries:
        if isinstance(entry, Reject):
            problems.append(entry)
        else:
            good.append(entry)
    return good, problems


def question(raw: Any, where: str, at: str) -> Question | Reject:
    """Validate a multiple-choice question; a reject ``bad-question`` if it fails.

    Options may carry their letters, and the answer may be spelled in several ways
    (:mod:`stages.lib.annotations.choices`).
    """
    if isinstance(raw, dict) and isinstance(raw.get("answer"), str):
        options = raw.get("options")
        if (
            isinstance(options, list | tuple)
            and all(isinstance(option, str) for option in options)
            and len(options) > 1
        ):
            try:
                options = unlettered(options)
                raw = {**raw, "options": options, "answer": stated_letter(raw["answer"], options)}
            except ValueError as error:
                return reject(where, "bad-question", f"{at}: {error}{_named(raw)}")
    return validated(Question, raw, where, at, "question")


def validated(model: type[Checked], raw: Any, where: str, at: str = "", part: str = "annotation") -> Checked | Reject:
    """Validate ``raw`` as ``model``, or return a reject ``bad-PART`` that names field, value and
    rule.

    ``at``: prefix of the fields; ``part``: part of the row ("event" gives the reason
    ``bad-event``).
    """
    if not isinstance(raw, dict | model):
        return reject(where, f"bad-{part}", f"{at or 'row'}: need one JSON object, found {type(raw).__name__}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        named = "" if part == "annotation" else _named(raw)
        return reject(where, f"bad-{part}", "; ".join(_complaint(e, at) for e in error.errors()) + named)


def read_text(folder: Path, name: str, remedy: str) -> str:
    """Read the annotation file of a source folder.

    Raises:
        SourceError: folder or file does not exist, or it is not UTF-8 text. ``remedy``: advice on a
            missing file.
    """
    file = folder / name
    if not folder.is_dir():
        raise SourceError("ingest.source", f"{str(folder)!r} is not a folder", f"name one with videos and {name}")
    if not file.is_file():
        raise SourceError("ingest.source", f"{str(folder)!r} has no {name}", remedy)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            str(file), f"not UTF-8 text ({error.reason} at byte {error.start})", "save it as UTF-8"
        ) from error


def reject(where: str, reason: str, detail: str) -> Reject:
    return Reject(item=where, reason=reason, detail=detail)


def videos_in(folder: Path) -> set[str]:
    """List every video file below the folder, also in linked folders, but no hidden ones; with
    forward slashes."""
    return {
        name
        for name in walk(folder)
        if name[name.rfind(".") :].lower() in VIDEO_SUFFIXES and not name.startswith(".") and "/." not in name
    }


def _complaint(error: Any, at: str) -> str:
    field = ".".join([*filter(None, [at]), *(str(part) for part in error["loc"])]) or "row"
    if error["type"] == "extra_forbidden":
        return _unknown(field, error["input"])
    if error["type"] == "missing":
        return f"{field}: missing"
    return f"{field}: {error['msg'].removeprefix('Value error, ')} (value {short(error['input'])})"


def _unknown(field: str, value: Any) -> str:
    return f"{field}: unknown field (value {short(value)}); remove it or correct its spelling"


def _named(raw: Any) -> str:
    """Words by which a person finds a part in the file."""
    words = (
        next((raw[key] for key in ("caption", "question", "name") if isinstance(raw.get(key), str)), "")
        if isinstance(raw, dict)
        else ""
    )
    return f" (of {short(words)})" if words.strip() else ""


def short(value: Any) -> str:
    """Quote a value for a message, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
