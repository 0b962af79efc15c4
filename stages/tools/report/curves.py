"""Learning curves: each task along the chain of rows that produced the candidate, training metrics,
and the gauges."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.domain.core.records import TaskName
from stages.domain.rl.gauges import GAUGES
from stages.lib.evaluation.results import PolicyScores
from stages.params import Params
from stages.runtime import paths
from stages.tools.report.drawing import Area, Points, canvas, line, put, rule, scale_y, ticks, to_markup

#: Size of a drawing in pixels, before the page scales it.
WIDTH, HEIGHT = 340, 190
#: Training metrics: the column of each curve, and its title.
OF_TRAINING = {
    "sft": {"loss": "loss", "mean_token_accuracy": "share of right tokens"},
    "grpo": {
        "reward": "reward",
        "reward_std": "spread of the reward",
        "entropy": "entropy",
        "completions/mean_length": "tokens a reply",
        "format": "well-formed replies",
    },
}
#: Metrics of each task of a GRPO row: the part of their names before the task, and their titles.
BY_TASK = {
    "dead_groups": "share of dead groups",
    "answer_entropy": "entropy of the first answer tokens",
    "stop_after_first": "probability that an answer ends behind its first event",
    "logp_gap": "log-probability: generation against loss",
    "prompt_share": "share of prompts",
    "live_share": "share of live groups, estimated",
}
COSINE = "gradient_cosine"
#: A curve is drawn faintly as it is, and boldly as the mean over this share of its points.
SMOOTHED_OVER = 0.12

#: By row and name of a figure, its values by step.
Curves = Mapping[str, Mapping[str, Points]]


@dataclass(frozen=True)
class Held:
    """A row's held-out score of one task, in the unit of the training's reward; the interval is
    None if it is in another unit."""

    mean: float
    interval: tuple[float, float] | None


def read_curves(root: Path, kind: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Read the curves of ``reports/plots/<kind>.csv`` by row and name; a step without a measurement
    has no point."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with (root / paths.REPORTS / paths.PLOTS / f"{kind}.csv").open(encoding="utf-8") as file:
        for record in csv.DictReader(file):
            of_row = curves.setdefault(record["row"], {})
            for name, value in record.items():
                if name not in ("row", "step") and value:
                    of_row.setdefault(name, []).append((float(record["step"]), float(value)))
    return curves


def chain(params: Params) -> list[str]:
    """Rows from ``base`` to the candidate, each the next one's ``init``."""
    rows, names = params.rows, [params.candidate]
    while names[0] in rows:
        names.insert(0, rows[names[0]].init)
    return names


def held_out(tables: Mapping[str, PolicyScores], task: TaskName, params: Params) -> dict[str, Held]:
    """Score of each evaluated row in ``task``, by row."""
    scores = {}
    for row in params.evaluation.of:
        score = tables[row].tasks[task]
        if params.rewards.scale == "native":
            scores[row] = Held(score.native / 100, None)
        else:
            scores[row] = Held(score.mean, (score.low, score.high))
    return scores


def of_tasks(
    params: Params, tables: Mapping[str, PolicyScores], grpo: Curves, tasks: Sequence[TaskName]
) -> list[dict[str, Any]]:
    """Draw a chart per task: rewards in training and held-out scores, over all rows of the
    candidate's chain; their mean first.

    If rewards are in the tasks' own units, there is no mean of them.
    """
    rows = chain(params)
    drawn = []
    if params.rewards.scale == "unit":
        means = {row: Held(tables[row].mean, None) for row in params.evaluation.of}
        drawn.append({"task": "mean over tasks", "svg": _task("mean over tasks", rows, params, {}, means)})
    return drawn + [
        {"task": task, "svg": _task(task, rows, params, grpo, held_out(tables, task, params))} for task in tasks
    ]  # fmt: skip


