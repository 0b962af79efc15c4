"""What several seeds say together: each seed is one observation, with clips of its own.

Two intervals stand side by side. The bootstrap draws clips of all seeds together and says how well these trainings are measured; the t
interval is over the seeds' own differences and says how far another seed may lie. Few seeds make it wide, and that is honest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stages.domain.comparing import paired_difference
from stages.domain.metrics import Interval
from stages.domain.records import Record, Score, TaskName


class Gain(Record):
    """A difference of shares of the maximum: over these clips, by seed, and over seeds (None: one seed)."""

    clips: Interval
    seeds: tuple[float, ...]
    over_seeds: Interval | None


class Pair(NamedTuple):
    """Two policies of one seed on the same samples; ``clip_of``: the clip of each sample."""

    after: Sequence[Score]
    before: Sequence[Score]
    clip_of: Mapping[str, str]


def over_seeds(values: Sequence[float], confidence: float) -> Interval | None:
    """Student's t interval of the mean of the seeds' values; None for one seed. Seeds that agree to the last digit leave it no width."""
    from scipy import stats  # half a second of import that no stage need pay

    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), stats.sem(values)
    low, high = stats.t.interval(confidence, len(values) - 1, mean, error) if error else (mean, mean)
    return Interval(mean=mean, low=float(low), high=float(high))


def pooled_gain(pairs: Sequence[Pair], draws: int, confidence: float) -> tuple[Gain, dict[TaskName, Gain]]:
    """The gain over tasks and that of each task, a pair a seed.

    Raises:
        ValueError: a seed's two policies share no scored sample.
    """
    after: list[Score] = []
    before: list[Score] = []
    clips: dict[str, str] = {}
    means: list[float] = []
    by_task: dict[TaskName, list[float]] = {}
    for number, pair in enumerate(pairs):
        # Seeds have clips of the same names.
        for rows, kept in ((pair.after, after), (pair.before, before)):
            kept += [row.model_copy(update={"sample_id": f"{number}:{row.sample_id}"}) for row in rows]
        clips |= {f"{number}:{sample}": f"{number}:{clip}" for sample, clip in pair.clip_of.items()}
        mean, tasks = paired_difference(pair.after, pair.before, pair.clip_of, 1, confidence, 0)
        means.append(mean.mean)
        for task, found in tasks.items():
            by_task.setdefault(task, []).append(found.mean)
    whole, parts = paired_difference(after, before, clips, draws, confidence, 0)

    def gain(interval: Interval, seeds: Sequence[float]) -> Gain:
        return Gain(clips=interval, seeds=tuple(seeds), over_seeds=over_seeds(seeds, confidence))

    return gain(whole, means), {task: gain(found, by_task[task]) for task, found in parts.items()}
