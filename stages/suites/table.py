"""From marks to the table of a benchmark: each measure under each scoring, overall and by category, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from stages.domain.metrics import Floats, clusters, drawn_sums, interval
from stages.domain.records import Record
from stages.suites.benchmark import Benchmark, Item, Mark, Measure, Scoring
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
    """Scoring to ``overall`` (measure to :class:`Cell`) and ``by`` (category to its values to the same). Videos are drawn, not questions.

    Args:
        marks: by scoring, one for each item.
    """
    table: dict[str, Any] = {}
    categories = list(dict.fromkeys(name for item in items for name in item.categories))
    for scoring in benchmark.scorings:
        given = marks[scoring.name]
        overall = _cells(benchmark.measures, items, given, how, scoring)
        by: dict[str, Any] = {}
        for category in categories:
            for value in dict.fromkeys(item.categories[category] for item in items):
                here = [i for i, item in enumerate(items) if item.categories[category] == value]
                part = _cells(benchmark.measures, [items[i] for i in here], [given[i] for i in here], how, None)
                by.setdefault(category, {})[value] = part
        table[scoring.name] = {"overall": overall, "by": by}
    return table


def overall(
    benchmark: Benchmark[Any], items: Sequence[Item[Any]], marks: Mapping[str, Sequence[Mark]], how: Resampling
) -> dict[str, Any]:
    """Scoring to measure to :class:`Cell`, for baselines."""
    return {one.name: _cells(benchmark.measures, items, marks[one.name], how, one) for one in benchmark.scorings}


def _cells(
    measures: Sequence[Measure], items: Sequence[Item[Any]], marks: Sequence[Mark], how: Resampling, scoring: Scoring[Any] | None
) -> dict[str, Any]:
    strata = [list(range(len(items)))]
    if scoring is not None and scoring.macro is not None:
        values = dict.fromkeys(item.categories[scoring.macro] for item in items)
        strata = [[i for i, item in enumerate(items) if item.categories[scoring.macro] == value] for value in values]
    names = list(dict.fromkeys(part for measure in measures for part in measure.parts))
    found = [
        _means(names, [items[i] for i in part], [marks[i] for i in part], how.draws, how.seed + number)
        for number, part in enumerate(strata)
    ]
    present = [each for each in found if each is not None]
    unjudged = sum(mark.parts is None for mark in marks)
    left_out = sum(mark.parts is not None and not mark.counted for mark in marks)
    counts = {"items": len(items), "unjudged": unjudged, "left_out": left_out}
    if not present:
        return {measure.name: Cell(mean=None, low=None, high=None, **counts).model_dump() for measure in measures}
    # The mean stands first, its resamples behind it: whatever is computed of one is computed of all.
    means = {name: np.mean([each[name] for each in present], axis=0) for name in names}
    return {measure.name: _cell(measure, means, how.confidence, counts) for measure in measures}


def _means(
    names: Sequence[str], items: Sequence[Item[Any]], marks: Sequence[Mark], draws: int, seed: int
) -> dict[str, Floats] | None:
    """By part, its mean and behind it the means of the resamples; None where no mark counts."""
    counted = np.array([mark.counted and mark.parts is not None for mark in marks], dtype=np.float64)
    if not counted.any():
        return None
    columns = [np.array([mark.parts[name] if mark.parts and mark.counted else 0.0 for mark in marks]) for name in names]
    *sums, sizes = drawn_sums([*columns, counted], clusters([item.video for item in items]), draws, seed)
    result = {}
    for name, column, drawn in zip(names, columns, sums, strict=True):
        mean = column.sum() / counted.sum()
        # A resample that holds none of what counts says nothing about the mean.
        result[name] = np.concatenate([[mean], np.where(sizes > 0, drawn / np.maximum(sizes, 1), mean)])
    return result


def _cell(measure: Measure, means: Mapping[str, Floats], confidence: float, counts: dict[str, int]) -> dict[str, Any]:
    first, *second = (means[part] for part in measure.parts)
    value = first if not second else 2 * first * second[0] / np.maximum(first + second[0], 1e-300)
    told = interval(float(value[0]), value[1:], confidence)
    return Cell(mean=measure.scale * told.mean, low=measure.scale * told.low, high=measure.scale * told.high, **counts).model_dump()


def baseline_replies(items: Sequence[Item[Any]], seed: int) -> dict[str, list[str]]:
    """What needs no model: for each question a reply drawn at random (a letter, or the truth of another question), the most frequent
    truth of all (the best constant letter, since it is taken from the very answers), and nothing."""
    frequent = Counter(item.truth for item in items)
    constant = min(frequent, key=lambda truth: (-frequent[truth], truth))

    def drawn(item: Item[Any]) -> str:
        rng = Random(f"{seed}/random/{item.item_id}")
        return letter(rng.randrange(len(item.options))) if item.options else rng.choice(items).truth

    return {
        "random": [drawn(item) for item in items],
        "constant": [constant] * len(items),
        "empty": [""] * len(items),
    }
