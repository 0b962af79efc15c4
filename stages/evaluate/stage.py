"""Score one policy on held-out samples: with the video, with a black video, and with shuffled
frames.

Run as ``python -m stages evaluate ROW`` (a row of ``evaluation.of``); writes ``scores/ROW``.
"""

from __future__ import annotations

import shutil

from stages.evaluate.policy import evaluate_policy
from stages.lib.rows.jsonl import write_record, write_rows
from stages.params import load_params
from stages.runtime import paths
from stages.runtime.dispatch import one_row
from stages.tracking.runs.run import stage_run


def main(*arguments: str) -> int:
    params = load_params()
    row = one_row("evaluate", list(arguments), list(params.evaluation.of))
    with stage_run(f"evaluate@{row}", params) as run:
        evaluation = evaluate_policy(params, row, paths.final_model(row))
        table = evaluation.table
        write_rows(paths.predictions_file(paths.scores(row)), evaluation.video)
        write_rows(paths.predictions_file(paths.scores(row), "blank"), evaluation.blank)
        write_rows(paths.predictions_file(paths.scores(row), "shuffled"), evaluation.shuffled)
        write_record(paths.scores(row) / paths.SCORES_FILE, table)
        history = paths.model(row) / paths.HISTORY_FILE
        if history.exists():  # copied, so that the summary depends on the existing rows only and not on all of models/
            shutil.copyfile(history, paths.scores(row) / paths.HISTORY_FILE)
        run.summary({"mean": table.mean, "format": table.format, **evaluation.reading})
        run.summary({"blank_mean": table.blank_mean, "shuffled_mean": table.shuffled_mean})
        run.summary(evaluation.judge_usage)
        run.summary({f"{task}/mean": result.mean for task, result in table.tasks.items()})
        print(f"evaluate@{row}: mean {table.mean:.3f} over {len(table.tasks)} tasks, format {table.format:.3f}")
    return 0
