"""Whether the rollouts of one prompt were paid alike: the one rule of training, dynamic sampling, gauges and the difficulty filter.

A group is compared by its rewards, before any mean or spread is taken of them: what a sum in floating point has left is no difference,
but divided by a spread that is 0 but for the same rounding it looks like one, and Adam makes a full step of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Smallest difference of two rewards that counts, as a share of the greater one where that exceeds 1. Rewards reach the trainer in single
#: precision (6e-8 of their size), and equal ones are added up in unlike orders (.1 + .2 and .3; a part less a part), each sum a few
#: roundings off; parts of rewards that are not rounding differ by 1e-3 or more (a share of ten events, a likeness of phrases).
RESOLUTION = 1e-6


def paid_alike(rewards: Sequence[float | None]) -> bool:
    """Whether nothing can be learned from comparing these: all that are known are equal, up to rounding.

    Args:
        rewards: of the rollouts of one prompt; None or NaN where no judge could say. One known reward, or none, has nothing that it could
            be compared with.
    """
    known = [reward for reward in rewards if reward is not None and not math.isnan(reward)]
    return not known or not exceeds(max(known), min(known))


def exceeds(value: float, bound: float) -> bool:
    """Whether `value` is greater than `bound` by more than rounding."""
    return value - bound > RESOLUTION * max(1.0, abs(value), abs(bound))
