"""Tables of scores: means by task, with intervals of :mod:`stages.domain.statistics.intervals`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import comb
from statistics import fmean, pstdev

import numpy as np
from pydantic import Field

from stages.domain.core.records import Record, Sample, Score, TaskName
from stages.domain.statistics.intervals import Design, Interval, mean_interval

#: Sample id to the recordings that the sample shows: the units of
#: :mod:`stages.domain.statistics.intervals`.
Shown = Mapping[str, Sequence[str]]

#: Candidates for the best constant reply, and samples that each is scored on. Stage ``baselines``
#: and the cost estimate use them.
CONSTANTS, TRIED_ON = 24, 100


class TaskResult(Record):
    """Scores of one task, as shares of the maximum in [0, 1]. ``native``: mean of the task's own
    score x 100, as papers print it."""

    mean: float
    low: float
    high: float
    samples: int = Field(ge=0)
    #: Replies that no judge could score; they do not enter the mean.
    unjudged: int = Field(ge=0)
    format: float
    native: float


class SampledResult(Record):
    """Scores of several sampled replies to each sample of a task, as shares of the maximum.

    ``mean``: over all replies. ``pass_at``: k to the expected best of k replies, which is pass@k
    where scores are 0 or 1 (:func:`pass_at_k`). ``spread``: standard deviation of the replies to a
    sample, averaged over samples. Intervals have the recordings as units, with all replies to a
    sample together: they count the chance of the recordings and that of the replies.
    """

    mean: float
    low: float
    high: float
    spread: float
    pass_at: dict[int, Interval]
    #: Samples with at least one reply that could be judged. Those with fewer than k are not in the
    #: best of k, which is missing if there are no others.
    samples: int = Field(ge=0)
    replies: int = Field(ge=0)
    unjudged: int = Field(ge=0)


def pass_at_k(values: Sequence[float], k: int) -> float:
    """Estimate the expected score of the best of ``k`` replies from ``n`` of them, without bias.

    The mean over all subsets of size k of their maximum: the i-th smallest value is the maximum of
    C(i - 1, k - 1) of the C(n, k) subsets. Where scores are 0 or 1, and c of them are 1, it is
    pass@k = 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, equation 1).

    Raises:
        ValueError: there are fewer values than ``k``.
    """
    n = len(values)
    if not 1 <= k <= n:
        raise ValueError(f"k: {k} of {n} replies; ask for at least so many")
    return sum(value * comb(rank, k - 1) for rank, value in enumerate(sorted(values))) / comb(n, k)


def pass_sizes(replies: int) -> tuple[int, ...]:
    """Sizes k for which the best of k is reported: powers of two from 2, and the number of replies
    itself."""
    powers = [2**power for power in range(1, replies.bit_length()) if 2**power < replies]
    return (*powers, replies)


def sampled_results(
    scores: Sequence[Score], replies: int, shown: Shown, confidence: float
) -> dict[TaskName, SampledResult]:
    """Compute one result per task, in order of the tasks' first appearance.

    Args:
        scores: ``replies`` of each sample, which stand together.

    Raises:
        ValueError: a task has no sample with a judged reply.
    """
    by_task: dict[TaskName, list[Sequence[Score]]] = defaultdict(list)
    for start in range(0, len(scores), replies):
        by_task[scores[start].task].append(scores[start : start + replies])
    results: dict[TaskName, SampledResult] = {}
    for task, groups in by_task.items():
        judged = {rows[0].sample_id: [row.value for row in rows if row.value is not None] for rows in groups}
        enough = {k: [name for name, values in judged.items() if len(values) >= k] for k in (1, *pass_sizes(replies))}
        intervals = {
            # The best of one is the mean.
            k: mean_interval(
                np.array([pass_at_k(judged[name], k) for name in names], dtype=np.float64),
                Design.of([shown[name] for name in names]),
                confidence,
            )
            for k, names in enough.items()
            if names or k == 1
        }
        results[task] = SampledResult(
            **intervals.pop(1).model_dump(),
            spread=fmean(pstdev(judged[name]) for name in enough[1]),
            pass_at=intervals,
            samples=len(enough[1]),
            replies=replies * len(groups),
            unjudged=replies * len(groups) - sum(map(len, judged.values())),
        )
    return results


def recordings_of(sample: Sample) -> tuple[str, ...]:
    """Recordings that the sample shows; where each clip is its own, its clips."""
    return sample.recordings or sample.timeline.clip_ids


def recordings_shown(samples: Iterable[Sample]) -> dict[str, tuple[str, ...]]:
    """Map each sample id to the recordings that the sample shows."""
    return {sample.sample_id: recordings_of(sample) for sample in samples}


def task_results(scores: Sequence[Score], shown: Shown, confidence: float) -> dict[TaskName, TaskResult]:
    """Compute one result per task, in order of the tasks' first appearance.

    Raises:
        ValueError: a task has no reply that could be judged.
    """
    by_task: dict[TaskName, list[Score]] = defaultdict(list)
    for score in scores:
        by_task[score.task].append(score)
    results: dict[TaskName, TaskResult] = {}
    for task, rows in by_task.items():
        judged = [row for row in rows if row.value is not None]
        values = np.array([row.value for row in judged], dtype=np.float64)
        interval = mean_interval(values, Design.of([shown[row.sample_id] for row in judged]), confidence)
        results[task] = TaskResult(
            **interval.model_dump(),
            samples=len(rows),
            unjudged=len(rows) - len(judged),
            format=sum(row.format_ok for row in rows) / len(rows),
            native=100 * float(np.mean([row.parts["native"] for row in judged])),
        )
    return results


def mean_over_tasks(results: Mapping[TaskName, TaskResult]) -> float:
    """Mean of the tasks' means; every task has the same weight, for any number of samples."""
    return sum(result.mean for result in results.values()) / len(results)
