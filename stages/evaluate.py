"""Score one policy on held-out samples, again on a black video (what it says without looking), and on one out of order.

Run as ``python -m stages evaluate ROW`` (a row of ``evaluation.of``); writes ``scores/ROW``.
"""

from __future__ import annotations

import shutil

from stages import layout
from stages.entry import one_row
from stages.measuring import measure
from stages.params import load_params
from stages.rows import write_json, write_rows
from stages.tracking.runs import stage_run


def main(*arguments: str) -> int:
    params = load_params()
    row = one_row("evaluate", list(arguments), list(params.evaluation.of))
    with stage_run(f"evaluate@{row}", params) as run:
        measured = measure(params, row, layout.final_model(row))
        table = measured.table
        write_rows(layout.scores(row) / "predictions.jsonl", measured.video)
        write_rows(layout.scores(row) / "predictions_blank.jsonl", measured.blank)
        write_rows(layout.scores(row) / "predictions_shuffled.jsonl", measured.shuffled)
        write_json(layout.scores(row) / "scores.json", table)
        history = layout.model(row) / layout.HISTORY_FILE
        if history.exists():  # beside the scores, so that the summary depends on the rows that live and not on all of models/
            shutil.copyfile(history, layout.scores(row) / layout.HISTORY_FILE)
        run.summary({"mean": table["mean"], "format": table["format"], **measured.reading})
        run.summary({"blank_mean": table["blank_mean"], "shuffled_mean": table["shuffled_mean"]})
        run.summary(measured.judge_usage)
        run.summary({f"{task}/mean": result["mean"] for task, result in table["tasks"].items()})
        print(f"evaluate@{row}: mean {table['mean']:.3f} over {len(table['tasks'])} tasks, format {table['format']:.3f}")
    return 0
