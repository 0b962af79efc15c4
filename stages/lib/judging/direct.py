"""Parts of judges that send no requests: protocol members about requests, and their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NoReturn, Self, TypeVar

from stages.domain.core.records import OpenQuestion, Verdict
from stages.domain.tasks.rewards import Agreement
from stages.runtime.endpoint.settings import JudgeError

Result = TypeVar("Result")


class DirectJudge:
    """Base of judges that answer locally: they write no text of their own, and unless a subclass
    says otherwise they count no usage and lack no verdict."""

    name: str
    usage: ClassVar[Mapping[str, int]] = {}
    last_error: ClassVar[str] = ""
    remedy: ClassVar[str] = ""

    @property
    def max_unavailable(self) -> float:
        return 0.0

    def score_many(self, score: Callable[[Self], Result]) -> Result:
        return score(self)

    def _scored(self, score: float, reason: str) -> Verdict:
        return Verdict(outcome="scored", score=score, reason=reason, judge=self.name)

    def _told(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Grade the share of events that have grade 1; the first verdict without a grade if there
        is one."""
        told = 0.0
        for verdict in verdicts:
            if verdict.score is None:
                return verdict
            told += verdict.score
        return self._scored(told / len(verdicts) if verdicts else 0.0, f"{told:.0f} of {len(verdicts)} events")

    def ask_about(self, reference: str) -> tuple[OpenQuestion, ...] | Verdict:  # noqa: ARG002 - the protocol's signature
        self._refuse()

    def answer_from(self, question: str, caption: str) -> str | Verdict:  # noqa: ARG002
        self._refuse()

    def agrees(self, question: str, reference: str, answer: str) -> Agreement | Verdict:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise JudgeError(
            "rewards.caption_scorer",
            f"'qa_utility' needs a judge that asks and answers, which {self.name!r} does not",
            "name a model at an endpoint for these tasks (judge.kind: openai), or another caption_scorer",
        )
