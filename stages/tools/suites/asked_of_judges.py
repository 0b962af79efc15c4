"""Judge methods that captioning benchmarks need and training does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from stages.domain.core.records import Verdict
from stages.domain.tasks.rewards import Judge, Result


class Agreement(NamedTuple):
    """Verdict on an answer: right or wrong, and how well it matches the true one, from 0 to 5."""

    right: bool
    marks: int


class Examiner(Judge, Protocol):
    """A judge with methods for benchmarks. Every method may return ``invalid`` or ``unavailable``
    instead."""

    def score_many(self, score: Callable[[Examiner], Result]) -> Result:
        """`Judge.score_many`, for scorings that need an examiner."""
        ...

    def extract_objects(self, text: str) -> tuple[str, ...] | Verdict:
        """List at most ten things that a caption describes as visible, each with one attribute."""
        ...

    def shows(self, seen: str, caption: str) -> Verdict:
        """Return 1 if ``caption`` says that ``seen`` is visible, else 0."""
        ...

    def answer_from(self, question: str, caption: str) -> str | Verdict:
        """Answer a question from the caption alone; empty if the caption does not answer it."""
        ...

    def agrees(self, question: str, reference: str, answer: str) -> Agreement | Verdict:
        """Judge whether ``answer`` means the same as ``reference``."""
        ...
