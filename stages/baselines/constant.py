"""The best constant reply: the score of a policy that looks at nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from stages.domain.core.records import Sample
from stages.domain.statistics.metrics import CONSTANTS, TRIED_ON


def constant_reply(
    train: Sequence[Sample],
    reply_of: Callable[[Sample], str],
    values: Callable[[Sequence[Sample], Sequence[str]], Sequence[float | None]],
    seed: int,
) -> str:
    """Find the best single reply for one task: among the most frequent replies of training, the one that scores most on some of it.

    ``values`` scores many replies, each to the sample beside it. One that could not be judged counts neither way.
    """
    counts = Counter(reply_of(sample) for sample in train)
    candidates = [reply for reply, _ in counts.most_common(CONSTANTS)]
    judged = Random(f"{seed}/constant").sample(list(train), min(len(train), TRIED_ON))
    found = iter(values(judged * len(candidates), [reply for reply in candidates for _ in judged]))
    scored = {reply: [value for _ in judged if (value := next(found)) is not None] for reply in candidates}
    return max(candidates, key=lambda reply: (sum(scored[reply]) / max(len(scored[reply]), 1), reply))