def _task(task: str, rows: Sequence[str], params: Params, grpo: Curves, scores: Mapping[str, Held]) -> Markup:
    curves = {row: grpo.get(row, {}).get(f"reward/{task}", []) for row in rows}
    most = max([1.0, *(score.mean for score in scores.values()), *(y for points in curves.values() for _, y in points)])
    area = Area(34, WIDTH - 10, 12, HEIGHT - 26, (0, max(len(rows) - 1, 1)), (0, most))
    drawing = canvas(WIDTH, HEIGHT, f"{task}: reward in training and held-out score, row by row", "chart")
    scale_y(drawing, area)
    for number, row in enumerate(rows[1:]):
        x = area.px(number + 0.5)
        if number:
            put(drawing, "line", "stage", x1=area.px(number), x2=area.px(number), y1=area.top, y2=area.bottom)
        put(drawing, "text", "tick", row, x=x, y=HEIGHT - 8, **{"text-anchor": "middle"})
        last = params.rows[row].steps
        _curve(
            drawing,
            area,
            [(number + step / last, value) for step, value in curves[row]],
            "c0",
            f"{row}: reward in training",
        )
    ends = [(position, scores[row]) for position, row in enumerate(rows) if row in scores]
    line(drawing, area, [(position, score.mean) for position, score in ends], "held")
    for (position, score), row in zip(ends, [row for row in rows if row in scores], strict=True):
        spread = ""
        if score.interval:
            low, high = score.interval
            spread = f" [{low:.2f}, {high:.2f}]"
            put(
                drawing,
                "line",
                "whisker",
                x1=area.px(position),
                x2=area.px(position),
                y1=area.py(low),
                y2=area.py(high),
            )
        hint = f"{row}, held out: {score.mean:.3f}{spread}"
        put(drawing, "circle", "dot", hint=hint, cx=area.px(position), cy=area.py(score.mean), r=4)
    return to_markup(drawing)


def of_training(root: Path) -> list[dict[str, Any]]:
    """Draw a chart per metric of each kind of training, with a line per row over the row's own
    steps."""
    sections = []
    for kind, figures in OF_TRAINING.items():
        curves = read_curves(root, kind)
        drawn = []
        for name, called in figures.items():
            lines = {row: of_row.get(name, []) for row, of_row in curves.items()}
            if any(lines.values()):
                drawn.append({"title": called, "svg": _lines(f"{kind}: {called}", lines)})
        if drawn:
            sections.append({"kind": kind, "rows": list(curves), "figures": drawn})
    return sections


def of_each_task(grpo: Curves) -> list[dict[str, Any]]:
    """Draw what each GRPO row measured of its tasks: a chart per gauge with a line per task, and a
    chart per part of the model with a line per pair of tasks. Rows without such a measurement are
    left out."""
    sections = []
    for row, curves in grpo.items():
        gauges = {(name, ""): title for name, title in BY_TASK.items()}
        parts = {(COSINE, name.split("/")[1]): name.split("/")[1] for name in curves if name.startswith(f"{COSINE}/")}
        for title, figures in (("by task", gauges), ("cosines between gradients of tasks", parts)):
            found = {key: _by_last(curves, "/".join(filter(None, key))) for key in figures}
            names = sorted({name for lines in found.values() for name in lines})
            drawn = [
                {
                    "title": figures[key],
                    "svg": _lines(f"{row}: {figures[key]}", {name: lines.get(name, []) for name in names}),
                }
                for key, lines in found.items()
                if lines
            ]
            if drawn:
                sections.append({"title": f"{row}: {title}", "rows": names, "figures": drawn})
    return sections


def _by_last(curves: Mapping[str, Points], first: str) -> dict[str, Points]:
    """Curves whose name is ``first`` and one more part, by that part."""
    found = {name.removeprefix(f"{first}/"): points for name, points in curves.items() if name.startswith(f"{first}/")}
    return {name: points for name, points in found.items() if "/" not in name}


def _lines(label: str, lines: Mapping[str, Points]) -> Markup:
    every = [point for points in lines.values() for point in points]
    low, high = min(y for _, y in every), max(y for _, y in every)
    # The axis of a metric that starts at or near zero starts at zero.
    low = min(low, 0.0) if low < 0.5 * high else low
    area = Area(42, WIDTH - 10, 12, HEIGHT - 26, (0, max(x for x, _ in every)), (low, high if high > low else low + 1))
    drawing = canvas(WIDTH, HEIGHT, label, "chart")
    scale_y(drawing, area)
    scale_x(drawing, area)
    for number, (row, points) in enumerate(lines.items()):
        _curve(drawing, area, points, f"c{number % 6}", row)
    return to_markup(drawing)


