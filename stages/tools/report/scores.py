"""The table of held-out scores with their intervals, trivial policies beside them, and what each row gained over its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.params import Params
from stages.tools.report.drawing import interval_bar

Table = Mapping[str, Any]


def cell(interval: Mapping[str, float], span: tuple[float, float]) -> dict[str, Any]:
    """A number with its interval, and a drawing of both between the values of ``span``. ``kind``: good or bad where 0 is outside.

    ``p``: what is said of chance, where ``interval`` has p-values; Holm's stands beside a task's, since all tasks of a row are looked at.
    """
    low, mean, high = interval["low"], interval["mean"], interval["high"]
    kind = "good" if low > 0 else "bad" if high < 0 else ""
    known = [("p", interval.get("p_value")), ("Holm", interval.get("p_holm"))]
    chance = ", ".join(f"{name} {_p(value)}" for name, value in known if value is not None)
    return {"mean": mean, "low": low, "high": high, "kind": kind, "p": chance, "bar": interval_bar(low, mean, high, span)}


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def score_rows(params: Params, tables: Mapping[str, Table], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Trivial policies first, then every evaluated row.

    Args:
        tables: what ``scores.json`` holds, by row, ``baselines`` among them.
    """
    baselines, candidate = tables["baselines"], tables[params.candidate]
    rows = [
        _row("trivial", name, baselines[name]["mean"], [cell(baselines["tasks"][task][name], (0, 1)) for task in tasks])
        for name in ("random", "constant")
    ]
    for kind in ("blank", "shuffled"):
        if f"{kind}_mean" in candidate:
            points = [{"mean": candidate["tasks"][task][kind]} for task in tasks]
            rows.append(_row("trivial", f"{params.candidate}, {kind} video", candidate[f"{kind}_mean"], points))
    for name in params.evaluation.of:
        table = tables[name]
        kind = "candidate" if name == params.candidate else "policy"
        row = _row(kind, name, table["mean"], [cell(table["tasks"][task], (0, 1)) for task in tasks])
        rows.append({**row, "format": table["format"], "blank": table["blank_mean"], "shuffled": table.get("shuffled_mean")})
    return rows


def _row(kind: str, name: str, mean: float, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"kind": kind, "name": name, "mean": mean, "cells": cells, "format": None, "blank": None, "shuffled": None}


def gain_rows(gains: Mapping[str, Table], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each pair in ``reports/metrics.json``, all drawn on one scale, so that lengths may be compared."""
    shown = [(name, [gain, *(gain["tasks"][task] for task in tasks)]) for name, gain in gains.items()]
    widest = max((abs(end) for _, row in shown for interval in row for end in (interval["low"], interval["high"])), default=1.0)
    span = (-widest or -1.0, widest or 1.0)
    return [{"name": name, "cells": [cell(interval, span) for interval in row]} for name, row in shown]


def headline(params: Params, tables: Mapping[str, Table], gains: Mapping[str, Table]) -> dict[str, Any]:
    """What a reader wants to know first: the candidate's score, its gain over the row it starts from in the end, the best trivial reply."""
    candidate, baselines = tables[params.candidate], tables["baselines"]
    over = [row for row in params.sft if f"{params.candidate} - {row}" in gains]
    name, best = max(((name, baselines[name]["mean"]) for name in ("random", "constant")), key=lambda pair: pair[1])
    return {
        "mean": candidate["mean"],
        "samples": candidate["samples"],
        "split": candidate["split"],
        "blank": candidate["blank_mean"],
        "gain": {"over": over[0], **gains[f"{params.candidate} - {over[0]}"]} if over else None,
        "trivial": {"name": name, "mean": best},
    }
