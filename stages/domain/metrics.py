"""From scores to tables: means with bootstrap intervals, paired differences, trivial baselines.

Several samples come from one source clip and are not independent, so the bootstrap draws clips, not samples (the cluster
bootstrap of Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages.domain.records import Record, Sample, Score, TaskName

Floats = npt.NDArray[np.float64]


class Interval(Record):
    mean: float
    low: float
    high: float


class TaskResult(Record):
    """Scores of one task: shares of the maximum in [0, 1]. ``native`` is the mean of the task's own number x 100, as papers print it."""

    mean: float
    low: float
    high: float
    samples: int = Field(ge=0)
    #: Replies that no judge could score; they are in no mean.
    unjudged: int = Field(ge=0)
    format: float
    native: float


def clusters(clip_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number for each sample's clip, equal for equal clips, shape [samples]."""
    numbers = {clip_id: i for i, clip_id in enumerate(dict.fromkeys(clip_ids))}
    return np.array([numbers[clip_id] for clip_id in clip_ids], dtype=np.int64)


def drawn_sums(columns: Sequence[Floats], groups: npt.NDArray[np.int64], draws: int, seed: int) -> list[Floats]:
    """The sum of each column [samples] in each of ``draws`` resamples of whole groups: a column of shape [draws] each.

    All columns see the same draws, so that ratios and differences of their sums are paired.
    """
    count = int(groups.max()) + 1
    picks = np.random.default_rng(seed).integers(0, count, size=(draws, count))
    return [np.bincount(groups, weights=column, minlength=count)[picks].sum(axis=1) for column in columns]


def bootstrap(values: Floats, groups: npt.NDArray[np.int64], draws: int, confidence: float, seed: int) -> Interval:
    """Percentile interval of the mean of ``values`` [samples], drawing whole groups with replacement.

    Raises:
        ValueError: no value at all.
    """
    if not len(values):
        raise ValueError("values: empty; there is nothing to take a mean of")
    sums, sizes = drawn_sums([values, np.ones(len(values))], groups, draws, seed)
    return interval(float(values.mean()), sums / sizes, confidence)


def interval(mean: float, drawn: Floats, confidence: float) -> Interval:
    """The percentile interval of a statistic that is ``mean`` on the sample and ``drawn`` [draws] on its resamples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(mean=mean, low=float(low), high=float(high))


def bootstrap_p(drawn: Floats) -> float:
    """Two-sided p-value of a difference that is ``drawn`` [draws] on resamples: twice the smaller share of them on either side of 0.

    It is the confidence at which the percentile interval just touches 0, taken from 1 (Efron and Tibshirani, *An Introduction to the
    Bootstrap*, 1993, chapters 13 and 15.4); one is added above and below, so that it is never 0 (Davison and Hinkley, *Bootstrap Methods
    and their Application*, 1997, equation 4.11). With B draws it cannot be below 2 / (B + 1).
    """
    sides = (int(np.count_nonzero(drawn <= 0)), int(np.count_nonzero(drawn >= 0)))
    return min(1.0, 2 * (1 + min(sides)) / (1 + len(drawn)))


def task_results(
    scores: Sequence[Score], clip_of: Mapping[str, str], draws: int, confidence: float, seed: int
) -> dict[TaskName, TaskResult]:
    """One result a task, in the order in which tasks first appear."""
    by_task: dict[TaskName, list[Score]] = defaultdict(list)
    for score in scores:
        by_task[score.task].append(score)
    results: dict[TaskName, TaskResult] = {}
    for task, rows in by_task.items():
        judged = [row for row in rows if row.value is not None]
        values = np.array([row.value for row in judged], dtype=np.float64)
        interval = bootstrap(values, clusters([clip_of[row.sample_id] for row in judged]), draws, confidence, seed)
        results[task] = TaskResult(
            **interval.model_dump(),
            samples=len(rows),
            unjudged=len(rows) - len(judged),
            format=sum(row.format_ok for row in rows) / len(rows),
            native=100 * float(np.mean([row.parts["native"] for row in judged])),
        )
    return results


def mean_over_tasks(results: Mapping[TaskName, TaskResult]) -> float:
    """Every task counts the same, however many samples it has."""
    return sum(result.mean for result in results.values()) / len(results)


def constant_reply(
    train: Sequence[Sample],
    reply_of: Callable[[Sample], str],
    values: Callable[[Sequence[Sample], Sequence[str]], Sequence[float | None]],
    seed: int,
) -> str:
    """The best single reply for one task: among the most frequent replies of training, the one that scores most on some of it.

    ``values`` scores many replies, each to the sample beside it. One that could not be judged counts neither way.
    """
    counts = Counter(reply_of(sample) for sample in train)
    candidates = [reply for reply, _ in counts.most_common(24)]
    judged = Random(f"{seed}/constant").sample(list(train), min(len(train), 100))
    found = iter(values(judged * len(candidates), [reply for reply in candidates for _ in judged]))
    scored = {reply: [value for _ in judged if (value := next(found)) is not None] for reply in candidates}
    return max(candidates, key=lambda reply: (sum(scored[reply]) / max(len(scored[reply]), 1), reply))
