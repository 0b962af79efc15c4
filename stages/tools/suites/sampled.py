"""Scores of several sampled replies to each question: their mean, and the best of k of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.domain.statistics.intervals import Floats, harmonic, mean_interval
from stages.domain.statistics.metrics import pass_at_k, pass_sizes
from stages.tools.suites.published.benchmark import Benchmark, Item, Mark, Measure
from stages.tools.suites.published.table import counts, design_of
from stages.tools.suites.results import Cell, SampledCells


def sampled_cells(
    benchmark: Benchmark[Any],
    items: Sequence[Item[Any]],
    marks: Mapping[str, Sequence[Sequence[Mark]]],
    replies: int,
    confidence: float,
) -> dict[str, dict[str, SampledCells]]:
    """Compute scoring to measure to its cells, over all questions. The units of intervals are
    videos, with all replies about one together.

    Args:
        marks: by scoring, those of each item's replies.
        replies: number of replies that were asked for.
    """
    return {
        scoring.name: {
            measure.name: _cells(measure, items, marks[scoring.name], scoring.macro, replies, confidence)
            for measure in benchmark.measures
        }
        for scoring in benchmark.scorings
    }


def _cells(
    measure: Measure,
    items: Sequence[Item[Any]],
    marks: Sequence[Sequence[Mark]],
    macro: str | None,
    replies: int,
    confidence: float,
) -> SampledCells:
    counted = [[mark.parts for mark in each if counts(mark) and mark.parts is not None] for each in marks]
    every = [mark for each in marks for mark in each]
    shared = {
        "items": len(every),
        "unjudged": sum(mark.parts is None for mark in every),
        "left_out": sum(mark.parts is not None and not mark.counted for mark in every),
    }

    def cell(here: Sequence[int], columns: Sequence[Sequence[float]]) -> Cell:
        if not here:
            return Cell(mean=None, low=None, high=None, units=0, **shared)
        design = design_of([items[i] for i in here], macro)
        first, *second = (np.array(column, dtype=np.float64) for column in columns)
        values: Floats = harmonic(first, second[0], design) if second else first
        interval = mean_interval(values, design, confidence, measure.most)
        scaled = {name: measure.scale * value for name, value in interval.model_dump().items()}
        return Cell(**scaled, units=design.count, **shared)

    here = [i for i, each in enumerate(counted) if each]
    means = [[float(np.mean([parts[part] for parts in counted[i]])) for i in here] for part in measure.parts]
    pass_at: dict[int, Cell] = {}
    # A harmonic mean is one of means over all questions: no reply has it, so there is no best one.
    for k in pass_sizes(replies) if len(measure.parts) == 1 else ():
        enough = [i for i, each in enumerate(counted) if len(each) >= k]
        best = [pass_at_k([parts[measure.parts[0]] for parts in counted[i]], k) for i in enough]
        pass_at[k] = cell(enough, [best])
    return SampledCells(mean=cell(here, means), pass_at=pass_at)
