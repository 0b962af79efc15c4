"""Paired comparison of two policies on the same samples.

Each sample is its own control: the statistic is the difference of its two scores. Intervals and
p-values: :mod:`stages.domain.statistics.intervals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages.domain.core.records import Record, Sample, Score, TaskName
from stages.domain.statistics.intervals import EQUAL, Compared, Design, Floats, Interval, compared, holm
from stages.domain.statistics.metrics import Shown


class SampleScore(Record):
    """Score of one sample. ``value``: share of its maximum; None: not judged. ``clips``: the clips
    that it shows."""

    sample_id: str
    clips: tuple[str, ...] = Field(min_length=1)
    #: The recordings that its clips are of; None: each clip is its own.
    recordings: tuple[str, ...] | None = Field(default=None, min_length=1)
    task: str
    value: float | None = None

    @classmethod
    def of(cls, sample: Sample, score: Score) -> SampleScore:
        clips = sample.timeline.clip_ids
        return cls(
            sample_id=score.sample_id, clips=clips, recordings=sample.recordings, task=score.task, value=score.value
        )


class Difference(Record):
    """``after`` - ``before``, with its interval.

    ``p_value``: two-sided, the probability of a difference at least as far from 0 if the true one
    is 0. ``p_holm``: the same, adjusted for the number of tasks compared (None: not one of
    several). ``won``, ``lost``, ``tied``: numbers of samples.
    """

    before: float
    after: float
    mean: float
    low: float
    high: float
    p_value: float
    p_holm: float | None = None
    won: int = Field(ge=0)
    lost: int = Field(ge=0)
    tied: int = Field(ge=0)

    @property
    def interval(self) -> Interval:
        return Interval(mean=self.mean, low=self.low, high=self.high)


class Comparison(Record):
    """Difference of the means over tasks, and of each task. ``unpaired``: samples without a score
    on both sides; they do not count."""

    mean: Difference
    tasks: dict[str, Difference]
    unpaired: int = Field(ge=0)


def compare(after: Iterable[SampleScore], before: Iterable[SampleScore], *, confidence: float) -> Comparison:
    """Compare ``after`` with ``before`` sample by sample; every task has the same weight, for any
    number of samples.

    Raises:
        ValueError: no sample has a score from both.
    """
    ours, theirs = ({row.sample_id: row for row in rows} for rows in (after, before))
    pairs = [
        # Scores of an earlier version name no recordings.
        (row.task, row.recordings or earlier.recordings or row.clips, row.value, earlier.value)
        for name, row in ours.items()
        if row.value is not None and (earlier := theirs.get(name)) is not None and earlier.value is not None
    ]
    if not pairs:
        raise ValueError("the two share no scored sample; were they evaluated on different splits?")
    names, units = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    new, old = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (2, 3))
    rows_of = {task: np.flatnonzero([name == task for name in names]) for task in dict.fromkeys(names)}
    results = {
        task: compared((new - old)[rows], Design.of([units[row] for row in rows]), confidence)
        for task, rows in rows_of.items()
    }
    adjusted = holm([result.p_value for result in results.values()])
    by_task = {
        task: _difference(new[rows], old[rows], results[task], p_holm)
        for (task, rows), p_holm in zip(rows_of.items(), adjusted, strict=True)
    }
    whole = compared(new - old, Design.of(units, names), confidence)
    overall = Difference(
        before=_mean(by_task, "before"),
        after=_mean(by_task, "after"),
        **whole.model_dump(),
        **_counts(new, old),
    )
    return Comparison(mean=overall, tasks=by_task, unpaired=len(ours.keys() | theirs.keys()) - len(pairs))


def paired_difference(
    after: Sequence[Score], before: Sequence[Score], shown: Shown, confidence: float
) -> tuple[Difference, dict[TaskName, Difference]]:
    """Compute ``after`` - ``before`` on the samples scored by both: the mean over tasks, and each
    task.

    Raises:
        ValueError: the two share no scored sample.
    """
    rows = (
        # Units stand for clips here: which clips they are of does not matter.
        [SampleScore(sample_id=s.sample_id, clips=tuple(shown[s.sample_id]), task=s.task, value=s.value) for s in side]
        for side in (after, before)
    )
    comparison = compare(*rows, confidence=confidence)
    tasks: dict[TaskName, Difference] = {
        row.task: comparison.tasks[row.task] for row in after if row.task in comparison.tasks
    }
    return comparison.mean, tasks


def _difference(new: Floats, old: Floats, result: Compared, p_holm: float) -> Difference:
    return Difference(
        before=float(old.mean()), after=float(new.mean()), **result.model_dump(), p_holm=p_holm, **_counts(new, old)
    )


def _mean(tasks: Mapping[str, Difference], field: str) -> float:
    values: Sequence[float] = [getattr(task, field) for task in tasks.values()]
    return sum(values) / len(values)


def _counts(new: Floats, old: Floats) -> dict[str, int]:
    apart: npt.NDArray[np.bool_] = np.abs(new - old) > EQUAL
    return {
        "won": int((apart & (new > old)).sum()),
        "lost": int((apart & (new < old)).sum()),
        "tied": int((~apart).sum()),
    }
