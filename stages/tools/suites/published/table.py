"""Table of a benchmark from marks: each measure under each scoring, overall and by category, with
intervals over recordings.

Intervals: :mod:`stages.domain.statistics.intervals`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from stages.domain.statistics.intervals import Design, Floats, harmonic, mean_interval
from stages.tools.suites.published.benchmark import Benchmark, Item, Mark, Measure
from stages.tools.suites.published.choices import letter
from stages.tools.suites.results import Cell, ScoringTable


def cells(
    benchmark: Benchmark[Any], items: Sequence[Item[Any]], marks: Mapping[str, Sequence[Mark]], confidence: float
) -> dict[str, ScoringTable]:
    """Compute the table of each scoring.

    Args:
        marks: by scoring, one for each item.
    """
    whole = overall(benchmark, items, marks, confidence)
    by: dict[str, dict[str, dict[str, dict[str, Cell]]]] = {name: {} for name in whole}
    for category in dict.fromkeys(name for item in items for name in item.categories):
        for value, here in parts_of(items, category).items():
            for name, marks_of_scoring in marks.items():
                part = [items[i] for i in here], [marks_of_scoring[i] for i in here]
                by[name].setdefault(category, {})[value] = _cells(benchmark.measures, *part, None, confidence)
    return {name: ScoringTable(overall=each, by=by[name]) for name, each in whole.items()}


def overall(
    benchmark: Benchmark[Any], items: Sequence[Item[Any]], marks: Mapping[str, Sequence[Mark]], confidence: float
) -> dict[str, dict[str, Cell]]:
    """Scoring to measure to :class:`Cell`, over all items."""
    return {
        scoring.name: _cells(benchmark.measures, items, marks[scoring.name], scoring.macro, confidence)
        for scoring in benchmark.scorings
    }


def parts_of(items: Sequence[Item[Any]], category: str) -> dict[str, list[int]]:
    """Indices of the items of each value of a category."""
    parts: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        parts.setdefault(item.categories[category], []).append(i)
    return parts


def counts(mark: Mark) -> bool:
    """Return whether a reply is included in means."""
    return mark.counted and mark.parts is not None


def design_of(items: Sequence[Item[Any]], macro: str | None) -> Design:
    """Design of the items' videos. ``macro``: the category whose values have equal weight."""
    return Design.of(
        [item.units for item in items], None if macro is None else [item.categories[macro] for item in items]
    )


def by_item(measure: Measure, marks: Sequence[Mark], design: Design) -> Floats:
    """Contribution of each reply to a measure, before its scale: float [marks], whose mean (over
    strata) is the measure.

    Args:
        marks: all of them in means.
    """
    first, *second = (
        np.array([mark.parts[part] for mark in marks if mark.parts], dtype=np.float64) for part in measure.parts
    )
    return harmonic(first, second[0], design) if second else first


def _cells(
    measures: Sequence[Measure], items: Sequence[Item[Any]], marks: Sequence[Mark], macro: str | None, confidence: float
) -> dict[str, Cell]:
    unjudged = sum(mark.parts is None for mark in marks)
    left_out = sum(mark.parts is not None and not mark.counted for mark in marks)
    shared = {"items": len(marks), "unjudged": unjudged, "left_out": left_out}
    here = [i for i, mark in enumerate(marks) if counts(mark)]
    if not here:
        return {measure.name: Cell(mean=None, low=None, high=None, units=0, **shared) for measure in measures}
    design, counted = design_of([items[i] for i in here], macro), [marks[i] for i in here]
    cells_of = {}
    for measure in measures:
        interval = mean_interval(by_item(measure, counted, design), design, confidence, measure.most)
        scaled = {name: measure.scale * value for name, value in interval.model_dump().items()}
        cells_of[measure.name] = Cell(**scaled, units=design.count, **shared)
    return cells_of


def baseline_replies(items: Sequence[Item[Any]], seed: int) -> dict[str, list[str]]:
    """Replies of policies without a model, for each question.

    A reply drawn at random (a letter, or the truth of another question), the most frequent truth of
    all (the best constant letter, since it is taken from the answers themselves), and an empty one.
    """
    frequent = Counter(item.truth for item in items)
    constant = min(frequent, key=lambda truth: (-frequent[truth], truth))

    def drawn(number: int, item: Item[Any]) -> str:
        rng = Random(f"{seed}/random/{item.item_id}")
        if item.options:
            return letter(rng.randrange(len(item.options)))
        # Its own truth would not be a guess; of one question there is no other.
        return items[(number + 1 + rng.randrange(max(len(items) - 1, 1))) % len(items)].truth

    return {
        "random": [drawn(number, item) for number, item in enumerate(items)],
        "constant": [constant] * len(items),
        "empty": [""] * len(items),
    }
