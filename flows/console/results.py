"""Results of a run, read back for display: the table of held-out scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from stages.domain.core.records import Record
from stages.lib.evaluation.results import TRIVIAL, BaselineScores, PolicyScores, SummaryMetrics
from stages.lib.rows.jsonl import read_record
from stages.runtime import paths

#: Columns of the table in which higher is not better: a policy's scores without its video, and with
#: its frames out of order.
CONTROLS = ("blank video", "shuffled video")

R = TypeVar("R", bound=Record)


def _baselines(root: Path) -> BaselineScores | None:
    return _if_there(root / paths.scores("baselines") / paths.SCORES_FILE, BaselineScores)


def _policies(root: Path, rows: Sequence[str]) -> dict[str, PolicyScores]:
    """Scores of ``rows`` in their order; leaves out what has not been evaluated yet."""
    found = {row: _if_there(root / paths.scores(row) / paths.SCORES_FILE, PolicyScores) for row in rows}
    return {row: table for row, table in found.items() if table is not None}


def _if_there(path: Path, kind: type[R]) -> R | None:
    return read_record(path, kind) if path.is_file() else None


def read_scores(root: Path, rows: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Map policy to its scores: ``mean``, ``format`` (share of well-formed replies), each task's
    mean and :data:`CONTROLS`, in [0, 1].

    Baselines come first, then ``rows`` (those of ``evaluation.of``) in their order; what has not
    been evaluated yet is left out. Files of other rows, which were deleted from ``params.yaml``,
    are not read.

    Raises:
        RowError: a file of scores is damaged, or was written by another version.
    """
    scores: dict[str, dict[str, float | None]] = {}
    if (baselines := _baselines(root)) is not None:
        for name in TRIVIAL:
            means = {str(task): results.of(name).mean for task, results in baselines.tasks.items()}
            scores[name] = {"mean": baselines.of(name).mean, "format": None, **means}
    for row, table in _policies(root, rows).items():
        means = {str(task): result.mean for task, result in table.tasks.items()}
        controls = dict(zip(CONTROLS, (table.blank_mean, table.shuffled_mean), strict=True))
        scores[row] = {"mean": table.mean, "format": table.format, **means, **controls}
    return scores


def evaluated_by(policy: str) -> str:
    """Name of the stage that scores a policy."""
    return "baselines" if policy in TRIVIAL else f"evaluate@{policy}"


def read_intervals(root: Path, rows: Sequence[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """Map (policy, task) to the two ends of the interval of its mean, for the scores of
    :func:`read_scores`.
    """
    found: dict[tuple[str, str], tuple[float, float]] = {}
    if (baselines := _baselines(root)) is not None:
        for task, results in baselines.tasks.items():
            found |= {(name, task): (results.of(name).low, results.of(name).high) for name in TRIVIAL}
    for row, table in _policies(root, rows).items():
        found |= {(row, task): (result.low, result.high) for task, result in table.tasks.items()}
    return found


def read_sampled(root: Path, rows: Sequence[str]) -> dict[str, PolicyScores]:
    """Scores of those of ``rows`` of which several replies were sampled."""
    return {row: table for row, table in _policies(root, rows).items() if table.sampled is not None}


def read_gains(root: Path) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Paired gains as the summary computed them: "row - start" to ``mean`` and each task's (mean,
    low, high). Leaves out the gain over ``base``: an untrained model scores 0.
    """
    metrics = _if_there(root / paths.REPORTS / paths.METRICS_FILE, SummaryMetrics)
    return {
        name: {key: (value.mean, value.low, value.high) for key, value in (("mean", gain), *gain.tasks.items())}
        for name, gain in (metrics.gains.items() if metrics is not None else ())
        if not name.endswith(" - base")
    }
