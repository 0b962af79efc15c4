"""Judges that turn each method of the protocol into a question for somebody else, and how their questions are asked side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from stages.domain.core.records import Record, Sample, Verdict
from stages.lib.judging.direct import DirectJudge
from stages.lib.judging.prompts import (
    Events,
    Question,
    Said,
    ask_complete,
    ask_covers,
    ask_entailed,
    ask_events,
    ask_natural,
    ask_right,
)


class AskingJudge(ABC):
    """``answer`` gives what came for a question, or a verdict that says why nothing readable did."""

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

    def natural(self, sample: Sample, caption: str) -> Verdict:  # noqa: ARG002 - the protocol's; a reader needs no reference to tell
        return self._verdict(ask_natural(caption))

    def _verdict(self, question: Question) -> Verdict:
        answer = self.answer(question)
        if isinstance(answer, Verdict):
            return answer
        assert isinstance(answer, Said)
        return Verdict(outcome="scored", score=answer.worth, reason=answer.reason, judge=self.name)


class NotingJudge(AskingJudge, DirectJudge):
    """Answers from what is known, and notes what is not, which it answers with the form's placeholder."""

    def __init__(self, name: str, known: Mapping[Question, Record]) -> None:
        self.name = name
        self.known = known
        self.missing: dict[Question, None] = {}

    def answer(self, question: Question) -> Record:
        if question in self.known:
            return self.known[question]
        self.missing[question] = None
        assert question.form.placeholder is not None
        return question.form.placeholder


Noting = TypeVar("Noting", bound=NotingJudge)
Result = TypeVar("Result")


def in_rounds(
    ask: Callable[[Collection[Question]], Mapping[Question, Record]],
    noting: Callable[[Mapping[Question, Record]], Noting],
    work: Callable[[Noting], Result],
) -> Result:
    """The result of ``work`` on the answers of a judge, asked side by side. It is called until it asks nothing new, and must not change
    anything.

    Working once with placeholders shows what there is to ask, all of that is asked at once, and so on until nothing is missing (of
    captions two rounds: events first, then which of them are entailed). The rules of the tasks stay plain code.

    Args:
        ask: answers many questions at once.
        noting: makes a judge that answers from what is known.
    """
    known: dict[Question, Record] = {}
    while True:
        notes = noting(known)
        result = work(notes)
        if not notes.missing:
            return result
        known |= ask(notes.missing)
