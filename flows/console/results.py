"""What a run left behind, read back for a person: the table of held-out scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.errors import FlowError
from stages.params import load_params
from stages.runtime import paths

#: Policies that need no model; ``scores/baselines`` holds them together.
BASELINES = ("random", "constant")
#: Columns of the table that are no better for being higher: what a policy earns without its video, and with its frames out of order.
CONTROLS = {"blank video": "blank_mean", "shuffled video": "shuffled_mean"}


def _read(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FlowError(f"{path}: not JSON ({error}); delete its folder, then type: vidbridge run") from error
    return table


def read_scores(root: Path) -> dict[str, dict[str, float | None]]:
    """Policy to its scores: ``mean``, ``format`` (share of well-formed replies), each task's mean and :data:`CONTROLS`, in [0, 1].

    Baselines come first, then the rows of ``evaluation.of`` in their order; what has not been evaluated yet is left out. Rows that
    were deleted from ``params.yaml`` are not shown even if their files linger.
    """
    scores: dict[str, dict[str, float | None]] = {}
    baselines = root / paths.scores("baselines") / paths.SCORES_FILE
    if baselines.is_file():
        table = _read(baselines)
        for name in BASELINES:
            means = {task: result[name]["mean"] for task, result in table["tasks"].items()}
            scores[name] = {"mean": table[name]["mean"], "format": None, **means}
    for row in load_params(root / paths.PARAMS_FILE).evaluation.of:
        path = root / paths.scores(row) / paths.SCORES_FILE
        if path.is_file():
            table = _read(path)
            means = {task: result["mean"] for task, result in table["tasks"].items()}
            # Scores of an older version of this code may lie here until their stage runs again.
            controls = {title: table.get(key) for title, key in CONTROLS.items()}
            scores[row] = {"mean": table["mean"], "format": table["format"], **means, **controls}
    return scores


def evaluated_by(policy: str) -> str:
    """The stage that scores a policy."""
    return "baselines" if policy in BASELINES else f"evaluate@{policy}"


def read_intervals(root: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """(policy, task) to the two ends of the interval of its mean, for what :func:`read_scores` returns."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    baselines = root / paths.scores("baselines") / paths.SCORES_FILE
    if baselines.is_file():
        for task, result in _read(baselines)["tasks"].items():
            found |= {(name, task): (result[name]["low"], result[name]["high"]) for name in BASELINES}
    for row in load_params(root / paths.PARAMS_FILE).evaluation.of:
        path = root / paths.scores(row) / paths.SCORES_FILE
        if path.is_file():
            found |= {(row, task): (result["low"], result["high"]) for task, result in _read(path)["tasks"].items()}
    return found


def read_gains(root: Path) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Paired gains as the summary found them: "row - start" to ``mean`` and each task's (mean, low, high). The gain over ``base`` is
    left out: an untrained model scores 0."""
    path = root / paths.REPORTS / paths.METRICS_FILE
    if not path.is_file():
        return {}
    return {
        name: {key: (value["mean"], value["low"], value["high"]) for key, value in {"mean": gain, **gain["tasks"]}.items()}
        for name, gain in _read(path)["gains"].items()
        if not name.endswith(" - base")
    }
