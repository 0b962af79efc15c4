"""Keys of a row that choose prompts by live groups and measure tasks, and rewards that leave groups
dead."""

from __future__ import annotations

from collections.abc import Sequence

MEASURED = {"gauges_every": 1, "gradients_every": 1}
CHOSEN = {
    "sampler": {"live_decay": 0.9, "least_live": 0.25},
    "resample_rounds": 1,
    "oversample": {"live_decay": 0.8, "least_live": 0.25, "max_lag": 2},
}


def partly_dead(keys: Sequence[str], replies: Sequence[str]) -> list[float | None]:
    """Half of the prompts are paid alike: a third of one task's, two thirds of the other's."""
    return [
        0.5 if (int(key[1:]) // 2) % 3 < 1 + int(key[1:]) % 2 else float(len(reply))
        for key, reply in zip(keys, replies, strict=True)
    ]
