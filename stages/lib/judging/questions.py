"""A judge that turns each method of the protocol into a question for somebody else."""

from __future__ import annotations

from abc import ABC, abstractmethod

from stages.domain.core.records import Record, Sample, Verdict
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
