"""From marks to the table of a benchmark: each measure under each scoring, overall and by category, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from stages.domain.metrics import Floats, clusters, drawn_sums, interval
from stages.domain.records import Record
from stages.suites.benchmark import Benchmark, Item, Mark, Measure
from stages.suites.choices import letter


class Cell(Record):
    """One measure on ``items`` replies; ``unjudged`` and ``left_out`` of them are in no mean. None: nothing to take a mean of."""

    mean: float | None
    low: float | None
    high: float | None
    items: int
    unjudged: int
    left_out: int


class Resampling(Record):
    draws: int
    confidence: float
    seed: int


def cells(
    benchmark: Benchmark[Any], items: Sequence[Item[Any]], marks: Mapping[str, Sequence[Mark]], how: Resampling
) -> dict[str, Any]:
    """Scoring to ``overall`` (measure to :class:`Cell`) and ``by`` (category to its values to the same). Videos are drawn, not
    questions.

    Args:
        marks: by scoring, one for each item.
    """
    table: dict[str, Any] = {name: {"overall": each, "by": {}} for name, each in overall(benchmark, items, marks, how).items()}
    for category in dict.fromkeys(name for item in items for name in item.categories):
        for value, here in parts_of(items, category).items():
            part = {name: [given[i] for i in here] for name, given in marks.items()}
            means = means_of(benchmark.measures, [items[i] for i in here], part, how.draws, how.seed)
            for name, given in part.items():
                found = _measured(benchmark.measures, means[name], given, how.confidence)
                table[name]["by"].setdefault(category, {})[value] = found
    return table


def overall(
    benchmark: Benchmark[Any], items: Sequence[Item[Any]], marks: Mapping[str, Sequence[Mark]], how: Resampling
) -> dict[str, Any]:
    """Scoring to measure to :class:`Cell`, over all items."""
    means = means_of(benchmark.measures, items, marks, how.draws, how.seed)
    for scoring in benchmark.scorings:
        if scoring.macro is not None:
            means[scoring.name] = macro_means(benchmark.measures, items, marks[scoring.name], scoring.macro, how)
    return {name: _measured(benchmark.measures, means[name], given, how.confidence) for name, given in marks.items()}


#: By part, its mean and behind it the means of the resamples: whatever is computed of one is computed of all. None: no mark counts.
Means = dict[str, Floats] | None


def parts_of(items: Sequence[Item[Any]], category: str) -> dict[str, list[int]]:
    """Numbers of the items of each value of a category."""
    parts: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        parts.setdefault(item.categories[category], []).append(i)
    return parts


def macro_means(
    measures: Sequence[Measure], items: Sequence[Item[Any]], marks: Sequence[Mark], category: str, how: Resampling
) -> Means:
    """The mean over a category's values of their means, each value resampled by itself."""
    found = []
    for number, here in enumerate(parts_of(items, category).values()):
        part = {"": [marks[i] for i in here]}
        found.append(means_of(measures, [items[i] for i in here], part, how.draws, how.seed + number)[""])
    present = [each for each in found if each is not None]
    return {name: np.mean([each[name] for each in present], axis=0) for name in present[0]} if present else None


def means_of(
    measures: Sequence[Measure], items: Sequence[Item[Any]], marks: Mapping[str, Sequence[Mark]], draws: int, seed: int
) -> dict[str, Means]:
    """The means of each scoring's marks, all on the same resamples."""
    names = list(dict.fromkeys(part for measure in measures for part in measure.parts))
    counted = {who: np.array([mark.counted and mark.parts is not None for mark in each], np.float64) for who, each in marks.items()}
    columns = {
        (who, name): np.array([mark.parts[name] if mark.parts and mark.counted else 0.0 for mark in each])
        for who, each in marks.items()
        for name in names
    }
    # Equal columns are drawn once: all replies count in most scorings, and baselines often score the same.
    different = {column.tobytes(): column for column in (*counted.values(), *columns.values())}
    sums = drawn_sums(list(different.values()), clusters([item.video for item in items]), draws, seed)
    drawn = dict(zip(different, sums, strict=True))

    def mean(who: str, name: str) -> Floats:
        whole = columns[who, name].sum() / counted[who].sum()
        sizes = drawn[counted[who].tobytes()]
        # A resample that holds none of what counts says nothing about the mean.
        return np.concatenate([[whole], np.where(sizes > 0, drawn[columns[who, name].tobytes()] / np.maximum(sizes, 1), whole)])

    return {who: {name: mean(who, name) for name in names} if counted[who].any() else None for who in marks}


def _measured(measures: Sequence[Measure], means: Means, marks: Sequence[Mark], confidence: float) -> dict[str, Any]:
    unjudged = sum(mark.parts is None for mark in marks)
    left_out = sum(mark.parts is not None and not mark.counted for mark in marks)
    counts = {"items": len(marks), "unjudged": unjudged, "left_out": left_out}
    if means is None:
        return {measure.name: Cell(mean=None, low=None, high=None, **counts).model_dump() for measure in measures}
    return {measure.name: _cell(measure, means, confidence, counts) for measure in measures}


def _cell(measure: Measure, means: Mapping[str, Floats], confidence: float, counts: dict[str, int]) -> dict[str, Any]:
    value = measured(measure, means)
    told = interval(float(value[0]), value[1:], confidence)
    return Cell(mean=told.mean, low=told.low, high=told.high, **counts).model_dump()


def measured(measure: Measure, means: Mapping[str, Floats]) -> Floats:
    """The measure on the sample, and behind it on each resample: float [1 + draws]."""
    first, *second = (means[part] for part in measure.parts)
    return measure.scale * (first if not second else 2 * first * second[0] / np.maximum(first + second[0], 1e-300))


def baseline_replies(items: Sequence[Item[Any]], seed: int) -> dict[str, list[str]]:
    """What needs no model: for each question a reply drawn at random (a letter, or the truth of another question), the most
    frequent truth of all (the best constant letter, since it is taken from the very answers), and nothing."""
    frequent = Counter(item.truth for item in items)
    constant = min(frequent, key=lambda truth: (-frequent[truth], truth))

    def drawn(number: int, item: Item[Any]) -> str:
        rng = Random(f"{seed}/random/{item.item_id}")
        if item.options:
            return letter(rng.randrange(len(item.options)))
        # Its own truth would be no guess; of one question there is no other.
        return items[(number + 1 + rng.randrange(max(len(items) - 1, 1))) % len(items)].truth

    return {
        "random": [drawn(number, item) for number, item in enumerate(items)],
        "constant": [constant] * len(items),
        "empty": [""] * len(items),
    }
