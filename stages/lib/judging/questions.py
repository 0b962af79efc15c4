"""Judges that turn each method of the protocol into a question, and concurrent requests for their
questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from stages.domain.core.records import Record, Sample, Verdict
from stages.lib.judging.direct import DirectJudge
from stages.lib.judging.prompts import (
    Events,
    Graded,
    Question,
    ask_complete,
    ask_covers,
    ask_entailed,
    ask_events,
    ask_natural,
    ask_right,
)


class AskingJudge(ABC):
    """Judge that asks questions. ``answer`` returns the answer, or a verdict with the reason why
    there is none."""

    name: str

    @abstractmethod
    def answer(self, question: Question) -> Record: ...

    def covers(self, sample: Sample, answer: str) -> Verdict:
        return self._verdict(ask_covers(sample, answer))

    def right(self, sample: Sample, answer: str) -> Verdict:
        return self._verdict(ask_right(sample, answer))

    def extract_events(self, text: str) -> tuple[str, ...] | Verdict:
        answer = self.answer(ask_events(text))
        if isinstance(answer, Verdict):
            return answer
        assert isinstance(answer, Events)
        return answer.events

    def entailed(self, event: str, caption: str) -> Verdict:
        return self._verdict(ask_entailed(event, caption))

    def complete(self, sample: Sample, caption: str) -> Verdict:
        return self._verdict(ask_complete(sample, caption))

    def natural(self, sample: Sample, caption: str) -> Verdict:  # noqa: ARG002 - the protocol's signature
        return self._verdict(ask_natural(caption))

    def _verdict(self, question: Question) -> Verdict:
        answer = self.answer(question)
        if isinstance(answer, Verdict):
            return answer
        assert isinstance(answer, Graded)
        return Verdict(outcome="scored", score=answer.worth, reason=answer.reason, judge=self.name)


class CollectingJudge(AskingJudge, DirectJudge):
    """Answers from ``answers``, and collects the missing questions, which it answers with the
    form's placeholder."""

    def __init__(self, name: str, answers: Mapping[Question, Record]) -> None:
        self.name = name
        self.answers = answers
        self.missing: dict[Question, None] = {}

    def answer(self, question: Question) -> Record:
        if question in self.answers:
            return self.answers[question]
        self.missing[question] = None
        assert question.form.placeholder is not None
        return question.form.placeholder


Collecting = TypeVar("Collecting", bound=CollectingJudge)
Result = TypeVar("Result")


def in_rounds(
    ask: Callable[[Collection[Question]], Mapping[Question, Record]],
    collecting: Callable[[Mapping[Question, Record]], Collecting],
    work: Callable[[Collecting], Result],
) -> Result:
    """Return the result of ``work`` on a judge whose questions are asked in concurrent rounds.

    ``work`` runs with placeholders to collect its questions, all of them are asked at once, and so
    on until none is missing (two rounds for captions: events first, then their entailment). So
    ``work`` is called several times and must have no side effects, and the rules of the tasks stay
    plain code.

    Args:
        ask: answers many questions at once.
        collecting: builds a judge that answers from a table of answers.
    """
    answers: dict[Question, Record] = {}
    while True:
        judge = collecting(answers)
        result = work(judge)
        if not judge.missing:
            return result
        answers |= ask(judge.missing)
