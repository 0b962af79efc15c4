"""Records of the files that evaluation and the summary write; writers and readers share them.

Fields are in the order in which they are written.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PlainSerializer

from stages.domain.core.records import Record, Split, TaskName
from stages.domain.statistics.metrics import SampledResult, TaskResult

#: Policies that need no model.
Trivial = Literal["random", "constant"]
TRIVIAL: tuple[Trivial, ...] = ("random", "constant")


class ControlledResult(TaskResult):
    """Scores of one task, and the policy's means on black and on shuffled videos, with the upper
    ends of their intervals."""

    blank: float
    shuffled: float
    blank_high: float
    shuffled_high: float


class SampledScores(Record):
    """Scores of ``replies`` sampled replies to each sample at ``temperature``; means over tasks.

    ``pass_at``: k to the expected best of k replies (pass@k where scores are 0 or 1), for every k
    that each task has.
    """

    replies: int = Field(ge=2)
    temperature: float = Field(gt=0)
    mean: float
    spread: float
    pass_at: dict[int, float]
    tasks: dict[TaskName, SampledResult]


class PolicyScores(Record):
    """``scores/<row>/scores.json``: one policy on the held-out samples.

    ``digest`` names split, samples, prompts, judge and scoring: only equal digests are compared.
    ``format``: share of well-formed replies.
    """

    schema_version: Literal[1] = 1
    row: str
    digest: str = Field(min_length=1)
    split: Split
    samples: int = Field(ge=0)
    mean: float
    blank_mean: float
    shuffled_mean: float
    format: float
    tasks: dict[TaskName, ControlledResult]
    #: Beside the greedy replies, which all other fields are about; None: none were sampled. Files
    #: omit None.
    sampled: SampledScores | None = Field(default=None, exclude_if=lambda value: value is None)


class Mean(Record):
    """The mean over tasks."""

    mean: float


class TrivialResults(Record):
    """Scores of one task for each trivial policy."""

    random: TaskResult
    constant: TaskResult

    def of(self, policy: Trivial) -> TaskResult:
        return self.random if policy == "random" else self.constant


class BaselineScores(Record):
    """``scores/baselines/scores.json``: the trivial policies on the held-out samples.
    ``constant_replies``: the best one of each task."""

    schema_version: Literal[1] = 1
    digest: str = Field(min_length=1)
    split: Split
    random: Mean
    constant: Mean
    constant_replies: dict[TaskName, str]
    tasks: dict[TaskName, TrivialResults]

    def of(self, policy: Trivial) -> Mean:
        return self.random if policy == "random" else self.constant


class PairedGain(Record):
    """Paired difference of two policies: a :class:`~stages.domain.statistics.paired.Difference`
    without the two means."""

    mean: float
    low: float
    high: float
    p_value: float
    p_holm: float | None = None
    won: int = Field(ge=0)
    lost: int = Field(ge=0)
    tied: int = Field(ge=0)


class RowGain(PairedGain):
    """The gain over all tasks, and the gain of each task."""

    tasks: dict[TaskName, PairedGain]


class PolicyMeans(Record):
    """Means over tasks: with the video, on a black one, on a shuffled one; ``format``: share of
    well-formed replies."""

    mean: float
    format: float
    blank: float
    shuffled: float


class SummaryMetrics(Record):
    """``reports/metrics.json``, for ``dvc metrics`` and the report: evaluated rows by name, and
    gains by ``"<row> - <start>"``."""

    candidate: str
    rows: dict[str, PolicyMeans]
    tasks: dict[str, dict[TaskName, float]]
    gains: dict[str, RowGain]


_Rounded = Annotated[float, PlainSerializer(lambda value: f"{value:.4f}", return_type=str)]


class PlottedScore(Record):
    """A row of ``reports/plots/scores.csv``."""

    policy: str
    task: TaskName
    mean: _Rounded
    low: _Rounded
    high: _Rounded


class HistoryRow(Record):
    """A row of ``history.jsonl``: a trainer's metrics at ``step``, in ``model_extra``. Trainers
    choose the names of their metrics."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    step: int = Field(ge=0)
