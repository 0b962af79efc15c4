"""Rows that pass between stages: frozen, closed to unknown keys, each with its schema version.

Time is exact everywhere: frames are integers, ranges are half-open ``[start, stop)``, rates are
:class:`fractions.Fraction`. Seconds appear only in annotation files and in parameters.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, PlainSerializer, StringConstraints, model_validator

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

#: The name of a task. Rows check its form only; :mod:`stages.domain.tasks` lists the tasks and
#: checks names that come as input.
TASK_NAME_PATTERN = "[a-z][a-z0-9_]*"
TaskName = Annotated[str, StringConstraints(pattern=f"^{TASK_NAME_PATTERN}$")]

#: An object of JSON whose fields one task defines.
Fields = dict[str, JsonValue]

_EXACT = re.compile(r"[+-]?\d{1,12}(\.\d{1,12})?(/0*[1-9]\d{0,11})?")


def _exact(value: Any) -> Any:
    """Read ``"30000/1001"``, ``8`` or ``"1.5"`` exactly; a float goes through its shortest decimal,
    never its binary value."""
    if not isinstance(value, int | float | str):
        return value
    return _fraction(str(value))


# Rates and durations are few, rows are many.
@lru_cache(maxsize=4096)
def _fraction(text: str) -> Fraction:
    # Bounded before parsing: Fraction("1e999999999") would never finish.
    if not _EXACT.fullmatch(text):
        raise ValueError("not an exact number; write 8, 1.5 or 30000/1001")
    return Fraction(text)


#: An exact frame rate (frames per second) or duration (seconds), written as ``"30000/1001"``.
Exact = Annotated[Fraction, BeforeValidator(_exact), PlainSerializer(str, return_type=str)]


class Record(BaseModel, frozen=True, extra="forbid"):
    """A frozen row that refuses unknown keys."""


class Span(Record):
    """A half-open range of frames ``[start, stop)`` of at least one frame."""

    start: int = Field(ge=0)
    stop: int

    @model_validator(mode="after")
    def _holds_a_frame(self) -> Span:
        if self.stop <= self.start:
            raise ValueError(f"[{self.start}, {self.stop}) holds no frame; stop must exceed start")
        return self

    @property
    def frames(self) -> int:
        return self.stop - self.start

    def __contains__(self, frame: int) -> bool:
        return self.start <= frame < self.stop


class Event(Record):
    """Something that happens in a clip, in frames of that clip."""

    span: Span
    caption: str = Field(min_length=1)
    #: Seconds of it that the annotation puts before the clip's first frame or behind its last;
    #: None: it was not cut.
    cut_s: Exact | None = None


#: Tolerance of annotated times: two annotators may differ by this about one moment. Events that
#: start, or end, closer together than this have no order; a shorter overlap does not count.
UNSURE_S = Fraction(1, 2)


def folded(text: str) -> str:
    """Normalise a text for comparison: without case, letter width, extra spaces and punctuation at
    its end."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(" .,;:!?。、") or plain


class Subject(Record):
    """Someone or something visible: a noun, its looks, its actions in order."""

    name: str = Field(min_length=1)
    attributes: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Question(Record):
    """A multiple-choice question; ``answer`` is the letter of the right option."""

    question: str = Field(min_length=1)
    options: tuple[str, ...] = Field(min_length=2, max_length=26)
    answer: str = Field(pattern=r"^[A-Z]$")
    rationale: str | None = None

    @model_validator(mode="after")
    def _one_option_is_right(self) -> Question:
        seen: dict[str, str] = {}
        for letter, option in zip(_LETTERS, self.options, strict=False):
            if not option.strip():
                raise ValueError(f"option {letter} is empty; write it, or remove it and correct the answer")
            earlier = seen.setdefault(folded(option), letter)
            if earlier != letter:
                both = f"options {earlier} and {letter} are both {option!r}"
                raise ValueError(f"{both}; an option must be right or wrong, so keep one of them")
        if ord(self.answer) - ord("A") >= len(self.options):
            last = _LETTERS[len(self.options) - 1]
            raise ValueError(f"answer {self.answer!r} names no option: there are {len(self.options)} (A to {last})")
        return self


