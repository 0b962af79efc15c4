"""Tables of scores: means by task, with intervals of :mod:`stages.domain.statistics.intervals`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import Field

from stages.domain.core.records import Record, Sample, Score, TaskName
from stages.domain.statistics.intervals import Design, mean_interval

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
