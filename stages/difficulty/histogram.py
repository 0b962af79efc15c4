"""Histogram of a difficulty row: scores of each task's samples under the policy, kept and
dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.domain.rl.difficulty import Rolled

_BINS = 20
_KEPT, _DROPPED = "#1769aa", "#d9822b"


def draw_histogram(rolled: Sequence[Rolled], path: Path) -> None:
    """Write a PNG with one panel per task: samples by the mean score of their rollouts, the dropped
    ones on top. Unjudged rollouts are left out.

    Raises:
        ValueError: no rows.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row.task for row in rolled))
    if not tasks:
        raise ValueError(f"rolled: none for {path}; a histogram needs at least one sample")
    figure = Figure(figsize=(3.4 * len(tasks) + 0.4, 3.0), dpi=110, layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        means: dict[bool, list[float]] = {True: [], False: []}
        for row in rolled:
            judged = [score for score in row.scores if score is not None]
            if row.task == task and judged:
                means[row.kept].append(float(np.mean(judged)))
        # With the scoring `paper`, hedging may take a caption below 0.
        limits = (0.0, 1.0, *means[True], *means[False])
        edges = np.linspace(min(limits), max(limits), _BINS + 1)
        labels = [f"kept ({len(means[True])})", f"dropped ({len(means[False])})"]
        axis.hist([means[True], means[False]], edges, stacked=True, color=[_KEPT, _DROPPED], label=labels)
        axis.set(title=task.replace("_", " "), xlabel="mean score of the rollouts", ylabel="samples")
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
