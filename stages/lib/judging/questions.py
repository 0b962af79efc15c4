"""Judges that turn each method of the protocol into a question, and concurrent requests for their
questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from stages.domain.core.records import OpenQuestion, Record, Sample, Verdict
from stages.domain.tasks.rewards import Agreement
from stages.lib.judging.direct import DirectJudge
from stages.lib.judging.examining import Asked, Matched, ShortAnswer, ask_about, ask_agrees, ask_answer
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

    def ask_about(self, reference: str) -> tuple[OpenQuestion, ...] | Verdict:
        answer = self.answer(ask_about(reference))
        if isinstance(answer, Verdict):
            return answer
        assert isinstance(answer, Asked)
        return tuple(OpenQuestion(question=one.question, answer=one.answer) for one in answer.questions)

    def answer_from(self, question: str, caption: str) -> str | Verdict:
        answer = self.answer(ask_answer(question, caption))
        if isinstance(answer, Verdict):
            return answer
        assert isinstance(answer, ShortAnswer)
        return answer.answer.strip()

    def agrees(self, question: str, reference: str, answer: str) -> Agreement | Verdict:
        verdict = self.answer(ask_agrees(question, reference, answer))
        if isinstance(verdict, Verdict):
            return verdict
        assert isinstance(verdict, Matched)
        return Agreement(verdict.right, verdict.marks)

    def _verdict(self, question: Question) -> Verdict:
        answer = self.answer(question)
        if isinstance(answer, Verdict):
            return answer
        assert isinstance(answer, Graded)
        return Verdict(outcome="scored", score=answer.worth, reason=answer.reason, judge=self.name)


class CollectingJudge(AskingJudge, DirectJudge):
    """Answers from ``answers``, and collects the others in ``missing``, which it answers with the
    form's placeholder."""

    def __init__(self, name: str, answers: Mapping[Question, Record], missing: dict[Question, None]) -> None:
        self.name = name
        self.answers = answers
        self.missing = missing

    def answer(self, question: Question) -> Record:
        if question in self.answers:
            return self.answers[question]
        self.missing[question] = None
        assert question.form.placeholder is not None
        return question.form.placeholder


Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
Collecting = TypeVar("Collecting")
Result = TypeVar("Result")


def in_rounds(
    ask: Callable[[Collection[Ask]], Mapping[Ask, Answer]],
    collecting: Callable[[Mapping[Ask, Answer], dict[Ask, None]], Collecting],
    work: Callable[[Collecting], Result],
) -> Result:
    """Return the result of ``work`` on a judge whose questions are asked in concurrent rounds.

    ``work`` runs with placeholders to collect its questions, all of them are asked at once, and so
    on until none is missing (two rounds for captions: events first, then their entailment). So
    ``work`` is called several times and must have no side effects, and the rules of the tasks stay
    plain code.

    Args:
        ask: answers many questions at once.
        collecting: builds a judge that answers from a table of answers, and collects what is
            missing in another.
    """
    answers: dict[Ask, Answer] = {}
    while True:
        missing: dict[Ask, None] = {}
        result = work(collecting(answers, missing))
        if not missing:
            return result
        answers |= ask(missing)
