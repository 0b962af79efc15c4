"""Judge methods that captioning benchmarks need and training does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from stages.domain.core.records import Verdict
from stages.domain.tasks.rewards import Judge, Result


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
