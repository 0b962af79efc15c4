"""Two sets of predictions compared question by question: how much one scores above the other, and what may be said of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.domain.metrics import Floats, bootstrap_p, interval
from stages.domain.records import Record
from stages.suites.benchmark import Benchmark, Item, Mark, Measure
from stages.suites.table import Resampling, macro_means, means_of, measured, parts_of


class Difference(Record):
    """``mean``: the one's minus the other's, on the ``items`` questions that count in both; ``p``: see
    :func:`stages.domain.metrics.bootstrap_p`. None: there is no such question."""

    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    items: int


class Changed(Record):
    """Questions by who answers them rightly; ``p``: see :func:`exact_p`."""

    both: int
    only_this: int
    only_other: int
    neither: int
    p: float


def paired(
    benchmark: Benchmark[Any],
    items: Sequence[Item[Any]],
    this: Mapping[str, Sequence[Mark]],
    other: Mapping[str, Sequence[Mark]],
    how: Resampling,
) -> dict[str, Any]:
    """Scoring to ``overall`` (measure to :class:`Difference`), ``by`` (category to its values to the same) and ``changed``.

    Videos are drawn, and both sets see the same draws. A question that a scoring leaves out, or no judge could score, in one of them is
    left out of both. ``changed`` is None where there are no letters to choose.

    Args:
        this, other: by scoring, a mark for each item.
    """
    return {
        scoring.name: {
            "overall": _differences(benchmark.measures, items, this[scoring.name], other[scoring.name], how, scoring.macro),
            "by": {
                category: {
                    value: _differences(
                        benchmark.measures,
                        [items[i] for i in here],
                        [this[scoring.name][i] for i in here],
                        [other[scoring.name][i] for i in here],
                        how,
                        None,
                    )
                    for value, here in parts_of(items, category).items()
                }
                for category in dict.fromkeys(name for item in items for name in item.categories)
            },
            "changed": _changed(items, this[scoring.name], other[scoring.name]),
        }
        for scoring in benchmark.scorings
    }


def overall_differences(
    benchmark: Benchmark[Any],
    items: Sequence[Item[Any]],
    this: Mapping[str, Sequence[Mark]],
    other: Mapping[str, Sequence[Mark]],
    how: Resampling,
) -> dict[str, Any]:
    """Scoring to measure to :class:`Difference`, over all items."""
    return {
        scoring.name: _differences(benchmark.measures, items, this[scoring.name], other[scoring.name], how, scoring.macro)
        for scoring in benchmark.scorings
    }


def _differences(
    measures: Sequence[Measure],
    items: Sequence[Item[Any]],
    this: Sequence[Mark],
    other: Sequence[Mark],
    how: Resampling,
    macro: str | None,
) -> dict[str, Any]:
    both = _count_in_both(this, other)
    if not both:
        return {measure.name: Difference(mean=None, low=None, high=None, p=None, items=0).model_dump() for measure in measures}
    shared = [items[i] for i in both]
    marks = {"this": [this[i] for i in both], "other": [other[i] for i in both]}
    if macro is None:
        means = means_of(measures, shared, marks, how.draws, how.seed)
    else:
        means = {who: macro_means(measures, shared, each, macro, how) for who, each in marks.items()}
    mine, theirs = means["this"], means["other"]
    assert mine is not None
    assert theirs is not None
    return {
        measure.name: _difference(measured(measure, mine) - measured(measure, theirs), how.confidence, len(both)).model_dump()
        for measure in measures
    }


def _count_in_both(this: Sequence[Mark], other: Sequence[Mark]) -> list[int]:
    return [
        i for i, pair in enumerate(zip(this, other, strict=True)) if all(mark.counted and mark.parts is not None for mark in pair)
    ]


def _difference(drawn: Floats, confidence: float, items: int) -> Difference:
    told = interval(float(drawn[0]), drawn[1:], confidence)
    return Difference(**told.model_dump(), p=bootstrap_p(drawn[1:]), items=items)


def _changed(items: Sequence[Item[Any]], this: Sequence[Mark], other: Sequence[Mark]) -> dict[str, Any] | None:
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
    ).model_dump()


def _right(mark: Mark) -> bool:
    assert mark.parts is not None
    return mark.parts["right"] > 0


def exact_p(first: int, second: int) -> float:
    """Two-sided p-value of so many changes one way and the other, were both ways as likely (McNemar, *Psychometrika* 12, 1947, in its
    exact form: the binomial distribution). Questions about one video are taken for independent, which the bootstrap does not do.
    """
    changes = first + second
    tail, ways = 0, 1
    for count in range(min(first, second) + 1):
        tail += ways
        ways = ways * (changes - count) // (count + 1)  # how many ways there are to choose one more
    return min(1.0, 2 * tail / (1 << changes))
