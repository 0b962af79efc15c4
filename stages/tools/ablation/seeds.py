"""Statistics over several seeds: each seed is one observation, with clips of its own.

Two intervals are reported. One is over the recordings of all seeds together and measures the
precision of these trainings; a recording that several seeds hold out, as happens with a user's own
videos, is one unit there. The t interval is over the seeds' own differences and estimates how far
another seed may lie. It is wide for few seeds, as it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.domain.core.records import Record, Score, TaskName
from stages.domain.statistics.intervals import EQUAL, Interval
from stages.domain.statistics.metrics import Shown
from stages.domain.statistics.paired import paired_difference


class Gain(Record):
    """A difference of shares of the maximum: over these clips, by seed, and over seeds (None: no
    spread)."""

    clips: Interval
    seeds: tuple[float, ...]
    over_seeds: Interval | None


class PolicyPair(NamedTuple):
    """Two policies of one seed on the same samples.

    ``contents``: names of recordings that are equal across seeds only for the same one, such as
    digests of their content.
    """

    after: Sequence[Score]
    before: Sequence[Score]
    contents: Shown


def over_seeds(values: Sequence[float], confidence: float) -> Interval | None:
    """Student's t interval of the mean of the seeds' values.

    None if they have no spread: one seed, or seeds that agree to the last digit, as when all of
    them answer everything correctly.
    """
    from scipy import stats  # half a second of import that no stage need pay

    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), stats.sem(values)
    if error < EQUAL:
        return None
    low, high = stats.t.interval(confidence, len(values) - 1, mean, error)
    return Interval(mean=mean, low=float(low), high=float(high))


def pooled_gain(pairs: Sequence[PolicyPair], confidence: float) -> tuple[Gain, dict[TaskName, Gain]]:
    """Gain over tasks and gain of each task, from one pair per seed.

    Raises:
        ValueError: a seed's two policies share no scored sample.
    """
    after: list[Score] = []
    before: list[Score] = []
    contents: dict[str, Sequence[str]] = {}
    means: list[float] = []
    by_task: dict[TaskName, list[float]] = {}
    for number, pair in enumerate(pairs):
        # Seeds have samples of the same names.
        for rows, kept in ((pair.after, after), (pair.before, before)):
            kept += [row.model_copy(update={"sample_id": f"{number}:{row.sample_id}"}) for row in rows]
        contents |= {f"{number}:{sample}": clips for sample, clips in pair.contents.items()}
        mean, tasks = paired_difference(pair.after, pair.before, pair.contents, confidence)
        means.append(mean.mean)
        for task, samples_of_task in tasks.items():
            by_task.setdefault(task, []).append(samples_of_task.mean)
    whole, parts = paired_difference(after, before, contents, confidence)

    def gain(interval: Interval, seeds: Sequence[float]) -> Gain:
        return Gain(clips=interval, seeds=tuple(seeds), over_seeds=over_seeds(seeds, confidence))

    return gain(whole.interval, means), {
        task: gain(samples_of_task.interval, by_task[task]) for task, samples_of_task in parts.items()
    }
