"""Write a table of all scores with intervals, the gain of each row over its start, and curves for
``dvc metrics`` and ``dvc plots``.

Run as ``python -m stages summary``; writes ``reports``.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.domain.core.records import Score, TaskName
from stages.domain.statistics.metrics import TaskResult, recordings_shown
from stages.domain.statistics.paired import Difference, paired_difference
from stages.lib.evaluation.held_out import evaluation_samples
from stages.lib.evaluation.results import (
    TRIVIAL,
    BaselineScores,
    HistoryRow,
    PairedGain,
    PlottedScore,
    PolicyMeans,
    PolicyScores,
    RowGain,
    SummaryMetrics,
)
from stages.lib.rows.jsonl import iterate_rows, read_record, read_rows, write_json
from stages.params import Params, load_params
from stages.runtime import paths
from stages.tracking.runs.run import stage_run


def main() -> int:
    params = load_params()
    with stage_run("summary", params) as run:
        _drop_dead_rows(params)
        tables = {row: read_record(paths.scores(row) / paths.SCORES_FILE, PolicyScores) for row in params.evaluation.of}
        gains = _gains(params)
        metrics = SummaryMetrics(
            candidate=params.candidate,
            rows={
                row: PolicyMeans(
                    mean=table.mean, format=table.format, blank=table.blank_mean, shuffled=table.shuffled_mean
                )
                for row, table in tables.items()
            },
            tasks={row: {task: result.mean for task, result in table.tasks.items()} for row, table in tables.items()},
            gains=gains,
        )
        write_json(paths.REPORTS / paths.METRICS_FILE, metrics.model_dump(mode="json", exclude_none=True))
        _write_score_table(tables, paths.REPORTS / paths.PLOTS / paths.SCORES_CSV)
        _write_curves(params, paths.REPORTS / paths.PLOTS)
        run.summary({f"{row}/mean": table.mean for row, table in tables.items()})
        best = tables[params.candidate]
        print(f"summary: {params.candidate} scores {best.mean:.3f} on the {best.split} split ({best.samples} samples)")
    return 0


def _drop_dead_rows(params: Params) -> None:
    """Delete scores of rows that are no longer in params.yaml, which would end up in the table;
    DVC's cache keeps them."""
    live = {*params.evaluation.of, "baselines"}
    for folder in paths.SCORES.iterdir():
        if folder.is_dir() and folder.name not in live:
            shutil.rmtree(folder)
            print(f"summary: dropped {folder}: params.yaml has no row of that name any more (DVC's cache keeps it)")


def _gains(params: Params) -> dict[str, RowGain]:
    """Paired differences of every evaluated row to its ``init``, and of the candidate to the cold
    start."""
    recordings = recordings_shown(evaluation_samples(params))
    replies = {row: read_rows(paths.predictions_file(paths.scores(row)), Score) for row in params.evaluation.of}
    pairs = [(row, settings.init) for row, settings in params.rows.items()]
    pairs += [
        (params.candidate, row)
        for row in params.sft
        if (params.candidate, row) not in pairs and row != params.candidate
    ]
    gains: dict[str, RowGain] = {}
    for after, before in pairs:
        if after in replies and before in replies:
            mean, tasks = paired_difference(replies[after], replies[before], recordings, params.evaluation.confidence)
            by_task = {task: _gain(difference) for task, difference in tasks.items()}
            gains[f"{after} - {before}"] = RowGain(**_gain(mean).model_dump(), tasks=by_task)
    return gains


def _gain(difference: Difference) -> PairedGain:
    return PairedGain(**difference.model_dump(exclude={"before", "after"}))


def _write_score_table(tables: Mapping[str, PolicyScores], path: Path) -> None:
    baselines = read_record(paths.scores("baselines") / paths.SCORES_FILE, BaselineScores)
    results: list[tuple[str, TaskName, TaskResult]] = [
        (row, task, result) for row, table in tables.items() for task, result in table.tasks.items()
    ]
    results += [(name, task, result.of(name)) for name in TRIVIAL for task, result in baselines.tasks.items()]
    rows = [
        PlottedScore(policy=policy, task=task, mean=result.mean, low=result.low, high=result.high).model_dump()
        for policy, task, result in results
    ]
    _write_csv(path, rows, list(PlottedScore.model_fields))


def _write_curves(params: Params, folder: Path) -> None:
    """Write one CSV per kind of training: row, step, and the logged metrics of the evaluated
    rows."""
    for kind, table in (("sft", params.sft), ("grpo", params.grpo)):
        rows = [
            {"row": name, **logged.model_dump()}
            for name in table
            if name in params.evaluation.of
            for logged in iterate_rows(paths.scores(name) / paths.HISTORY_FILE, HistoryRow)
        ]
        keys = ["row", "step", *sorted({key for row in rows for key in row} - {"row", "step"})]
        _write_csv(folder / f"{kind}.csv", rows, keys)


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]], keys: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
