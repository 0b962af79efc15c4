"""Judge protocol members about requests, for judges that send none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Self, TypeVar

Result = TypeVar("Result")


class DirectJudge:
    """Base of judges that answer locally: no usage counts, never unavailable."""

    usage: ClassVar[Mapping[str, int]] = {}
    last_error: ClassVar[str] = ""
    max_unavailable: ClassVar[float] = 0.0

    def score_many(self, score: Callable[[Self], Result]) -> Result:
        return score(self)
