"""The rows that pass between stages: frozen, closed to unknown keys, each with its schema version.

Time is exact everywhere: frames are integers, ranges are half-open ``[start, stop)``, rates are :class:`fractions.Fraction`.
Seconds appear only where a person or an annotation file speaks.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, StringConstraints, model_validator

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

#: The name of a task. Rows are checked for its form only; :mod:`stages.domain.tasks` lists the tasks, and checks names that are input.
TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]

_EXACT = re.compile(r"[+-]?\d{1,12}(\.\d{1,12})?(/0*[1-9]\d{0,11})?")


def _exact(value: Any) -> Any:
    """Read ``"30000/1001"``, ``8`` or ``"1.5"`` exactly; a float goes through its shortest decimal, never its binary value."""
    if not isinstance(value, int | float | str):
        return value
    # Bounded before it is parsed: Fraction("1e999999999") would compute for ever.
    if not _EXACT.fullmatch(str(value)):
        raise ValueError("no exact number; write 8, 1.5 or 30000/1001")
    return Fraction(str(value))


#: A frame rate (frames a second) or a duration (seconds), exact, written as ``"30000/1001"``.
Exact = Annotated[Fraction, BeforeValidator(_exact), PlainSerializer(str, return_type=str)]


class Record(BaseModel):
    """A frozen row that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(Record):
    """A half-open range of frames ``[start, stop)`` that holds at least one frame."""

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
    #: How many seconds of it the annotation puts before the clip's first frame or behind its last; None: it was not cut.
    cut_s: Exact | None = None


#: What two annotators' times of one moment may differ by. Of two events that start, or end, closer to each other it is not said which
#: one does so first; an overlap up to this is taken for none.
UNSURE_S = Fraction(1, 2)


def folded(text: str) -> str:
    """A text as far as a reader tells it from another: without case, width of letters, spacing and a mark at its end."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(" .,;:!?。、") or plain


class Subject(Record):
    """Who or what is seen: a noun, what it looks like, what it does (in order)."""

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
                raise ValueError(f"option {letter} is empty; write it, or leave it out and correct the answer")
            twin = seen.setdefault(folded(option), letter)
            if twin != letter:
                raise ValueError(
                    f"options {twin} and {letter} are both {option!r}; an option must be right or wrong, so keep one of them"
                )
        if ord(self.answer) - ord("A") >= len(self.options):
            raise ValueError(
                f"answer {self.answer!r} names no option: there are {len(self.options)} (A to {chr(64 + len(self.options))})"
            )
        return self


class Clip(Record):
    """One video that ingest accepted. ``path`` is relative to the source folder, with forward slashes.

    Frame ``i`` is on display in the middle of ``[i / rate, (i + 1) / rate)``, whatever the file's own frame rate does.
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
    #: Why decord must not read the file, as slugs; empty: it may.
    hazards: tuple[str, ...] = ()
    #: Its frames are not evenly spaced: ``frames`` and ``rate`` are those of an even clock, not of the file.
    variable_rate: bool = False
    #: Ingest has encoded it anew: ``path`` is relative to the manifest's folder.
    normalised: bool = False
    label: str | None = None
    licence: str | None = None
    caption: str | None = None
    #: In the order in which they start.
    events: tuple[Event, ...] = ()
    subjects: tuple[Subject, ...] = ()
    questions: tuple[Question, ...] = ()

    @property
    def decord_safe(self) -> bool:
        return not self.hazards

    @property
    def called(self) -> str | None:
        """What words may call it: its only subject with its attributes ("red bar"), else its class label."""
        if len(self.subjects) == 1:
            return " ".join((*self.subjects[0].attributes, self.subjects[0].name))
        return self.label

    @property
    def told(self) -> str:
        """Its events in the order in which they start; empty where there are none. "then" stands only before one that starts when all
        that were told before it are over, "and" before another; sentences follow each other without a word."""
        if any(event.caption.rstrip().endswith((".", "!", "?")) for event in self.events):
            return " ".join(event.caption for event in self.events)
        joins = ("", *(" then " if in_turn else " and " for in_turn in self.in_turn[1:]))
        return "".join(joined + event.caption for joined, event in zip(joins, self.events, strict=False))

    @property
    def in_turn(self) -> tuple[bool, ...]:
        """Of each event, whether all that start before it are over when it starts: only then does it come after them."""
        found, over = [], 0
        # Spans are whole frames: what is more than whole frames of doubt changes no comparison.
        unsure = int(UNSURE_S * self.rate)
        for event in self.events:
            found.append(event.span.start + unsure >= over)
            over = max(over, event.span.stop)
        return tuple(found)

    @property
    def brief_thinking(self) -> str | None:
        """The thinking of a teacher who looks, names what is there, and answers."""
        return f"the {self.called}" if self.called else None

    @model_validator(mode="after")
    def _events_lie_inside_in_order(self) -> Clip:
        for event in self.events:
            if event.span.stop > self.frames:
                raise ValueError(f"event {event.caption!r} ends at frame {event.span.stop}, the clip has {self.frames}")
        for before, after in pairwise(self.events):
            if after.span.start < before.span.start:
                raise ValueError(
                    f"event {after.caption!r} starts at frame {after.span.start}, before {before.caption!r} at {before.span.start}, which"
                    " stands in front of it; sort events by their start"
                )
        return self


