"""Types that describe a benchmark, without knowledge of any one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Exact, Record, Reject
from stages.errors import InputError
from stages.tools.suites.asked_of_judges import Examiner


class SuiteError(InputError, ValueError):
    """Annotations or predictions cannot be scored; the message has file, field, value and
    remedy."""


class AnnotationError(SuiteError):
    """The annotations belong to another benchmark, or are damaged."""


class PredictionError(SuiteError):
    """The predictions do not answer the benchmark's questions."""


class PublishedRow(BaseModel):
    """A row of a published file: its own field names; unused fields are allowed."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


#: A text that is not blank.
Words = Annotated[str, Field(pattern=r"\S")]


class FrameProtocol(Record):
    """Frames of a video in a request: ``fps`` frames a second (None: spread evenly over it), at
    most ``frames`` of them."""

    fps: Exact | None
    frames: int = Field(gt=0)


#: SPEC 1, inference: questions at 1 fps and at most 128 frames, captions on 16 frames.
QUESTION_FRAMES = FrameProtocol.model_validate({"fps": 1, "frames": 128})
CAPTION_FRAMES = FrameProtocol(fps=None, frames=16)

RowT = TypeVar("RowT")
RowT_co = TypeVar("RowT_co", covariant=True)


@dataclass(frozen=True)
class Item(Generic[RowT_co]):
    """One question of a benchmark.

    ``video``: its name, as it is searched. ``units``: its recordings, as far as names tell them,
    whatever task uses them: questions that share one are not independent evidence
    (:mod:`stages.domain.statistics.intervals`). ``categories``: columns of the tables, such as
    ``{"duration": "short"}``. ``part_s``: start and end in the video, in seconds; None: all of it.
    ``options``: the choices, empty for an open answer. ``truth``: a reply that is right.
    """

    item_id: str
    video: str
    units: tuple[str, ...]
    categories: Mapping[str, str]
    frames: FrameProtocol
    part_s: tuple[float, float] | None
    options: tuple[str, ...]
    truth: str
    row: RowT_co


@dataclass(frozen=True)
class Questions(Generic[RowT_co]):
    """Questions of the annotations. ``set_aside``: parts that cannot be asked or scored, and why;
    ``not_asked``: ids of whole questions among them, which predictions may answer nevertheless."""

    items: tuple[Item[RowT_co], ...]
    set_aside: tuple[Reject, ...]
    not_asked: frozenset[str]


class Mark(NamedTuple):
    """Score of one reply, by part; ``parts`` is None if no judge was able to score it.

    A mark that is not ``counted`` is left out of means, as some harnesses do with some replies.
    """

    parts: Mapping[str, float] | None
    counted: bool = True


@dataclass(frozen=True)
class Scoring(Generic[RowT]):
    """One scoring by rule. ``compat`` ones name the harness; ``macro``: a category over which means
    are taken before the mean of those."""

    name: str
    rule: str
    mark: Callable[[Item[RowT], str], Mark]
    macro: str | None = None


@dataclass(frozen=True)
class JudgedScoring(Generic[RowT]):
    """One scoring that uses a judge."""

    name: str
    rule: str
    mark: Callable[[Item[RowT], str, Examiner], Mark]
    macro: str | None = None


class Measure(NamedTuple):
    """A number of the table: the mean of a part, or the harmonic mean of the means of two, times
    ``scale``.

    ``most``: largest value of a part; the least is 0.
    """

    name: str
    parts: tuple[str] | tuple[str, str]
    scale: float
    most: float = 1.0


@dataclass(frozen=True)
class Benchmark(Generic[RowT]):
    """A benchmark.

    ``record``: the public record (project, revision) whose field names and scoring it follows;
    ``files``: names of its annotation files in a folder; ``prompt``: builds the prompt of an item;
    ``by_rule`` and ``by_judge``: its scorings, in one of the two ways.
    """

    name: str
    record: str
    files: tuple[str, ...]
    read: Callable[[Path], Questions[RowT]]
    prompt: Callable[[Item[RowT], PromptTexts], str]
    measures: tuple[Measure, ...]
    by_rule: tuple[Scoring[RowT], ...] = ()
    by_judge: tuple[JudgedScoring[RowT], ...] = ()

    @property
    def scorings(self) -> tuple[Scoring[RowT] | JudgedScoring[RowT], ...]:
        return self.by_rule or self.by_judge

    @property
    def judged(self) -> bool:
        return bool(self.by_judge)
