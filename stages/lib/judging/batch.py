"""Scoring many replies: whatever has to be asked for them is asked side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stages.domain.core.records import Sample, Score
from stages.domain.tasks.rewards import Judge, Referee, RewardRules
from stages.domain.tasks.scoring import score_reply
from stages.runtime.endpoints import JudgeError


class JudgeUnavailableError(JudgeError):
    """Too many replies have no verdict for a result to rest on the others."""


def score_replies(samples: Sequence[Sample], replies: Sequence[str], referee: Referee, rules: RewardRules) -> list[Score]:
    """The score of each reply to the sample beside it, as :func:`score_reply` gives it.

    Raises:
        JudgeError: the judge cannot be used as it is set up.
    """
    pairs = list(zip(samples, replies, strict=True))

    def scored(judge: Judge) -> list[Score]:
        asked = replace(referee, judge=judge)
        return [score_reply(sample, reply, asked, rules) for sample, reply in pairs]

    return referee.judge.score_many(scored)


def check_judged(judge: Judge, unjudged: int, replies: int, what: str) -> None:
    """Refuse to go on where more of the replies lack a verdict than ``judge.max_unavailable`` allows.

    Raises:
        JudgeUnavailableError: with the share, the last error, and how to go on.
    """
    if unjudged <= judge.max_unavailable * replies:
        return
    last = judge.last_error or "none in this process"
    raise JudgeUnavailableError(
        f"judge.max_unavailable: {what}: {unjudged} of {replies} replies ({unjudged / replies:.0%}) have no verdict,"
        f" {judge.max_unavailable:.0%} are allowed; last error: {last}. See to the endpoint at VIDBRIDGE_JUDGE_URL and run again:"
        " verdicts that came are kept, and training resumes from its last checkpoint"
    )


def usage_of(judge: Judge, called: str = "judge") -> dict[str, float]:
    """The judge's counts so far, for metrics."""
    return {f"{called}/{name}": float(count) for name, count in sorted(judge.usage.items())}
