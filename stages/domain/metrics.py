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


def paired_difference(
    after: Sequence[Score], before: Sequence[Score], clip_of: Mapping[str, str], draws: int, confidence: float, seed: int
) -> tuple[Interval, dict[TaskName, Interval]]:
    """``after`` - ``before`` on the samples that both scored: the mean over tasks, and each task.

    The bootstrap draws clips for all tasks together, since one clip serves several tasks.

    Raises:
        ValueError: the two share no scored sample.
    """
    earlier = {row.sample_id: row.value for row in before}
    rows = [(row, row.value - old) for row in after if row.value is not None and (old := earlier.get(row.sample_id)) is not None]
    if not rows:
        raise ValueError("the two sets of scores share no scored sample; were they evaluated on different splits?")
    tasks = tuple(dict.fromkeys(row.task for row, _ in rows))
    groups = clusters([clip_of[row.sample_id] for row, _ in rows])
    count = int(groups.max()) + 1
    picks = np.random.default_rng(seed).integers(0, count, size=(draws, count))
    tail = (1 - confidence) / 2
    drawn, means, by_task = [], [], {}
    for task in tasks:
        here = np.array([row.task == task for row, _ in rows])
        values = np.array([difference for _, difference in rows])
        sums = np.bincount(groups[here], weights=values[here], minlength=count)
        sizes = np.bincount(groups[here], minlength=count)
        totals = sizes[picks].sum(axis=1)
        resampled = np.where(totals > 0, sums[picks].sum(axis=1) / np.maximum(totals, 1), values[here].mean())
        low, high = np.quantile(resampled, [tail, 1 - tail])
        by_task[task] = Interval(mean=float(values[here].mean()), low=float(low), high=float(high))
        drawn.append(resampled)
        means.append(values[here].mean())
    low, high = np.quantile(np.mean(drawn, axis=0), [tail, 1 - tail])
    return Interval(mean=float(np.mean(means)), low=float(low), high=float(high)), by_task


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
