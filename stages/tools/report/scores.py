"""The table of held-out scores with their intervals, trivial policies beside them, and the gain of
each row over its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.domain.core.records import TaskName
from stages.domain.statistics.intervals import Interval
from stages.domain.statistics.metrics import SampledResult, TaskResult
from stages.lib.evaluation.results import TRIVIAL, BaselineScores, PairedGain, PolicyScores, RowGain
from stages.params import Params
from stages.tools.report.drawing import interval_bar


def cell(interval: Interval | TaskResult | SampledResult | PairedGain, span: tuple[float, float]) -> dict[str, Any]:
    """Format a number with its interval, and draw both between the values of ``span``. ``kind``:
    good or bad if 0 is outside.

    ``p``: p-values, if ``interval`` has them; Holm's is added for a task, since all tasks of a row
    are compared.
    """
    low, mean, high = interval.low, interval.mean, interval.high
    kind = "good" if low > 0 else "bad" if high < 0 else ""
    p_values = [("p", interval.p_value), ("Holm", interval.p_holm)] if isinstance(interval, PairedGain) else []
    chance = ", ".join(f"{name} {_p(value)}" for name, value in p_values if value is not None)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "kind": kind,
        "p": chance,
        "bar": interval_bar(low, mean, high, span),
    }


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def score_rows(
    params: Params, tables: Mapping[str, PolicyScores], baselines: BaselineScores, tasks: Sequence[TaskName]
) -> list[dict[str, Any]]:
    """Rows of trivial policies first, then of every evaluated policy. ``tables``: by row."""
    candidate = tables[params.candidate]
    rows = [
        _row("trivial", name, baselines.of(name).mean, [cell(baselines.tasks[task].of(name), (0, 1)) for task in tasks])
        for name in TRIVIAL
    ]
    blank = [{"mean": candidate.tasks[task].blank} for task in tasks]
    shuffled = [{"mean": candidate.tasks[task].shuffled} for task in tasks]
    rows.append(_row("trivial", f"{params.candidate}, blank video", candidate.blank_mean, blank))
    rows.append(_row("trivial", f"{params.candidate}, shuffled video", candidate.shuffled_mean, shuffled))
    for name in params.evaluation.of:
        table = tables[name]
        kind = "candidate" if name == params.candidate else "policy"
        row = _row(kind, name, table.mean, [cell(table.tasks[task], (0, 1)) for task in tasks])
        rows.append({**row, "format": table.format, "blank": table.blank_mean, "shuffled": table.shuffled_mean})
    return rows


def sampled_rows(params: Params, tables: Mapping[str, PolicyScores], tasks: Sequence[TaskName]) -> list[dict[str, Any]]:
    """Rows of the policies of which several replies were sampled: greedy, mean, and pass@k, one
    below the other."""
    rows: list[dict[str, Any]] = []
    for name in params.evaluation.of:
        table = tables[name]
        if (sampled := table.sampled) is None:
            continue
        greedy = [cell(table.tasks[task], (0, 1)) for task in tasks]
        mean = [cell(sampled.tasks[task], (0, 1)) for task in tasks]
        title = f"mean of {sampled.replies} at temperature {sampled.temperature:g}"
        rows.append({"name": name, "kind": "greedy", "mean": table.mean, "cells": greedy})
        rows.append({"name": name, "kind": title, "mean": sampled.mean, "cells": mean})
        for k, value in sampled.pass_at.items():
            cells = [cell(sampled.tasks[task].pass_at[k], (0, 1)) for task in tasks]
            rows.append({"name": name, "kind": f"pass@{k}", "mean": value, "cells": cells})
    return rows


def _row(kind: str, name: str, mean: float, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"kind": kind, "name": name, "mean": mean, "cells": cells, "format": None, "blank": None, "shuffled": None}


def gain_rows(gains: Mapping[str, RowGain], tasks: Sequence[TaskName]) -> list[dict[str, Any]]:
    """Rows of the pairs in ``reports/metrics.json``, all drawn on one scale, so that lengths can be
    compared."""
    rows: list[tuple[str, list[PairedGain]]] = [
        (name, [gain, *(gain.tasks[task] for task in tasks)]) for name, gain in gains.items()
    ]
    widest = max(
        (abs(end) for _, row in rows for interval in row for end in (interval.low, interval.high)), default=1.0
    )
    span = (-widest or -1.0, widest or 1.0)
    return [{"name": name, "cells": [cell(interval, span) for interval in row]} for name, row in rows]


def headline(
    params: Params, tables: Mapping[str, PolicyScores], baselines: BaselineScores, gains: Mapping[str, RowGain]
) -> dict[str, Any]:
    """Headline figures: the candidate's score, its gain over the row it ultimately starts from, the
    best trivial policy."""
    candidate = tables[params.candidate]
    over = [row for row in params.sft if f"{params.candidate} - {row}" in gains]
    best = max(TRIVIAL, key=lambda name: baselines.of(name).mean)
    return {
        "mean": candidate.mean,
        "samples": candidate.samples,
        "split": candidate.split,
        "blank": candidate.blank_mean,
        "gain": {"over": over[0], **gains[f"{params.candidate} - {over[0]}"].model_dump()} if over else None,
        "trivial": {"name": best, "mean": baselines.of(best).mean},
    }
