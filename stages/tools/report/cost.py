"""Cost of the pipeline: time, memory, GPUs and judges' tokens of each stage, and the graph of its
stages with these figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.params import Params
from stages.tools.report.dag import KINDS, Box, draw, edges_of
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.runs.history import REQUEST_COUNTS, Cost, PastRun


def stage_names(params: Params) -> list[str]:
    """Names of all stages of the pipeline, each after its inputs."""
    names = ["corpus", "ingest", "synthesize", "base", *(f"sft@{name}" for name in params.sft)]
    names += [
        f"{verb}@{name}"
        for name in params.grpo
        for verb in ("difficulty", "grpo")
        if verb == "grpo" or name in params.difficulty
    ]
    return [*names, "baselines", *(f"evaluate@{name}" for name in params.evaluation.of), "summary"]


def graph(root: Path, params: Params, runs: Mapping[str, PastRun]) -> list[Markup]:
    """Draw the stages in ``dvc.lock`` twice, for wide screens and for narrow ones; empty if it has
    none because stages were run by hand.

    Raises:
        TrackingError: ``dvc.lock`` is damaged.
    """
    locked = read_lock(root)
    names = [name for name in stage_names(params) if name in locked]
    if not names:
        return []
    longest = max((runs[name].cost.wall_s for name in names if name in runs), default=1.0)
    edges = edges_of(
        {name: list(locked[name].deps) for name in names}, {name: list(locked[name].outs) for name in names}
    )
    boxes = [_box(name, runs.get(name), longest) for name in names]
    return [draw(boxes, edges, upright=upright) for upright in (False, True)]


def _box(name: str, run: PastRun | None, longest: float) -> Box:
    if run is None:
        return Box(name, (), 0.0)
    cost = run.cost
    figures = (duration(cost.wall_s), f"CPU {duration(cost.cpu_s)}", f"{cost.peak_gb:.1f} GB")
    return Box(name, figures, cost.wall_s / longest)


def duration(seconds: float) -> str:
    """Format a duration as briefly as possible: 8 s, 2 min 05 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def cost_rows(params: Params, runs: Mapping[str, PastRun]) -> list[dict[str, Any]]:
    """Rows of the stages that were timed here."""
    return [_row(name, KINDS[name.partition("@")[0]], runs[name].cost) for name in stage_names(params) if name in runs]


def total(params: Params, runs: Mapping[str, PastRun]) -> dict[str, Any] | None:
    """Sums over all stages; None if none was timed. GPU hours are unknown if one stage's are."""
    costs = [runs[name].cost for name in stage_names(params) if name in runs]
    if not costs:
        return None
    gpu_h = [cost.gpu_h for cost in costs if cost.gpu_h is not None]
    summed = Cost(
        wall_s=sum(cost.wall_s for cost in costs),
        cpu_s=sum(cost.cpu_s for cost in costs),
        peak_gb=max(cost.peak_gb for cost in costs),
        gpu_h=sum(gpu_h) if len(gpu_h) == len(costs) else None,
    )
    return _row("all stages", "total", summed)


def _row(name: str, kind: str, cost: Cost) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "wall": duration(cost.wall_s),
        "cpu_h": cost.cpu_s / 3600,
        "gpu_h": cost.gpu_h,
        "peak_gb": cost.peak_gb,
    }


def request_rows(params: Params, runs: Mapping[str, PastRun]) -> list[dict[str, Any]]:
    """Requests and tokens per stage and endpoint; empty if rules judge and no writer is used."""
    rows: list[dict[str, Any]] = [
        {"stage": name, "who": who.replace("_", " "), **{count: counts.get(count, 0.0) for count in REQUEST_COUNTS}}
        for name in stage_names(params)
        if name in runs
        for who, counts in runs[name].requests.items()
    ]
    if len(rows) > 1:
        rows.append(
            {"stage": "all stages", "who": "", **{count: sum(row[count] for row in rows) for count in REQUEST_COUNTS}}
        )
    return rows
