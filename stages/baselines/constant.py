"""Best constant reply: the baseline that ignores its input."""

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
    """Find the best single reply for one task: of the most frequent training replies, the one with
    the highest score on a subset.

    ``values`` scores many replies, each to the sample at the same index. Replies without a verdict
    are left out.
    """
    counts = Counter(reply_of(sample) for sample in train)
    candidates = [reply for reply, _ in counts.most_common(CONSTANTS)]
    judged = Random(f"{seed}/constant").sample(list(train), min(len(train), TRIED_ON))
    scores = iter(values(judged * len(candidates), [reply for reply in candidates for _ in judged]))
    scored = {reply: [value for _ in judged if (value := next(scores)) is not None] for reply in candidates}
    return max(candidates, key=lambda reply: (sum(scored[reply]) / max(len(scored[reply]), 1), reply))
