"""Judge protocol members about requests, for judges that send none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, NoReturn, Self, TypeVar

from stages.domain.core.records import OpenQuestion, Verdict
from stages.domain.tasks.rewards import Agreement
from stages.runtime.endpoint.settings import JudgeError

Result = TypeVar("Result")


class DirectJudge:
    """Base of judges that answer locally: no usage counts, never unavailable, and no text of their
    own."""

    name: str
    usage: ClassVar[Mapping[str, int]] = {}
    last_error: ClassVar[str] = ""
    remedy: ClassVar[str] = ""

    @property
    def max_unavailable(self) -> float:
        return 0.0

    def score_many(self, score: Callable[[Self], Result]) -> Result:
        return score(self)

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
