"""Score baselines without a model: a random training reply, and the best constant reply. Every
table lists them beside the policies.

Run as ``python -m stages baselines``; writes ``scores/baselines``.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tqdm import tqdm

from stages.baselines.constant import constant_reply
from stages.domain.core.records import Sample, Score, TaskName
from stages.domain.core.replies import render_reply
from stages.domain.statistics.metrics import mean_over_tasks, recordings_shown, task_results
from stages.lib.evaluation.held_out import evaluation_digest, evaluation_samples
from stages.lib.evaluation.results import BaselineScores, Mean, Trivial, TrivialResults
from stages.lib.judging.batch import check_judged, score_replies, usage_of
from stages.lib.judging.build import referee_of
from stages.lib.rows.jsonl import write_record, write_rows
from stages.lib.rows.samples import load_samples
from stages.params import load_params
from stages.runtime import paths
from stages.tracking.runs.run import stage_run


def reply_of(sample: Sample) -> str:
    """Render a well-formed reply that is right for this sample."""
    return render_reply(sample.trace.thinking if sample.trace else sample.reference, sample.reference)


def main() -> int:
    params = load_params()
    with stage_run("baselines", params) as run:
        samples, referee = evaluation_samples(params), referee_of(params)
        by_task: dict[TaskName, list[Sample]] = {}
        for sample in samples:
            by_task.setdefault(sample.task, []).append(sample)

        def scored(samples: Sequence[Sample], replies: Sequence[str]) -> list[Score]:
            results = score_replies(samples, replies, referee, params.rewards)
            check_judged(referee.judge, [score.value for score in results].count(None), len(results), "baselines")
            return results

        scores: dict[Trivial, list[Score]] = {"random": [], "constant": []}
        constants: dict[TaskName, str] = {}
        for task, task_samples in tqdm(by_task.items(), desc="baselines", unit="task"):
            train = load_samples("train", [task])
            constants[task] = constant_reply(
                train, reply_of, lambda chosen, replies: [score.value for score in scored(chosen, replies)], params.seed
            )
            drawn = [
                reply_of(Random(f"{params.seed}/random/{sample.sample_id}").choice(train)) for sample in task_samples
            ]
            scores["random"] += scored(task_samples, drawn)
            scores["constant"] += scored(task_samples, [constants[task]] * len(task_samples))
        recordings, confidence = recordings_shown(samples), params.evaluation.confidence
        results = {name: task_results(rows, recordings, confidence) for name, rows in scores.items()}
        write_rows(paths.predictions_file(paths.scores("baselines"), "random"), scores["random"])
        write_rows(paths.predictions_file(paths.scores("baselines"), "constant"), scores["constant"])
        means = {str(name): mean_over_tasks(result) for name, result in results.items()}
        table = BaselineScores(
            digest=evaluation_digest(params, samples),
            split=params.evaluation.split,
            random=Mean(mean=means["random"]),
            constant=Mean(mean=means["constant"]),
            constant_replies=constants,
            tasks={
                task: TrivialResults(random=results["random"][task], constant=results["constant"][task])
                for task in by_task
            },
        )
        write_record(paths.scores("baselines") / paths.SCORES_FILE, table)
        run.summary({**means, **usage_of(referee.judge)})
        print(
            f"baselines: random {means['random']:.3f}, constant {means['constant']:.3f}, mean over {len(by_task)} tasks"
        )
    return 0
