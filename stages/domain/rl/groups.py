"""Equality of the rewards of one group: one rule for training, dynamic sampling, gauges and the
difficulty filter.

Rewards are compared before any mean or standard deviation is computed. A rounding error is not a
difference, but divided by a standard deviation that is itself a rounding error it looks like one,
and Adam makes a full step of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Smallest difference of two rewards that counts; relative to the greater one if that exceeds 1.
#: Rewards reach the trainer in single precision (relative error 6e-8), and equal rewards may be
#: summed in different orders (.1 + .2 and .3), each sum a few rounding errors off. Real differences
#: are 1e-3 or more (a share of ten events, a similarity of phrases).
RESOLUTION = 1e-6


def paid_alike(rewards: Sequence[float | None]) -> bool:
    """True if all rewards that are available are equal up to rounding, so that comparing them
    teaches nothing.

    Args:
        rewards: of the rollouts of one prompt; None or NaN: not judged. With one available reward,
            or none, the result is True.
    """
    available = [reward for reward in rewards if reward is not None and not math.isnan(reward)]
    return not available or not exceeds(max(available), min(available))


def exceeds(value: float, bound: float) -> bool:
    """True if ``value`` is greater than ``bound`` by more than rounding."""
    return value - bound > RESOLUTION * max(1.0, abs(value), abs(bound))
