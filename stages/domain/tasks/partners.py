"""The clips of a split on a hash ring, among which a task that mixes two of them looks for the other one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.domain.core.records import Clip


class Partner(NamedTuple):
    """What has to be known of a clip to mix it with another; small, so that those of a hundred thousand clips can be looked through.

    ``named``: what its subjects look like, words that a question may name a clip by.
    """

    clip_id: str
    source_id: str
    label: str | None
    named: frozenset[str]
    frames: int
    rate: Fraction


def as_partner(clip: Clip) -> Partner:
    named = frozenset(word for subject in clip.subjects for word in subject.attributes)
    return Partner(clip.clip_id, clip.source_id, clip.label, named, clip.frames, clip.rate)


class Ring:
    """The clips of one split on a hash ring, so that a new clip changes the partners of a few others only.

    Args:
        points: :func:`ring_point` of each clip's id, int64 [clips].
        partner: looks up the clip of that number.
    """

    def __init__(self, points: npt.NDArray[np.int64], partner: Callable[[int], Partner]) -> None:
        self._order = np.argsort(points, kind="stable")
        self._points = points[self._order]
        self._partner = partner

    def walk(self, key: str) -> Iterator[Partner]:
        """Every clip once, from the point of ``key`` onwards."""
        start = int(np.searchsorted(self._points, ring_point(key), side="right"))
        for offset in range(len(self._order)):
            yield self._partner(int(self._order[(start + offset) % len(self._order)]))


def ring_of(clips: Sequence[Clip]) -> Ring:
    """The ring of clips that are in memory."""
    return Ring(np.array([ring_point(clip.clip_id) for clip in clips], dtype=np.int64), lambda n: as_partner(clips[n]))


def ring_point(key: str) -> int:
    """Where on the hash ring a clip, or a search, stands: 63 bits that nothing but the key decides."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
