"""Score one policy on held-out samples: with the video, with a black video, and with shuffled
frames.

Run as ``python -m stages evaluate ROW`` (a row of ``evaluation.of``); writes ``scores/ROW``.
"""

from __future__ import annotations

import shutil

from stages.evaluate.policy import evaluate_policy
from stages.lib.engine.process import check_engine
from stages.lib.evaluation.results import SampledScores
from stages.lib.rows.jsonl import write_record, write_rows
from stages.params import load_params
from stages.runtime import paths
from stages.runtime.dispatch import one_row
from stages.tracking.runs.run import stage_run


def main(*arguments: str) -> int:
    params = load_params()
    row = one_row("evaluate", list(arguments), list(params.evaluation.of))
    engine = check_engine()  # before a model is loaded
    with stage_run(f"evaluate@{row}", params) as run:
        run.tag({"rollout_engine": engine})
        evaluation = evaluate_policy(params, row, paths.final_model(row))
        table = evaluation.table
        write_rows(paths.predictions_file(paths.scores(row)), evaluation.video)
        write_rows(paths.predictions_file(paths.scores(row), "blank"), evaluation.blank)
        write_rows(paths.predictions_file(paths.scores(row), "shuffled"), evaluation.shuffled)
        if table.sampled is not None:
            write_rows(paths.predictions_file(paths.scores(row), "sampled"), evaluation.sampled)
        write_record(paths.scores(row) / paths.SCORES_FILE, table)
        history = paths.model(row) / paths.HISTORY_FILE
        if history.exists():  # copied, so that the summary depends on the existing rows only and not on all of models/
            shutil.copyfile(history, paths.scores(row) / paths.HISTORY_FILE)
        run.summary({"mean": table.mean, "format": table.format, **evaluation.reading})
        run.summary({"blank_mean": table.blank_mean, "shuffled_mean": table.shuffled_mean})
        run.summary(evaluation.judge_usage)
        run.summary({f"{task}/mean": result.mean for task, result in table.tasks.items()})
        run.summary(sampled_metrics(table.sampled))
        print(f"evaluate@{row}: mean {table.mean:.3f} over {len(table.tasks)} tasks, format {table.format:.3f}")
        if table.sampled is not None:
            best = ", ".join(f"pass@{k} {value:.3f}" for k, value in table.sampled.pass_at.items())
            print(f"evaluate@{row}: {table.sampled.replies} sampled replies: mean {table.sampled.mean:.3f}, {best}")
    return 0


def sampled_metrics(sampled: SampledScores | None) -> dict[str, float]:
    """Metrics of sampled replies for MLflow, whose names may not contain an ``@``; empty if there
    are none."""
    if sampled is None:
        return {}
    metrics = {"sampled/mean": sampled.mean, "sampled/spread": sampled.spread}
    metrics |= {f"sampled/pass_at_{k}": value for k, value in sampled.pass_at.items()}
    for task, result in sampled.tasks.items():
        metrics[f"{task}/sampled/mean"] = result.mean
        metrics |= {f"{task}/sampled/pass_at_{k}": interval.mean for k, interval in result.pass_at.items()}
    return metrics
