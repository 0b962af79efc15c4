"""Scoring of many replies, with concurrent requests to the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stages.domain.core.records import Sample, Score
from stages.domain.tasks.rewards import Judge, Referee, RewardRules
from stages.domain.tasks.scoring import score_reply
from stages.runtime.endpoint.settings import JudgeError


class JudgeUnavailableError(JudgeError):
    """Too many replies have no verdict, so a result from the rest would not be reliable."""


def score_replies(
    samples: Sequence[Sample], replies: Sequence[str], referee: Referee, rules: RewardRules
) -> list[Score]:
    """Score each reply to the sample at the same position, as :func:`score_reply` does.

    Raises:
        JudgeError: the judge cannot be used with its configuration.
    """
    pairs = list(zip(samples, replies, strict=True))

    def scored(judge: Judge) -> list[Score]:
        stand_in = replace(referee, judge=judge)
        return [score_reply(sample, reply, stand_in, rules) for sample, reply in pairs]

    return referee.judge.score_many(scored)


def check_judged(judge: Judge, unjudged: int, replies: int, subject: str) -> None:
    """Raise if more of the replies lack a verdict than ``judge.max_unavailable`` allows.

    Raises:
        JudgeUnavailableError: with the share, the last error, and the remedy.
    """
    if unjudged <= judge.max_unavailable * replies:
        return
    last = judge.last_error or "none in this process"
    raise JudgeUnavailableError(
        "judge.max_unavailable",
        f"{subject}: {unjudged} of {replies} replies ({unjudged / replies:.0%}) have no verdict,"
        f" {judge.max_unavailable:.0%} are allowed",
        f"last error: {last}. Repair the endpoint at VIDBRIDGE_JUDGE_URL and"
        " run again: verdicts received so far are kept, and training resumes from its last checkpoint",
    )


def usage_of(judge: Judge, prefix: str = "judge") -> dict[str, float]:
    """Return the judge's counts so far, as metrics."""
    return {f"{prefix}/{name}": float(count) for name, count in sorted(judge.usage.items())}