class OpenQuestion(Record):
    """A question with the text of its answer, and no options."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Excerpt(Record):
    """The part of a file that a clip is. It is cut virtually: the file stays as it is.

    ``first``: number of the clip's first frame in the file; ``file_frames``: frames of the whole
    file. Both count frames as :class:`Clip` does.
    """

    first: int = Field(ge=0)
    file_frames: int = Field(gt=0)


class Clip(Record):
    """One video that ingest accepted, or one part of it. ``path`` is relative to the source folder,
    with forward slashes.

    Frame ``i`` is the picture displayed in the middle of ``[i / rate, (i + 1) / rate)``, for any
    frame rate of the file.
    """

    schema_version: Literal[1] = 1
    clip_id: str = Field(min_length=1)
    source_id: str = Field(min_length=1)
    path: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    split: Split
    frames: int = Field(gt=0)
    rate: Exact
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    codec: str
    #: Reasons why decord must not read the file, as slugs; empty: decord may read it.
    hazards: tuple[str, ...] = ()
    #: The file's frames are not evenly spaced: ``frames`` and ``rate`` are those of a constant-rate
    #: clock, not of the file.
    variable_rate: bool = False
    #: Ingest has re-encoded it: ``path`` is relative to the manifest's folder.
    normalised: bool = False
    #: None: the clip is the whole file.
    excerpt: Excerpt | None = None
    label: str | None = None
    licence: str | None = None
    caption: str | None = None
    #: Further captions of the whole clip, by other people; None: there are none.
    captions: tuple[str, ...] | None = None
    #: Ordered by start.
    events: tuple[Event, ...] = ()
    subjects: tuple[Subject, ...] = ()
    questions: tuple[Question, ...] = ()
    #: None: there are none.
    open_questions: tuple[OpenQuestion, ...] | None = None
    #: Objects that tasks read, by the task's name; None: there are none.
    answers: dict[TaskName, tuple[Fields, ...]] | None = Field(default=None, exclude_if=lambda value: value is None)
    #: First frames of all shots but the first; empty: it is one shot; None: nobody looked.
    shots: tuple[int, ...] | None = None
    #: ``black``, ``static``, ``letterboxed``; None: none of them, or nobody looked.
    flags: tuple[str, ...] | None = None

    @property
    def decord_safe(self) -> bool:
        return not self.hazards

    @property
    def first_frame(self) -> int:
        """Number of its first frame in the file."""
        return 0 if self.excerpt is None else self.excerpt.first

    @property
    def file_frames(self) -> int:
        """Frames of the whole file."""
        return self.frames if self.excerpt is None else self.excerpt.file_frames

    @property
    def part_s(self) -> tuple[float, float]:
        """Its part ``[start, end)`` of the file in seconds, counted from the file's first frame."""
        return float(self.first_frame / self.rate), float((self.first_frame + self.frames) / self.rate)

    @property
    def display_name(self) -> str | None:
        """A name for its content: its only subject with attributes ("red bar"), else its label."""
        if len(self.subjects) == 1:
            return " ".join((*self.subjects[0].attributes, self.subjects[0].name))
        return self.label

    @property
    def event_summary(self) -> str:
        """The captions of its events in order of start, joined into one text; empty without events.

        "then" joins an event that starts after all earlier ones are over, "and" any other. Full
        sentences are joined by a space only.
        """
        if any(event.caption.rstrip().endswith((".", "!", "?")) for event in self.events):
            return " ".join(event.caption for event in self.events)
        joiners = ("", *(" then " if in_turn else " and " for in_turn in self.in_turn[1:]))
        return "".join(joiner + event.caption for joiner, event in zip(joiners, self.events, strict=False))

    @property
    def in_turn(self) -> tuple[bool, ...]:
        """For each event: True if all events that start before it are over when it starts."""
        flags, over = [], 0
        # Spans are whole frames: a fraction of a frame of tolerance changes no comparison.
        unsure = int(UNSURE_S * self.rate)
        for event in self.events:
            flags.append(event.span.start + unsure >= over)
            over = max(over, event.span.stop)
        return tuple(flags)

    @property
    def brief_thinking(self) -> str | None:
        """The shortest thinking of a teacher: it names the clip's content, nothing more."""
        return f"the {self.display_name}" if self.display_name else None

    @model_validator(mode="after")
    def _lies_in_its_file(self) -> Clip:
        if (stop := self.first_frame + self.frames) > self.file_frames:
            raise ValueError(f"excerpt: frames {self.first_frame} to {stop} of a file of {self.file_frames}")
        return self

    @model_validator(mode="after")
    def _events_lie_inside_in_order(self) -> Clip:
        for event in self.events:
            if event.span.stop > self.frames:
                raise ValueError(f"event {event.caption!r} ends at frame {event.span.stop}, the clip has {self.frames}")
        for before, after in pairwise(self.events):
            if after.span.start < before.span.start:
                frames = f"frame {after.span.start}, before {before.caption!r} at {before.span.start}, which is listed"
                raise ValueError(f"event {after.caption!r} starts at {frames} first; sort events by their start")
        return self


