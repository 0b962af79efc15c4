"""Scoring of many replies, with concurrent requests to the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stages.domain.core.records import Sample, Score, TaskName
from stages.domain.tasks.rewards import Judge, Referee, RewardRules
from stages.domain.tasks.scoring import score_reply
from stages.runtime.endpoint.settings import JudgeError


class JudgeUnavailableError(JudgeError):
    """Too many replies have no verdict, so a result from the rest would not be reliable."""


def score_replies(
    samples: Sequence[Sample], replies: Sequence[str], referee: Referee, rules: RewardRules
) -> list[Score]:
    """Score each reply to the sample at the same position, as :func:`score_reply` does, each task
    by its judge. Different judges are asked one after the other.

    Raises:
        JudgeError: the judge cannot be used with its configuration.
    """
    pairs = list(zip(samples, replies, strict=True))
    by_judge: dict[int, list[int]] = {}
    for number, sample in enumerate(samples):
        by_judge.setdefault(id(referee.of(sample.task).judge), []).append(number)
    scores: dict[int, Score] = {}
    for numbers in by_judge.values():
        of_task = referee.of(samples[numbers[0]].task)

        def scored(judge: Judge, numbers: list[int] = numbers, of_task: Referee = of_task) -> list[Score]:
            stand_in = replace(of_task, judge=judge)
            return [score_reply(*pairs[number], stand_in, rules) for number in numbers]

        scores |= zip(numbers, of_task.judge.score_many(scored), strict=True)
    return [scores[number] for number in range(len(pairs))]


def check_judged(judge: Judge, unjudged: int, replies: int, subject: str) -> None:
    """Raise if more of the replies lack a verdict than ``judge.max_unavailable`` allows.

    Raises:
        JudgeUnavailableError: with the share, the last error, and the remedy.
    """
    _check([judge], judge.max_unavailable, unjudged, replies, subject)


def check_step(referee: Referee, weights: Mapping[TaskName, float], unjudged: int, replies: int, subject: str) -> None:
    """Raise as :func:`check_judged` does, over replies to several tasks: each judge's
    ``max_unavailable`` counts in proportion to the ``weights`` of its tasks.

    Raises:
        JudgeUnavailableError: see :func:`check_judged`.
    """
    total = sum(weights.values())
    limits = {task: referee.of(task).judge.max_unavailable for task in weights}
    same = len(set(limits.values())) == 1
    allowed = limits[next(iter(limits))] if same else sum(weights[task] * limits[task] for task in weights) / total
    _check(referee.judges, allowed, unjudged, replies, subject)


def _check(judges: Sequence[Judge], allowed: float, unjudged: int, replies: int, subject: str) -> None:
    if unjudged <= allowed * replies:
        return
    failing = [judge for judge in judges if judge.last_error]
    last = "; ".join(judge.last_error for judge in failing) or "none in this process"
    remedies = [judge.remedy for judge in failing or judges if judge.remedy] or ["Repair the judge"]
    raise JudgeUnavailableError(
        "judge.max_unavailable",
        f"{subject}: {unjudged} of {replies} replies ({unjudged / replies:.0%}) have no verdict,"
        f" {allowed:.0%} are allowed",
        f"last error: {last}. {'; '.join(dict.fromkeys(remedies))} and"
        " run again: verdicts received so far are kept, and training resumes from its last checkpoint",
    )


def usage_of(judge: Judge, prefix: str = "judge") -> dict[str, float]:
    """Return the judge's counts so far, as metrics."""
    return {f"{prefix}/{name}": float(count) for name, count in sorted(judge.usage.items())}


def usages_of(referee: Referee, prefix: str = "judge") -> dict[str, float]:
    """Return the counts of each judge so far, as metrics; that of a task is named after the first
    of its tasks (``judge_caption/…``)."""
    named = {prefix: referee.judge}
    for task, judge in referee.by_task.items():
        if all(judge is not known for known in named.values()):
            named[f"{prefix}_{task}"] = judge
    return {metric: count for name, judge in named.items() for metric, count in usage_of(judge, name).items()}
