"""Best checkpoint against the last one: the recipe ``tiny``, its last row watched.

``make bench-keep`` runs it. Fixed before the first run:

**What is trained.** ``tiny`` as it is but for its row ``general``: twice the steps (:data:`STEPS`),
so that there is something to choose among, a checkpoint each :data:`EVERY` of them, and ``watch``
with ``keep: best`` on :data:`SAMPLES` validation samples a task. Watching changes no weight, so the
last checkpoint of the same training is what ``keep: last`` gives: one training a seed has both.

**What is reported**, on the 240 test samples a task that evaluation uses, greedy: the gain of the
best over the last checkpoint, paired by sample, with an interval over the clips of all seeds and a
t interval over the seeds' own gains; and by how much the validation score of the choice lies above
its test score, which is what choosing flatters. A seed that keeps its last step has a gain of 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.arms import commit_of, compare_on_seeds, gain_lines, pooled, predictions, reproduce, run
from stages.domain.core.records import Checkpoint, Score
from stages.domain.statistics.paired import SampleScore
from stages.lib.evaluation.results import PolicyScores
from stages.lib.rows.jsonl import read_json, read_record, read_rows
from stages.runtime import paths
from stages.runtime.machine import measured
from stages.tools.ablation.results import content_digests
from stages.tools.ablation.seeds import PolicyPair

ROW, STEPS, EVERY, SAMPLES = "general", 60, 5, 60
CONFIDENCE = 0.95
#: Folder in a clone with the scores of the last checkpoint.
LAST = "scores-of-last"


def seed_params(params: dict[str, Any], seed: int) -> dict[str, Any]:
    """Parameters of one seed."""
    table = json.loads(json.dumps(params))
    watch = {"every": EVERY, "samples_per_task": SAMPLES, "sampled": None, "keep": "best"}
    watch["max_new_tokens"] = table["evaluation"]["max_new_tokens"]
    table["grpo"][ROW] |= {"steps": STEPS, "save_steps": EVERY, "watch": watch}
    return {**table, "recipe": "keep-best", "seed": seed, "ablation": None}


def score_last(folder: Path) -> None:
    """Score the last checkpoint of a clone that has trained, unless it is the one that was kept."""
    checkpoints = read_rows(folder / paths.model(ROW) / paths.CHECKPOINTS_FILE, Checkpoint)
    last = max(checkpoints, key=lambda checkpoint: checkpoint.step)
    if not last.final and not (folder / LAST / paths.SCORES_FILE).is_file():
        run(folder, "stages", "rescore", "last", str(folder / paths.model(ROW) / last.path), str(folder / LAST))


def pair(folder: Path) -> PolicyPair:
    """Scores of the best and of the last checkpoint."""
    best = predictions(folder, ROW)
    file = folder / LAST / paths.SAMPLE_SCORES_FILE
    if not file.is_file():
        return PolicyPair(best, best, content_digests(folder))
    rows = read_rows(file, SampleScore)
    last = [Score(sample_id=row.sample_id, task=row.task, reply="", format_ok=True, value=row.value) for row in rows]
    return PolicyPair(best, last, content_digests(folder))


def measure(work: Path, seeds: Sequence[int]) -> dict[str, Any]:
    folders = {seed: work / str(seed) for seed in seeds}
    rows = []
    for seed, folder in folders.items():
        kept = read_json(folder / paths.model(ROW) / paths.SUMMARY_FILE)["kept"]
        best = read_record(folder / paths.scores(ROW) / paths.SCORES_FILE, PolicyScores).mean
        file = folder / LAST / paths.SCORES_FILE
        last = read_record(file, PolicyScores).mean if file.is_file() else best
        rows.append({"seed": seed, **kept, "test": best, "last_test": last})
    return {
        "measured": measured("torch", "transformers", "trl"),
        "commit": commit_of(next(iter(folders.values()))),
        "rows": rows,
        "gain": pooled([pair(folder) for folder in folders.values()], CONFIDENCE),
    }


def table(result: dict[str, Any]) -> str:
    """Format the result as two Markdown tables."""
    lines = [f"{result['measured']} Commit {result['commit'][:12]}.", ""]
    lines += ["| seed | kept step | validation, kept | test, kept | validation, last | test, last |", "|---" * 6 + "|"]
    for row in result["rows"]:
        numbers = " | ".join(f"{row[key]:.3f}" for key in ("score", "test", "last_score", "last_test"))
        lines.append(f"| {row['seed']} | {row['step']} of {row['last_step']} | {numbers} |")
    return "\n".join([*lines, "", *gain_lines("best - last", {"": result["gain"]})])


def finish(folder: Path, _: dict[str, Any]) -> None:
    reproduce(folder, "summary")
    score_last(folder)


def main() -> int:
    return compare_on_seeds(
        "benchmarks.learning.keep_best",
        __doc__,
        out="benchmarks/results/learning/keep-best.json",
        arms=lambda params, seed: {str(seed): seed_params(params, seed)},
        finish=finish,
        measure=lambda work, seeds, _: measure(work, seeds),
        table=table,
    )


if __name__ == "__main__":
    sys.exit(main())