class Reject(Record):
    """A row that was rejected, and why: ``reason`` is a slug to count, ``detail`` is for people."""

    schema_version: Literal[1] = 1
    item: str
    reason: str = Field(pattern=r"^[a-z0-9-]+$")
    detail: str
    #: Rows that it rejects; None: one, or by its reason a part; 0: its row gave other clips.
    rows: int | None = Field(default=None, ge=0)


def natural(text: str) -> tuple[str | int, ...]:
    """Sort key that compares numbers within texts by their value: 2 comes before 10."""
    # Bounded, because Python refuses to read numbers of thousands of digits.
    pieces = re.split(r"([0-9]{1,18})", text)
    return tuple(int(piece) if index % 2 else piece for index, piece in enumerate(pieces))


def reject_order(reject: Reject) -> tuple[str, tuple[str | int, ...], tuple[str | int, ...]]:
    """Sort key of rejects in every listing: by reason, then by item in natural order."""
    return reject.reason, natural(reject.item), natural(reject.detail)


class Segment(Record):
    """Frames ``span`` of clip ``clip_id`` at the timeline's rate; at equal rates its own."""

    clip_id: str
    span: Span


class Timeline(Record):
    """An edit decision list: segments played one after the other at ``rate``, some frames of the
    result blacked out.

    ``dark`` spans are in frames of the timeline, not of a clip.
    """

    rate: Exact
    segments: tuple[Segment, ...] = Field(min_length=1)
    dark: tuple[Span, ...] = ()

    @property
    def frames(self) -> int:
        return sum(segment.span.frames for segment in self.segments)

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """Ids of the clips it plays, each once, in order of first appearance."""
        return tuple(dict.fromkeys(segment.clip_id for segment in self.segments))


class Trace(Record):
    """A teacher's reply. ``brief_thinking`` only names the subject; ``careless_answer`` is right
    but incomplete."""

    thinking: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    brief_thinking: str | None = None
    careless_answer: str | None = None


class Sample(Record):
    """One question about one timeline. The model sees ``sampled_frames`` frames of the timeline."""

    schema_version: Literal[1] = 1
    sample_id: str = Field(min_length=1)
    task: TaskName
    split: Split
    #: The clip that the question is about (MixVidQA plays another one too).
    clip_id: str
    timeline: Timeline
    #: Recordings (``source_id``) that the timeline's clips are of; None: each clip is its own.
    recordings: tuple[str, ...] | None = None
    sampled_frames: int = Field(gt=0)
    question: str = Field(min_length=1)
    options: tuple[str, ...] = ()
    #: The perfect answer: a caption, a letter, an event.
    reference: str = Field(min_length=1)
    #: Events that a caption must cover, in order; for DarkEventInfer the one that was blacked out.
    events: tuple[str, ...] = ()
    #: Subjects that an analysis must name. If there are any, the prompt requests an analysis.
    subjects: tuple[Subject, ...] = ()
    trace: Trace | None = None
    #: Facts that its score reads beside the reference, in fields of its task; None: none.
    truth: Fields | None = Field(default=None, exclude_if=lambda value: value is None)
    #: Questions that a caption should answer; None: the annotation has none.
    qa_pairs: tuple[OpenQuestion, ...] | None = Field(default=None, exclude_if=lambda value: value is None)


class Verdict(Record):
    """A judge's verdict on one reply; a judge that failed has its own outcome and never scores 0.

    ``scored``: ``score`` is the number. ``invalid``: the judge's answer could not be parsed.
    ``unavailable``: no answer came.
    """

    outcome: Literal["scored", "invalid", "unavailable"]
    score: float | None = None
    reason: str = ""
    judge: str

    @model_validator(mode="after")
    def _score_iff_scored(self) -> Verdict:
        if (self.outcome == "scored") != (self.score is not None):
            raise ValueError(f"outcome {self.outcome!r} and score {self.score!r} contradict: only 'scored' has a score")
        return self


class Score(Record):
    """One reply and its score. ``value`` is the task score as a share of its maximum, in [0, 1];
    None, which files of rows omit: it could not be judged."""

    schema_version: Literal[1] = 1
    sample_id: str
    task: TaskName
    reply: str
    format_ok: bool
    value: float | None = None
    parts: dict[str, float] = Field(default_factory=dict)
    reason: str = ""


class Checkpoint(Record):
    """One saved policy inside ``models/<row>``; ``path`` is relative to that folder."""

    schema_version: Literal[1] = 1
    stage: str
    step: int = Field(ge=0)
    path: str
    final: bool
    metrics: dict[str, float] = Field(default_factory=dict)
