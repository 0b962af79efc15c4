"""Two policies on the same samples: which is better, by how much, and could chance have done it.

Each sample is its own control: what is looked at is the difference of its two scores. Several samples come from one source clip and
are not independent, so the bootstrap draws clips, the same ones for every task (Davison and Hinkley, *Bootstrap Methods and their
Application*, 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages.domain.metrics import Floats, Interval, bootstrap_p, clusters, drawn_sums, interval
from stages.domain.records import Record, Score, TaskName


class SampleScore(Record):
    """What one sample was worth: ``value`` is a share of its maximum; None: no judge could say."""

    sample_id: str
    clip_id: str
    task: str
    value: float | None = None


class Difference(Record):
    """``after`` - ``before``, with its percentile interval.

    ``p_value``: how often chance gives a difference as far from 0 if there is none, both ways. ``won``, ``lost``, ``tied``: samples.
    """

    before: float
    after: float
    mean: float
    low: float
    high: float
    p_value: float
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


def compare(after: Iterable[SampleScore], before: Iterable[SampleScore], *, draws: int, confidence: float, seed: int) -> Comparison:
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
    groups = clusters([row.clip_id for row, _, _ in pairs])
    tasks: dict[str, npt.NDArray[np.bool_]] = {
        task: np.array([row.task == task for row, _, _ in pairs]) for task in dict.fromkeys(row.task for row, _, _ in pairs)
    }
    new, old = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (1, 2))
    # One list of columns, so that every task sees the same draws of clips.
    columns = [column for here in tasks.values() for column in ((new - old) * here, here.astype(np.float64))]
    sums = drawn_sums(columns, groups, draws, seed)
    drawn = {}
    for place, (task, here) in enumerate(tasks.items()):
        total, size = sums[2 * place], sums[2 * place + 1]
        # A draw of clips may hold none that this task has a sample of: it says nothing, so it stands at what was seen.
        seen = float((new - old)[here].mean())
        drawn[task] = np.where(size > 0, total / np.maximum(size, 1), seen)
    by_task = {task: _difference(new[here], old[here], drawn[task], confidence) for task, here in tasks.items()}
    mean = interval(_mean(by_task, "mean"), np.mean(list(drawn.values()), axis=0), confidence)
    overall = Difference(
        before=_mean(by_task, "before"),
        after=_mean(by_task, "after"),
        **mean.model_dump(),
        p_value=bootstrap_p(np.mean(list(drawn.values()), axis=0)),
        **_counts(new, old),
    )
    return Comparison(mean=overall, tasks=by_task, unpaired=len(ours.keys() | theirs.keys()) - len(pairs))


def paired_difference(
    after: Sequence[Score], before: Sequence[Score], clip_of: Mapping[str, str], draws: int, confidence: float, seed: int
) -> tuple[Interval, dict[TaskName, Interval]]:
    """``after`` - ``before`` on the samples that both scored: the mean over tasks, and each task.

    Raises:
        ValueError: the two share no scored sample.
    """
    rows = (
        [SampleScore(sample_id=s.sample_id, clip_id=clip_of[s.sample_id], task=s.task, value=s.value) for s in side]
        for side in (after, before)
    )
    found = compare(*rows, draws=draws, confidence=confidence, seed=seed)
    tasks: dict[TaskName, Interval] = {row.task: found.tasks[row.task].interval for row in after if row.task in found.tasks}
    return found.mean.interval, tasks


def _difference(new: Floats, old: Floats, drawn: Floats, confidence: float) -> Difference:
    found = interval(float((new - old).mean()), drawn, confidence)
    return Difference(
        before=float(old.mean()), after=float(new.mean()), **found.model_dump(), p_value=bootstrap_p(drawn), **_counts(new, old)
    )


def _mean(tasks: Mapping[str, Difference], field: str) -> float:
    values: Sequence[float] = [getattr(task, field) for task in tasks.values()]
    return sum(values) / len(values)


def _counts(new: Floats, old: Floats) -> dict[str, int]:
    # Scores are means of halves and thirds: equal ones may differ in the last bit.
    apart = np.abs(new - old) > 1e-9
    return {"won": int((apart & (new > old)).sum()), "lost": int((apart & (new < old)).sum()), "tied": int((~apart).sum())}
