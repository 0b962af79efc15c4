"""Compare two sets of predictions question by question: the difference of their scores, and its
significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.domain.statistics.intervals import compared, holm
from stages.tools.suites.published.benchmark import Benchmark, Item, Mark, Measure
from stages.tools.suites.published.table import by_item, counts, design_of, parts_of
from stages.tools.suites.results import Changed, Difference, ScoringDifferences


def paired(
    benchmark: Benchmark[Any],
    items: Sequence[Item[Any]],
    this: Mapping[str, Sequence[Mark]],
    other: Mapping[str, Sequence[Mark]],
    confidence: float,
) -> dict[str, ScoringDifferences]:
    """Differences under each scoring.

    A question that a scoring leaves out, or no judge was able to score, in one of them is left out
    of both.

    Args:
        this, other: by scoring, a mark for each item.
    """
    differences = {}
    for scoring in benchmark.scorings:
        ours, theirs = this[scoring.name], other[scoring.name]
        by = {
            category: {
                value: _differences(
                    benchmark.measures,
                    [items[i] for i in here],
                    [ours[i] for i in here],
                    [theirs[i] for i in here],
                    None,
                    confidence,
                )
                for value, here in parts_of(items, category).items()
            }
            for category in dict.fromkeys(name for item in items for name in item.categories)
        }
        differences[scoring.name] = ScoringDifferences(
            overall=_differences(benchmark.measures, items, ours, theirs, scoring.macro, confidence),
            by=_adjusted(benchmark.measures, by),
            changed=_changed(items, ours, theirs),
        )
    return differences


def overall_differences(
    benchmark: Benchmark[Any],
    items: Sequence[Item[Any]],
    this: Mapping[str, Sequence[Mark]],
    other: Mapping[str, Sequence[Mark]],
    confidence: float,
) -> dict[str, dict[str, Difference]]:
    """Scoring to measure to :class:`Difference`, over all items."""
    return {
        scoring.name: _differences(
            benchmark.measures, items, this[scoring.name], other[scoring.name], scoring.macro, confidence
        )
        for scoring in benchmark.scorings
    }


def _differences(
    measures: Sequence[Measure],
    items: Sequence[Item[Any]],
    this: Sequence[Mark],
    other: Sequence[Mark],
    macro: str | None,
    confidence: float,
) -> dict[str, Difference]:
    both = _count_in_both(this, other)
    if not both:
        return {
            measure.name: Difference(mean=None, low=None, high=None, p=None, items=0, units=0) for measure in measures
        }
    design = design_of([items[i] for i in both], macro)
    ours, theirs = ([each[i] for i in both] for each in (this, other))
    differences = {}
    for measure in measures:
        apart = by_item(measure, ours, design) - by_item(measure, theirs, design)
        comparison = compared(apart, design, confidence, measure.most)
        scaled = {name: measure.scale * value for name, value in comparison.interval.model_dump().items()}
        differences[measure.name] = Difference(**scaled, p=comparison.p_value, items=len(both), units=design.count)
    return differences


def _adjusted(
    measures: Sequence[Measure], by: Mapping[str, Mapping[str, Mapping[str, Difference]]]
) -> dict[str, dict[str, dict[str, Difference]]]:
    """Add Holm's p-values, a family for each measure: a reader scans all values of all categories
    for small ones."""
    raised: dict[tuple[str, str, str], float] = {}
    for measure in measures:
        family = [
            ((category, value, measure.name), cells[measure.name].p)
            for category, values in by.items()
            for value, cells in values.items()
        ]
        tested = [(key, p) for key, p in family if p is not None]
        raised |= dict(zip((key for key, _ in tested), holm([p for _, p in tested]), strict=True))
    return {
        category: {
            value: {
                name: cell.model_copy(update={"p_holm": raised.get((category, value, name))})
                for name, cell in cells.items()
            }
            for value, cells in values.items()
        }
        for category, values in by.items()
    }


def _count_in_both(this: Sequence[Mark], other: Sequence[Mark]) -> list[int]:
    return [i for i, pair in enumerate(zip(this, other, strict=True)) if all(map(counts, pair))]


def _changed(items: Sequence[Item[Any]], this: Sequence[Mark], other: Sequence[Mark]) -> Changed | None:
    pairs = [(_right(this[i]), _right(other[i])) for i in _count_in_both(this, other) if items[i].options]
    if not pairs:
        return None
    only_this, only_other = pairs.count((True, False)), pairs.count((False, True))
    return Changed(
        both=pairs.count((True, True)),
        only_this=only_this,
        only_other=only_other,
        neither=pairs.count((False, False)),
        p=exact_p(only_this, only_other),
    )


def _right(mark: Mark) -> bool:
    assert mark.parts is not None
    return mark.parts["right"] > 0


def exact_p(first: int, second: int) -> float:
    """Two-sided p-value of so many changes in either direction, if both were equally likely
    (McNemar, *Psychometrika* 12, 1947, in its exact form: the binomial distribution).

    Questions about one video are taken as independent, which ``p`` does not do.
    """
    from scipy import special

    return min(1.0, 2 * float(special.bdtr(min(first, second), first + second, 0.5)))
