"""Score a model of the registry on the current evaluation, so that a champion of an earlier
evaluation can be compared. Not a DVC stage.

Run as ``python -m stages rescore NAME MODEL_FOLDER OUT``; writes ``scores.json`` and
``samples.jsonl`` (SampleScore) into the folder OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stages.domain.statistics.paired import SampleScore
from stages.evaluate.policy import evaluate_policy
from stages.lib.evaluation.held_out import evaluation_samples
from stages.lib.rows.jsonl import write_record, write_rows
from stages.params import load_params
from stages.runtime import paths


def main(*arguments: str) -> int:
    if len(arguments) != 3:
        print("usage: python -m stages rescore NAME MODEL_FOLDER OUT", file=sys.stderr)
        return 2
    name, folder, out = arguments
    params = load_params()
    # The gate compares greedy replies.
    greedy = params.model_copy(update={"evaluation": params.evaluation.model_copy(update={"sampled": None})})
    evaluation = evaluate_policy(greedy, name, Path(folder))
    table = evaluation.table
    write_record(Path(out) / paths.SCORES_FILE, table)
    samples = {sample.sample_id: sample for sample in evaluation_samples(params)}
    rows = (SampleScore.of(samples[row.sample_id], row) for row in evaluation.video)
    write_rows(Path(out) / paths.SAMPLE_SCORES_FILE, rows)
    print(f"rescore: {name}: mean {table.mean:.3f} over {len(table.tasks)} tasks, format {table.format:.3f}")
    return 0
