"""Hash ring of the clips of a split, in which a task that mixes two clips searches the second
one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.domain.core.records import Clip


class Partner(NamedTuple):
    """The facts about a clip that mixing needs; small, so that a hundred thousand of them can be
    searched.

    ``named``: attributes of its subjects, words by which a question may name the clip; ``path`` and
    ``first``: its file, and the number of its first frame there; ``one_shot``: it is known to be
    one.
    """

    clip_id: str
    source_id: str
    label: str | None
    named: frozenset[str]
    frames: int
    rate: Fraction
    path: str
    first: int
    one_shot: bool

    def overlaps(self, other: Partner) -> bool:
        """True if both show some frame of one file."""
        apart = self.first + self.frames <= other.first or other.first + other.frames <= self.first
        return self.path == other.path and not apart


def as_partner(clip: Clip) -> Partner:
    named = frozenset(word for subject in clip.subjects for word in subject.attributes)
    first = clip.first_frame
    return Partner(
        clip.clip_id, clip.source_id, clip.label, named, clip.frames, clip.rate, clip.path, first, clip.shots == ()
    )


class Ring:
    """Hash ring of the clips of one split: a new clip changes the partners of only a few others.

    Args:
        points: :func:`ring_point` of each clip's id, int64 [clips].
        partner: looks up a clip by its index in ``points``.
    """

    def __init__(self, points: npt.NDArray[np.int64], partner: Callable[[int], Partner]) -> None:
        self._order = np.argsort(points, kind="stable")
        self._points = points[self._order]
        self._partner = partner

    def walk(self, key: str) -> Iterator[Partner]:
        """Iterate over every clip once, from the point of ``key`` onwards."""
        start = int(np.searchsorted(self._points, ring_point(key), side="right"))
        for offset in range(len(self._order)):
            yield self._partner(int(self._order[(start + offset) % len(self._order)]))


def ring_of(clips: Sequence[Clip]) -> Ring:
    """Build the ring of clips in memory."""
    return Ring(np.array([ring_point(clip.clip_id) for clip in clips], dtype=np.int64), lambda n: as_partner(clips[n]))


def ring_point(key: str) -> int:
    """Position of a clip, or of a search, on the hash ring: 63 bits that depend on the key
    alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
