"""One table of all scores with intervals, the gain of each row over its start, and curves for ``dvc metrics`` and ``dvc plots``.

Run as ``python -m stages summary``; writes ``reports``.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

from stages.domain.core.records import Score
from stages.domain.statistics.metrics import clips_shown
from stages.domain.statistics.paired import Difference, paired_difference
from stages.lib.evaluation.held_out import evaluation_samples
from stages.lib.rows.jsonl import read_json, read_rows, write_json
from stages.params import Params, load_params
from stages.runtime import paths
from stages.tracking.runs.run import stage_run


def main() -> int:
    params = load_params()
    with stage_run("summary", params) as run:
        _drop_dead_rows(params)
        tables = {row: read_table(row) for row in params.evaluation.of}
        gains = _gains(params)
        metrics = {
            "candidate": params.candidate,
            "rows": {
                row: {"mean": t["mean"], "format": t["format"], "blank": t["blank_mean"], "shuffled": t["shuffled_mean"]}
                for row, t in tables.items()
            },
            "tasks": {row: {task: r["mean"] for task, r in t["tasks"].items()} for row, t in tables.items()},
            "gains": gains,
        }
        write_json(paths.REPORTS / paths.METRICS_FILE, metrics)
        _write_score_table(tables, paths.REPORTS / paths.PLOTS / paths.SCORES_CSV)
        _write_curves(params, paths.REPORTS / paths.PLOTS)
        run.summary({f"{row}/mean": table["mean"] for row, table in tables.items()})
        best = tables[params.candidate]
        print(f"summary: {params.candidate} scores {best['mean']:.3f} on the {best['split']} split ({best['samples']} samples)")
    return 0


def read_table(row: str) -> dict[str, Any]:
    table: dict[str, Any] = read_json(paths.scores(row) / paths.SCORES_FILE)
    return table


def _drop_dead_rows(params: Params) -> None:
    """Scores of rows that were deleted from params.yaml stay in DVC's cache; in the work tree they would end up in the table."""
    live = {*params.evaluation.of, "baselines"}
    for folder in paths.SCORES.iterdir():
        if folder.is_dir() and folder.name not in live:
            shutil.rmtree(folder)
            print(f"summary: dropped {folder}: no row of params.yaml has that name any more (DVC's cache keeps it)")


def _gains(params: Params) -> dict[str, Any]:
    """Paired difference of every evaluated row to its ``init``, and of the candidate to the cold start."""
    shown = clips_shown(evaluation_samples(params))
    replies = {row: read_rows(paths.predictions_file(paths.scores(row)), Score) for row in params.evaluation.of}
    pairs = [(row, settings.init) for row, settings in params.rows.items()]
    pairs += [(params.candidate, row) for row in params.sft if (params.candidate, row) not in pairs and row != params.candidate]
    gains: dict[str, Any] = {}
    for after, before in pairs:
        if after in replies and before in replies:
            mean, tasks = paired_difference(replies[after], replies[before], shown, params.evaluation.confidence)
            gains[f"{after} - {before}"] = {**_gain(mean), "tasks": {task: _gain(found) for task, found in tasks.items()}}
    return gains


def _gain(found: Difference) -> dict[str, Any]:
    return found.model_dump(exclude={"before", "after"}, exclude_none=True)


def _write_score_table(tables: dict[str, dict[str, Any]], path: Path) -> None:
    baselines = read_table("baselines")
    rows = [
        {"policy": row, "task": task, **{key: f"{result[key]:.4f}" for key in ("mean", "low", "high")}}
        for row, table in tables.items()
        for task, result in table["tasks"].items()
    ]
    rows += [
        {"policy": name, "task": task, **{key: f"{result[name][key]:.4f}" for key in ("mean", "low", "high")}}
        for name in ("random", "constant")
        for task, result in baselines["tasks"].items()
    ]
    _write_csv(path, rows, ["policy", "task", "mean", "low", "high"])


def _write_curves(params: Params, folder: Path) -> None:
    """One CSV a kind of training: row, step, and the metrics that were logged there (rows that are evaluated)."""
    for kind, table in (("sft", params.sft), ("grpo", params.grpo)):
        rows = []
        for name in table:
            path = paths.scores(name) / paths.HISTORY_FILE
            if name not in params.evaluation.of:
                continue
            rows += [{"row": name, **json.loads(line)} for line in path.read_text(encoding="utf-8").splitlines()]
        keys = ["row", "step", *sorted({key for row in rows for key in row} - {"row", "step"})]
        _write_csv(folder / f"{kind}.csv", rows, keys)


def _write_csv(path: Path, rows: list[dict[str, Any]], keys: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
