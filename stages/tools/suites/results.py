"""Records of benchmark scores: one model for the writer of ``scores.json`` and all its readers.

Fields are in the order in which they are written.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from stages.domain.core.records import Record


class Cell(Record):
    """One measure on ``items`` replies about ``units`` videos.

    ``unjudged`` and ``left_out`` of the replies are in no mean. None: nothing to average.
    """

    mean: float | None
    low: float | None
    high: float | None
    items: int
    units: int
    unjudged: int
    left_out: int


class ScoringTable(Record):
    """One scoring: measure to its cell, over all questions and ``by`` category and value."""

    overall: dict[str, Cell]
    by: dict[str, dict[str, dict[str, Cell]]]


class Difference(Record):
    """``mean``: the first minus the second, on the ``items`` questions about ``units`` videos that
    count in both.

    ``p``: see :mod:`stages.domain.statistics.intervals`; ``p_holm``: that of one category's value,
    adjusted for all values of all categories (None: over all questions). None: there is no such
    question.
    """

    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None
    items: int
    units: int


class Changed(Record):
    """Numbers of questions by which predictions answer them correctly; ``p``: see
    :func:`exact_p`."""

    both: int
    only_this: int
    only_other: int
    neither: int
    p: float


class ScoringDifferences(Record):
    """One scoring: measure to its difference, over all questions and ``by`` category and value.

    ``changed``: None if there are no letters to choose.
    """

    overall: dict[str, Difference]
    by: dict[str, dict[str, dict[str, Difference]]]
    changed: Changed | None


class SetAside(Record):
    """A row of the annotations that is neither asked nor scored."""

    item: str
    reason: str
    detail: str


class ControlScores(Record):
    """Scores of replies to control videos: by scoring and measure, and the paired difference of
    those to the real videos."""

    questions: int
    scores: dict[str, dict[str, Cell]]
    gain: dict[str, dict[str, Difference]]


class Against(Record):
    """The comparison with a second file of predictions, on the questions that both answer;
    ``differences``: by scoring."""

    predictions: str
    predictions_sha256: str
    shared: int
    differences: dict[str, ScoringDifferences]


class BenchmarkScores(Record):
    """Output of `vidbridge score`.

    ``scorings``: scoring to its rule; ``scores``: scoring to its table; ``baselines``: trivial
    policy to scoring to measure; ``controls``: by the view that replaces the video. ``partial``:
    some questions have no prediction.
    """

    schema_version: Literal[2] = 2
    benchmark: str
    record: str
    digest: str
    predictions_sha256: str
    #: Name and settings; None: scored by rule.
    judge: dict[str, JsonValue] | None
    confidence: float
    questions: int
    answered: int
    partial: bool
    missing: list[str]
    empty: list[str]
    #: Of the annotations; not in ``questions``.
    set_aside: list[SetAside]
    not_scored: list[str]
    scorings: dict[str, str]
    scores: dict[str, ScoringTable]
    baselines: dict[str, dict[str, dict[str, Cell]]]
    controls: dict[str, ControlScores]
    against: Against | None
    #: Not in the file: a judge's cost depends on its cache.
    usage: dict[str, float] = Field(default_factory=dict, exclude=True)

    @property
    def judge_name(self) -> str | None:
        return str(self.judge["name"]) if self.judge else None

    @property
    def measures(self) -> list[str]:
        return list(next(iter(self.scores.values())).overall)


class Unanswered(Record):
    """A question without a reply, and why. ``view``: of the video, real or control."""

    id: str
    view: str
    video: str
    reason: str


class BenchmarkEvaluation(BenchmarkScores):
    """Output of `vidbridge evaluate`: scores, and the model that gave the replies.

    ``identity``: everything a reply depends on; ``replaced``: video to the number of replies about
    it that were dropped, since the video has changed; ``warnings``: about videos that were read,
    and look other than those that models are trained on.
    """

    model: str
    identity: dict[str, JsonValue]
    unanswered: list[Unanswered]
    replaced: dict[str, int]
    warnings: list[str] = Field(default_factory=list)
    controls_asked: str
