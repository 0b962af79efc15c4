"""What captioning benchmarks ask of a judge, and training never asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from stages.domain.core.records import Verdict
from stages.domain.tasks.rewards import Judge, Result


class Agreement(NamedTuple):
    """Whether an answer is right, and how well it matches the true one, from 0 to 5."""

    right: bool
    marks: int


class Examiner(Judge, Protocol):
    """Every method may say ``invalid`` or ``unavailable`` instead."""

    def score_many(self, score: Callable[[Examiner], Result]) -> Result:
        """The same as a judge's, for what needs an examiner."""
        ...

    def extract_objects(self, text: str) -> tuple[str, ...] | Verdict:
        """At most ten things that a caption says are seen, each with one attribute."""
        ...

    def shows(self, seen: str, caption: str) -> Verdict:
        """1 when ``caption`` says that this is seen, else 0."""
        ...

    def answer_from(self, question: str, caption: str) -> str | Verdict:
        """The answer that the caption alone gives; empty when it gives none."""
        ...

    def agrees(self, question: str, reference: str, answer: str) -> Agreement | Verdict:
        """Whether ``answer`` means what ``reference`` means."""
        ...
