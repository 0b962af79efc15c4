"""The part of a judge's protocol that is about asking somebody else, for judges that ask nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Self, TypeVar

Result = TypeVar("Result")


class DirectJudge:
    """Base of judges that answer at once: nothing is counted, and nothing can be unavailable."""

    usage: ClassVar[Mapping[str, int]] = {}
    last_error: ClassVar[str] = ""
    max_unavailable: ClassVar[float] = 0.0

    def score_many(self, score: Callable[[Self], Result]) -> Result:
        return score(self)