class Reject(Record):
    """A row that was set aside, and why. ``reason`` is a stable slug that a program may count, ``detail`` is for a person."""

    schema_version: Literal[1] = 1
    item: str
    reason: str = Field(pattern=r"^[a-z0-9-]+$")
    detail: str


def natural(text: str) -> tuple[str | int, ...]:
    """A key that sorts numbers within texts by their value: 2 stands before 10."""
    # Bounded, because Python refuses to read numbers of thousands of digits.
    pieces = re.split(r"([0-9]{1,18})", text)
    return tuple(int(piece) if place % 2 else piece for place, piece in enumerate(pieces))


def reject_order(reject: Reject) -> tuple[str, tuple[str | int, ...], tuple[str | int, ...]]:
    """The key by which rejects are listed everywhere: reason after reason, items as a person counts."""
    return reject.reason, natural(reject.item), natural(reject.detail)


class Segment(Record):
    """Frames ``span`` of clip ``clip_id`` conformed to the timeline's rate: at an equal rate, that clip's own frame numbers."""

    clip_id: str
    span: Span


class Timeline(Record):
    """An edit decision list: segments shown one after the other at ``rate``, some frames of the result blacked out.

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
        """The clips shown, each once, in order of first appearance."""
        return tuple(dict.fromkeys(segment.clip_id for segment in self.segments))


class Trace(Record):
    """How a teacher would reply. ``brief_thinking`` only names the subject, and the answer after it is the same; ``careless_answer``
    is right but short."""

    thinking: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    brief_thinking: str | None = None
    careless_answer: str | None = None


class Sample(Record):
    """One question about one timeline. ``sampled`` frames of the timeline are shown to the model."""

    schema_version: Literal[1] = 1
    sample_id: str = Field(min_length=1)
    task: TaskName
    split: Split
    #: The clip that is asked about (MixVidQA shows another one too).
    clip_id: str
    timeline: Timeline
    sampled_frames: int = Field(gt=0)
    question: str = Field(min_length=1)
    options: tuple[str, ...] = ()
    #: What a perfect answer says: a caption, a letter, an event.
    reference: str = Field(min_length=1)
    #: Events a caption has to cover, in order; for DarkEventInfer the one that was blacked out.
    events: tuple[str, ...] = ()
    #: Subjects that an analysis has to name. Where there are any, the prompt asks for one.
    subjects: tuple[Subject, ...] = ()
    trace: Trace | None = None


class Verdict(Record):
    """What a judge said of one reply. A judge that failed says so: it never scores 0 for that.

    ``scored``: ``score`` holds the number. ``invalid``: the judge answered something unreadable. ``unavailable``: no answer came.
    """

    outcome: Literal["scored", "invalid", "unavailable"]
    score: float | None = None
    reason: str = ""
    judge: str

    @model_validator(mode="after")
    def _score_iff_scored(self) -> Verdict:
        if (self.outcome == "scored") != (self.score is not None):
            raise ValueError(f"outcome {self.outcome!r} and score {self.score!r} contradict each other: only 'scored' has a score")
        return self


class Score(Record):
    """One reply and what it was worth. ``value`` is the task score as a share of its maximum, in [0, 1]; None: could not be judged."""

    schema_version: Literal[1] = 1
    sample_id: str
    task: TaskName
    reply: str
    format_ok: bool
    #: Files of rows leave out what is None, so a file's row without it was not judged.
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
