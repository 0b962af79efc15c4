"""Numbers from the seeds of replies, which are texts.

The rollout engine's server imports this, too: the standard library only.
"""

from __future__ import annotations

import hashlib


def seed_number(seed: str) -> int:
    """Convert the seed of a reply to a number of 63 bits."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
