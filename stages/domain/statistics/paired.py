"""Two policies on the same samples: which is better, by how much, and could chance have done it.

Each sample is its own control: what is looked at is the difference of its two scores. How sure that is:
:mod:`stages.domain.statistics.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages.domain.core.records import Record, Score, TaskName
from stages.domain.statistics.bootstrap import EQUAL, Compared, Design, Floats, Interval, compared, holm
from stages.domain.statistics.metrics import Shown


class SampleScore(Record):
    """What one sample was worth: ``value`` is a share of its maximum; None: no judge could say. ``clips``: those it shows."""

    sample_id: str
    clips: tuple[str, ...] = Field(min_length=1)
    task: str
    value: float | None = None


class Difference(Record):
    """``after`` - ``before``, with its interval.

    ``p_value``: how often chance gives a difference as far from 0 if there is none, both ways; ``p_holm``: the same of one task among
    all tasks, raised since all are looked at (None: it is no one of several). ``won``, ``lost``, ``tied``: samples.
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
    """The difference of the means over tasks, and each task's. ``unpaired``: samples that not both have a score for; they do not count."""

    mean: Difference
    tasks: dict[str, Difference]
    unpaired: int = Field(ge=0)


def compare(after: Iterable[SampleScore], before: Iterable[SampleScore], *, confidence: float) -> Comparison:
    """Compare ``after`` with ``before`` sample by sample; every task counts the same, however many samples it has.

    Raises:
        ValueError: no sample has a score from both.
    """
    ours, theirs = ({row.sample_id: row for row in rows} for rows in (after, before))
    pairs = [
        (row, row.value, earlier.value)
        for name, row in ours.items()
        if row.value is not None and (earlier := theirs.get(name)) is not None and earlier.value is not None
    ]
    if not pairs:
        raise ValueError("the two share no scored sample; were they evaluated on different splits?")
    names = [row.task for row, _, _ in pairs]
    clips = [row.clips for row, _, _ in pairs]
    new, old = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (1, 2))
    here = {task: np.flatnonzero([name == task for name in names]) for task in dict.fromkeys(names)}
    found = {task: compared((new - old)[rows], Design.of([clips[row] for row in rows]), confidence) for task, rows in here.items()}
    adjusted = holm([each.p_value for each in found.values()])
    by_task = {
        task: _difference(new[rows], old[rows], found[task], p_holm)
        for (task, rows), p_holm in zip(here.items(), adjusted, strict=True)
    }
    whole = compared(new - old, Design.of(clips, names), confidence)
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
    """``after`` - ``before`` on the samples that both scored: the mean over tasks, and each task.

    Raises:
        ValueError: the two share no scored sample.
    """
    rows = (
        [SampleScore(sample_id=s.sample_id, clips=tuple(shown[s.sample_id]), task=s.task, value=s.value) for s in side]
        for side in (after, before)
    )
    found = compare(*rows, confidence=confidence)
    tasks: dict[TaskName, Difference] = {row.task: found.tasks[row.task] for row in after if row.task in found.tasks}
    return found.mean, tasks


def _difference(new: Floats, old: Floats, found: Compared, p_holm: float) -> Difference:
    return Difference(before=float(old.mean()), after=float(new.mean()), **found.model_dump(), p_holm=p_holm, **_counts(new, old))


def _mean(tasks: Mapping[str, Difference], field: str) -> float:
    values: Sequence[float] = [getattr(task, field) for task in tasks.values()]
    return sum(values) / len(values)


def _counts(new: Floats, old: Floats) -> dict[str, int]:
    apart: npt.NDArray[np.bool_] = np.abs(new - old) > EQUAL
    return {"won": int((apart & (new > old)).sum()), "lost": int((apart & (new < old)).sum()), "tied": int((~apart).sum())}
