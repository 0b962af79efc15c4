"""Scoring many replies: whatever has to be asked for them is asked side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from stages.domain.core.records import Record, Sample, Score
from stages.domain.tasks.rewards import Judge, Referee, RewardRules
from stages.domain.tasks.scoring import score_reply
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.prompts import Coverage, Entailment, Events, Marks, Question, Rightness
from stages.lib.judging.questions import AskingJudge
from stages.runtime.endpoints import JudgeError

#: What a question counts as answered with until its answer is here; scores made with it are thrown away.
UNTIL_THEN: dict[type[Record], Record] = {
    Coverage: Coverage(reason="", score=0),
    Rightness: Rightness(reason="", right=False),
    Events: Events(events=()),
    Entailment: Entailment(reason="", entailed=False),
    Marks: Marks(reason="", marks=0),
}


Result = TypeVar("Result")


class JudgeUnavailableError(JudgeError):
    """Too many replies have no verdict for a result to rest on the others."""


class _Notes(AskingJudge):
    """Answers from what is known, and notes what is not."""

    def __init__(self, name: str, known: dict[Question, Record], until_then: Mapping[type[Record], Record]) -> None:
        self.name = name
        self.known = known
        self.until_then = until_then
        self.missing: dict[Question, None] = {}

    def answer(self, question: Question) -> Record:
        if question in self.known:
            return self.known[question]
        self.missing[question] = None
        return self.until_then[question.form.answer]


def score_replies(samples: Sequence[Sample], replies: Sequence[str], referee: Referee, rules: RewardRules) -> list[Score]:
    """The score of each reply to the sample beside it, as :func:`score_reply` gives it.

    A judge at an endpoint is asked in rounds: scoring once with stand-ins shows what there is to ask, all of that is asked at once, and
    so on until nothing is missing (two rounds: events first, then which of them are entailed). The rules of the tasks stay plain code.

    Raises:
        JudgeError: the judge cannot be used as it is set up.
    """
    pairs = list(zip(samples, replies, strict=True))

    def scored(judge: Judge) -> list[Score]:
        asked = replace(referee, judge=judge)
        return [score_reply(sample, reply, asked, rules) for sample, reply in pairs]

    if not isinstance(referee.judge, EndpointJudge):
        return scored(referee.judge)
    return in_rounds(referee.judge, scored, UNTIL_THEN)


def in_rounds(judge: EndpointJudge, work: Callable[[AskingJudge], Result], until_then: Mapping[type[Record], Record]) -> Result:
    """What ``work`` makes of the judge's answers, asked side by side. It is called until it asks nothing new, and must not change
    anything.

    Args:
        until_then: by the type of an answer, what a question counts as answered with until its answer is here.

    Raises:
        JudgeError: the judge cannot be used as it is set up.
    """
    known: dict[Question, Record] = {}
    while True:
        notes = _Notes(judge.name, known, until_then)
        result = work(notes)
        if not notes.missing:
            return result
        known |= judge.ask(notes.missing)


def check_judged(judge: Judge, unjudged: int, replies: int, what: str) -> None:
    """Refuse to go on where more of the replies lack a verdict than ``judge.max_unavailable`` allows.

    Raises:
        JudgeUnavailableError: with the share, the last error, and how to go on.
    """
    if not isinstance(judge, EndpointJudge) or unjudged <= judge.params.max_unavailable * replies:
        return
    last = judge.last_error or "none in this process"
    raise JudgeUnavailableError(
        f"judge.max_unavailable: {what}: {unjudged} of {replies} replies ({unjudged / replies:.0%}) have no verdict,"
        f" {judge.params.max_unavailable:.0%} are allowed; last error: {last}. See to the endpoint at VIDBRIDGE_JUDGE_URL and run again:"
        " verdicts that came are kept, and training resumes from its last checkpoint"
    )


def usage_of(judge: Judge, called: str = "judge") -> dict[str, float]:
    """What the judge has cost this process so far, for metrics; empty for a judge that costs nothing."""
    if not isinstance(judge, EndpointJudge):
        return {}
    return {f"{called}/{name}": float(count) for name, count in sorted(judge.usage.items())}