def scale_x(drawing: Any, area: Area) -> None:
    """Add round values of the steps below a drawing."""
    for value in ticks(*area.x, 5):
        put(drawing, "text", "tick", f"{value:g}", x=area.px(value), y=HEIGHT - 8, **{"text-anchor": "middle"})


def _curve(drawing: Any, area: Area, points: Points, kind: str, hint: str) -> None:
    if points:
        line(drawing, area, points, f"{kind} raw", hint)
        line(drawing, area, smoothed(points), kind, hint)


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Smooth each value to the mean over :data:`SMOOTHED_OVER` of all points, as many before it as
    behind: the ends are unchanged."""
    most, last = round(SMOOTHED_OVER * len(points) / 2), len(points) - 1
    reaches = [min(most, i, last - i) for i in range(len(points))]
    around = [points[i - reach : i + reach + 1] for i, reach in enumerate(reaches)]
    return [(x, sum(y for _, y in near) / len(near)) for (x, _), near in zip(points, around, strict=True)]


def of_gauges(params: Params, grpo: Curves) -> list[dict[str, Any]]:
    """Draw a chart per measured gauge, over the steps of all GRPO rows one after the other, with
    its alarm level.

    Each has the gauge's value at the last measurement of the last row, and its maximum.
    """
    rows = [row for row in params.grpo if row in grpo]
    drawn = []
    for name, gauge in GAUGES.items():
        lines = {row: grpo[row][f"gauge/{name}"] for row in rows if grpo[row].get(f"gauge/{name}")}
        if not lines:
            continue
        values = [y for points in lines.values() for _, y in points]
        last_row, last = next(reversed(lines)), next(reversed(lines.values()))[-1][1]
        state = "above" if last > gauge.above else "was" if max(values) > gauge.above else "below"
        drawn.append(
            {
                "name": name,
                "means": gauge.means,
                "above": gauge.above,
                "state": state,
                "last": last,
                "most": max(values),
                "row": last_row,
                "svg": _gauge(name, gauge.above, rows, lines, params),
            }
        )
    return drawn


def _gauge(name: str, above: float, rows: Sequence[str], lines: Mapping[str, Points], params: Params) -> Markup:
    starts, total = {}, 0
    for row in rows:
        starts[row], total = total, total + params.grpo[row].steps
    values = [y for points in lines.values() for _, y in points]
    low, high = min([0.0, *values]), max([*values, above]) * 1.12
    area = Area(34, WIDTH - 10, 10, HEIGHT - 46, (0, total), (low, high))
    drawing = canvas(WIDTH, HEIGHT - 20, f"gauge {name}, alarm above {above:g}", "chart gauge")
    put(
        drawing,
        "rect",
        "alarm",
        x=area.left,
        y=area.top,
        width=area.right - area.left,
        height=area.py(above) - area.top,
    )
    scale_y(drawing, area, 3)
    rule(drawing, area, above, "mark")
    for row in rows:
        x, middle = area.px(starts[row]), area.px(starts[row] + params.grpo[row].steps / 2)
        if starts[row]:
            put(drawing, "line", "stage", x1=x, x2=x, y1=area.top, y2=area.bottom)
        put(drawing, "text", "tick", row, x=middle, y=HEIGHT - 28, **{"text-anchor": "middle"})
        points = [(starts[row] + step, value) for step, value in lines.get(row, [])]
        if len(points) > 12:
            _curve(drawing, area, points, "c0", row)
        elif points:
            line(drawing, area, points, "c0", row)
            for x_value, value in points:
                put(drawing, "circle", "dot", hint=f"{row}: {value:.3f}", cx=area.px(x_value), cy=area.py(value), r=3)
    return to_markup(drawing)
