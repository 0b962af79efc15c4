"""What every benchmark says of itself, in types that have no opinion of any one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Exact, Record, Reject
from stages.errors import VidbridgeError
from stages.tools.suites.asked_of_judges import Examiner


class SuiteError(VidbridgeError, ValueError):
    """Annotations or predictions that cannot be scored; the message says file, field, value and remedy."""


class AnnotationError(SuiteError):
    """The annotations are not those of the benchmark that was named, or are damaged."""


class PredictionError(SuiteError):
    """The predictions do not answer the benchmark's questions."""


class PublishedRow(BaseModel):
    """A row of somebody else's file: its own field names; fields that are not used may be there."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


#: A text that says something.
Words = Annotated[str, Field(pattern=r"\S")]


class FrameProtocol(Record):
    """What a model is shown of a video: ``fps`` frames a second (None: spread evenly over it), at most ``frames`` of them."""

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

    ``video``: as it is looked for. ``units``: the files it is about, whatever tasks ask about them: questions that share one are no
    independent evidence (:mod:`stages.domain.statistics.bootstrap`). ``categories``: what tables are made by, such as ``{"duration": "short"}``.
    ``part_s``: from when to when of the video, in seconds; None: all of it. ``options``: what may be chosen, empty for an open answer.
    ``truth``: a reply that is right.
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
    """What annotations ask. ``set_aside``: what of them cannot be asked or scored, and why; ``not_asked``: ids of whole questions among
    that, which predictions may answer all the same."""

    items: tuple[Item[RowT_co], ...]
    set_aside: tuple[Reject, ...]
    not_asked: frozenset[str]


class Mark(NamedTuple):
    """What one reply earned, by part; ``parts`` is None when no judge could say. A mark that is not ``counted`` is left out of
    means, as some harnesses do with some replies."""

    parts: Mapping[str, float] | None
    counted: bool = True


@dataclass(frozen=True)
class Scoring(Generic[RowT]):
    """One way to score by rule. ``compat`` ones say whose; ``macro``: a category over which means are taken before the mean of those."""

    name: str
    rule: str
    mark: Callable[[Item[RowT], str], Mark]
    macro: str | None = None


@dataclass(frozen=True)
class JudgedScoring(Generic[RowT]):
    """One way to score that asks a judge."""

    name: str
    rule: str
    mark: Callable[[Item[RowT], str, Examiner], Mark]
    macro: str | None = None


class Measure(NamedTuple):
    """A number of the table: the mean of a part, or the harmonic mean of the means of two, times ``scale``. ``most``: what a part can be
    at most; the least is 0."""

    name: str
    parts: tuple[str] | tuple[str, str]
    scale: float
    most: float = 1.0


@dataclass(frozen=True)
class Benchmark(Generic[RowT]):
    """``record``: the public record (project, revision) whose field names and scoring it follows; ``files``: names that its
    annotations have in a folder; ``prompt``: what a model is asked about an item; ``by_rule`` and ``by_judge``: how it is
    scored, in one of the two ways."""

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
