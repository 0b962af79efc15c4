"""Curves of rows that were watched while they were trained: held-out scores beside the reward of
training, and the checkpoint that was kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.lib.rows.jsonl import read_json
from stages.params import Params
from stages.runtime import paths
from stages.tools.report.curves import HEIGHT, WIDTH, Curves, read_curves, scale_x, smoothed
from stages.tools.report.drawing import Area, Points, canvas, line, put, scale_y, to_markup

#: Metrics of a measurement, the class of each line, and its name.
LINES = {"greedy": ("c1", "greedy"), "sampled": ("c2", "sampled, mean"), "pass": ("c4", "sampled, best of all")}


def of_watching(root: Path, params: Params) -> list[dict[str, Any]]:
    """Draw the charts of each watched row: the mean over tasks first, then each task."""
    drawn = []
    for kind, rows in (("sft", params.sft), ("grpo", params.grpo)):
        curves: Curves = read_curves(root, kind) if any(row.watch is not None for row in rows.values()) else {}
        for name, row in rows.items():
            if row.watch is None or name not in curves:
                continue
            chosen, rewarded = _kept(root, name), kind == "grpo" and params.rewards.scale == "unit"
            figures = [
                {
                    "title": task or "mean over tasks",
                    "svg": _chart(name, f"/{task}" if task else "", curves[name], rewarded, row.steps, chosen),
                }
                for task in ("", *row.trained_tasks)
            ]
            drawn.append(
                {
                    "name": name,
                    "watch": row.watch,
                    "kept": chosen,
                    "figures": figures,
                    "keys": [(mark, told) for key, (mark, told) in LINES.items() if f"watch/{key}" in curves[name]],
                    "rewarded": rewarded,
                }
            )
    return drawn


def _kept(root: Path, row: str) -> Mapping[str, Any] | None:
    """Checkpoint that a row kept; None if its model folder is not on this machine."""
    file = root / paths.model(row) / paths.SUMMARY_FILE
    kept: Mapping[str, Any] | None = read_json(file).get("kept") if file.is_file() else None
    return kept


def _chart(
    row: str, task: str, curves: Mapping[str, Points], rewarded: bool, steps: int, kept: Mapping[str, Any] | None
) -> Markup:
    lines = {key: curves.get(f"watch/{key}{task}", []) for key in LINES}
    reward = curves.get(f"reward{task}", []) if rewarded else []
    most = max([1.0, *(y for _, y in reward)])
    area = Area(42, WIDTH - 10, 12, HEIGHT - 26, (0, steps), (min([0.0, *(y for _, y in reward)]), most))
    drawing = canvas(WIDTH, HEIGHT, f"{row}, {task[1:] or 'mean over tasks'}: held-out scores while training", "chart")
    scale_y(drawing, area)
    scale_x(drawing, area)
    if kept is not None:
        x = area.px(kept["step"])
        put(drawing, "line", "stage", hint=f"kept: step {kept['step']}", x1=x, x2=x, y1=area.top, y2=area.bottom)
    if reward:
        line(drawing, area, reward, "c0 raw", "reward in training")
        line(drawing, area, smoothed(reward), "c0", "reward in training")
    for key, points in lines.items():
        mark, told = LINES[key]
        if not points:
            continue
        line(drawing, area, points, mark, told)
        for step, value in points:
            hint = f"step {step:g}, {told}: {value:.3f}"
            put(drawing, "circle", f"point {mark}", hint=hint, cx=area.px(step), cy=area.py(value), r=3)
    return to_markup(drawing)
