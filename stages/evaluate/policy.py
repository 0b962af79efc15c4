"""Evaluation of a policy on the held-out samples: with the video, with a black one, and with
shuffled frames; several sampled replies beside the greedy one.

Used for rows of the recipe and for models of the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from stages.domain.core.frames import Frames, blank, shuffled
from stages.domain.core.prompts import sample_prompt
from stages.domain.core.records import Sample, Score
from stages.domain.statistics.metrics import (
    Shown,
    mean_over_tasks,
    pass_sizes,
    recordings_shown,
    sampled_results,
    task_results,
)
from stages.lib.engine.policy import opened_policy
from stages.lib.evaluation.held_out import evaluation_digest, evaluation_samples
from stages.lib.evaluation.results import ControlledResult, PolicyScores, SampledScores
from stages.lib.inference.generate import generate, rollouts
from stages.lib.inference.policy import Policy
from stages.lib.judging.batch import check_judged, score_replies, usages_of
from stages.lib.judging.build import referee_of
from stages.lib.models.load import use_threads
from stages.lib.models.resizing import fit_of
from stages.lib.video.open import frame_loader
from stages.params import Params, SampledParams


@dataclass(frozen=True)
class PolicyEvaluation:
    """Result of an evaluation.

    Attributes:
        table: content of ``scores.json``.
        video: score of each sample with its video.
        blank: score of each sample with a black video.
        shuffled: score of each sample with shuffled frames.
        sampled: scores of the sampled replies to each sample, sample after sample; empty if there
            are none.
        reading: counts of how frames were decoded.
        judge_usage: requests to the judge and their cost; empty for the rule judge.
    """

    table: PolicyScores
    video: list[Score]
    blank: list[Score]
    shuffled: list[Score]
    sampled: list[Score]
    reading: dict[str, float]
    judge_usage: dict[str, float]


def evaluate_policy(params: Params, name: str, model_folder: Path) -> PolicyEvaluation:
    """Score the greedy replies of the model in ``model_folder`` to every evaluation sample, and
    beside them sampled ones if ``evaluation.sampled`` asks for them. ``name`` is its name in the
    table.

    Raises:
        InputError: the split has no sample.
        ModelUnavailableError: the folder holds no model.
        EngineError: the engine that the environment names cannot be used.
        JudgeError: the judge cannot be used, or left more of a task's replies without a verdict
            than ``judge.max_unavailable``.
    """
    samples, referee = evaluation_samples(params), referee_of(params)
    loader = frame_loader(params, partial(fit_of, model_folder))
    shown_videos = [(sample.timeline, sample.sampled_frames) for sample in samples]

    def judged(label: str, shown: Sequence[Sample], replies: Sequence[str]) -> list[Score]:
        scores = score_replies(shown, replies, referee, params.rewards)
        for task in dict.fromkeys(score.task for score in scores):
            values = [score.value for score in scores if score.task == task]
            check_judged(referee.of(task).judge, values.count(None), len(values), f"{label}, {task}")
        return scores

    def scored(policy: Policy, label: str, change: Callable[[Sample, Frames], Frames]) -> list[Score]:
        # Functions, not frames, so that only one batch of frames is in memory.
        items = [
            (sample_prompt(sample, params.prompt), partial(lambda s: change(s, loader.load(s)), sample))
            for sample in samples
        ]
        with tqdm(total=len(items), desc=label, unit="reply", mininterval=1) as bar:
            replies = generate(
                policy,
                items,
                max_new_tokens=params.evaluation.max_new_tokens,
                batch_size=params.evaluation.batch_size,
                progress=bar.update,  # type: ignore[arg-type]
                videos=shown_videos,
            )
        return judged(label, samples, replies)

    def scored_sampled(policy: Policy, label: str, sampled: SampledParams) -> list[Score]:
        with tqdm(total=len(samples), desc=label, unit="sample", mininterval=1) as bar:
            groups = rollouts(
                policy,
                [(sample_prompt(sample, params.prompt), partial(loader.load, sample)) for sample in samples],
                [f"{params.seed}/sampled/{sample.sample_id}" for sample in samples],
                count=sampled.replies,
                max_new_tokens=params.evaluation.max_new_tokens,
                temperature=sampled.temperature,
                batch_size=max(1, params.evaluation.batch_size // sampled.replies),
                progress=bar.update,  # type: ignore[arg-type]
                videos=shown_videos,
            )
        shown = [sample for sample in samples for _ in range(sampled.replies)]
        return judged(label, shown, [reply for group in groups for reply in group])

    use_threads()
    drawn = params.evaluation.sampled
    with opened_policy(model_folder, params.model.precision, stage=f"evaluate@{name}") as policy:
        video = scored(policy, name, lambda _, frames: frames)
        black = scored(policy, f"{name} (blank video)", lambda _, frames: blank(frames))
        # The frames of a sample are shuffled the same way for every policy, so that policies are
        # compared on the same videos.
        mixed = scored(
            policy,
            f"{name} (shuffled video)",
            lambda sample, frames: shuffled(frames, f"{params.seed}/{sample.sample_id}"),
        )
        several = [] if drawn is None else scored_sampled(policy, f"{name} (sampled)", drawn)
    table = result_table(params, name, samples, video, black, mixed, several)
    return PolicyEvaluation(table, video, black, mixed, several, loader.counts(), usages_of(referee))


def result_table(
    params: Params,
    row: str,
    samples: Sequence[Sample],
    video: Sequence[Score],
    blank: Sequence[Score],
    shuffled: Sequence[Score],
    sampled: Sequence[Score],
) -> PolicyScores:
    """Build the table of means by task with their intervals, and of the means on black and shuffled
    videos, and of sampled replies if there are any."""
    recordings, confidence = recordings_shown(samples), params.evaluation.confidence
    results, black, mixed = (task_results(scores, recordings, confidence) for scores in (video, blank, shuffled))
    return PolicyScores(
        row=row,
        digest=evaluation_digest(params, samples),
        split=params.evaluation.split,
        samples=len(samples),
        mean=mean_over_tasks(results),
        blank_mean=mean_over_tasks(black),
        shuffled_mean=mean_over_tasks(mixed),
        format=sum(score.format_ok for score in video) / len(video),
        tasks={
            task: ControlledResult(
                **result.model_dump(),
                blank=black[task].mean,
                shuffled=mixed[task].mean,
                blank_high=black[task].high,
                shuffled_high=mixed[task].high,
            )
            for task, result in results.items()
        },
        sampled=_sampled_scores(params.evaluation.sampled, sampled, recordings, confidence),
    )


def _sampled_scores(
    settings: SampledParams | None, scores: Sequence[Score], recordings: Shown, confidence: float
) -> SampledScores | None:
    if settings is None:
        return None
    results = sampled_results(scores, settings.replies, recordings, confidence)
    shared = [k for k in pass_sizes(settings.replies) if all(k in result.pass_at for result in results.values())]
    return SampledScores(
        replies=settings.replies,
        temperature=settings.temperature,
        mean=fmean(result.mean for result in results.values()),
        spread=fmean(result.spread for result in results.values()),
        pass_at={k: fmean(result.pass_at[k].mean for result in results.values()) for k in shared},
        tasks=results,
    )
