"""Near-duplicates: clips that show the same, encoded, scaled, brightened or trimmed otherwise.

Two clips of about one length are compared at eight places. They are near-duplicates if their
perceptual hashes differ by few bits and their colours by little; the latter tells apart what moves
alike in other colours. docs/guides/curation.md holds the measurements behind the thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.domain.core.records import Clip, Record, Reject, Split
from stages.ingest.curation.viewing import FLAT, Pictures

#: Places of a clip that are compared, evenly over its length, and the fewest at which both clips
#: have contrast.
PLACES, FEWEST = 8, 3
#: Largest mean difference of the hashes of near-duplicates, of 63 bits, and largest difference of
#: the mean colours of one sixteenth of a picture, of 255 levels.
MAX_BITS, MAX_COLOUR = 6.0, 20
#: Largest ratio of the lengths of two near-duplicates.
MAX_RATIO = 1.1

Numbers = npt.NDArray[np.int64]


class Band(NamedTuple):
    """Consecutive bits of a hash, of which so many may differ."""

    lowest: int
    bits: int
    differ: int


#: Hashes that differ by more in each of these bands differ by 3 + 2 + 2 bits at least, which is
#: more than :data:`MAX_BITS`.
BANDS = (Band(0, 21, 2), Band(21, 21, 1), Band(42, 22, 1))
#: Bounds of the memory for a comparison.
_ROWS_AT_ONCE, _PAIRS_AT_ONCE = 1 << 12, 1 << 20
#: Order in which one of two near-duplicates is kept: what is measured on rather than trained on.
_KEPT: tuple[Split, ...] = ("test", "validation", "train")


class Signature(NamedTuple):
    """What is compared of a clip: its pictures at :data:`PLACES` places.

    Attributes:
        hashes: uint64 [places].
        colours: int16 [places, 48].
        usable: pictures with contrast, bool [places].
        length_s: seconds.
    """

    hashes: npt.NDArray[np.uint64]
    colours: npt.NDArray[np.int16]
    usable: npt.NDArray[np.bool_]
    length_s: float


class NearDuplicate(Record):
    """Two clips that show the same. ``bits`` and ``colour``: how far apart they are, as
    :data:`MAX_BITS` and :data:`MAX_COLOUR` are measured."""

    clips: tuple[str, str]
    splits: tuple[Split, Split]
    bits: float
    colour: int

    @property
    def across_splits(self) -> bool:
        return self.splits[0] != self.splits[1]


def signature(pictures: Pictures, frames: int, rate: Fraction) -> Signature:
    wanted = (2 * np.arange(PLACES) + 1) * frames / (2 * PLACES)
    nearest = np.abs(pictures.at[None, :] - wanted[:, None]).argmin(axis=1)
    usable = pictures.contrast[nearest] >= FLAT
    return Signature(pictures.hash[nearest], pictures.colours[nearest], usable, float(frames / rate))


def near_duplicates(clips: Sequence[Clip], signatures: Sequence[Signature]) -> list[NearDuplicate]:
    """Find all pairs, in order of their ids. Clips of which too few pictures have contrast have no
    near-duplicate."""
    order = sorted(
        (n for n, one in enumerate(signatures) if one.usable.sum() >= FEWEST), key=lambda n: signatures[n].length_s
    )
    if not order:
        return []
    hashes = np.stack([signatures[n].hashes for n in order])
    usable = np.stack([signatures[n].usable for n in order])
    lengths = np.array([signatures[n].length_s for n in order])
    stops = np.searchsorted(lengths, lengths * MAX_RATIO, side="right")
    found = [np.empty(0, np.int64)]
    # A mean over places is not below each of them, so one place has no more than MAX_BITS.
    for place in range(PLACES):
        for one, other in close_pairs(hashes[:, place], usable[:, place]):
            of_length = (one < other) & (other < stops[one])
            one, other = one[of_length], other[of_length]
            places, differ = _compared(hashes, usable, one, other)
            alike = (places >= FEWEST) & (differ <= MAX_BITS * places)
            found.append(one[alike] * len(order) + other[alike])
    pairs = []
    one, other = np.divmod(np.unique(np.concatenate(found)), len(order))
    for n, m, places, differ in zip(one, other, *_compared(hashes, usable, one, other), strict=True):
        first, second, at = order[n], order[m], usable[n] & usable[m]
        colour = int(np.abs(signatures[first].colours[at] - signatures[second].colours[at]).max())
        if colour <= MAX_COLOUR:
            pairs.append(_pair(clips[first], clips[second], round(float(differ / places), 2), colour))
    return sorted(pairs, key=lambda pair: pair.clips)


def _compared(
    hashes: npt.NDArray[np.uint64], usable: npt.NDArray[np.bool_], one: Numbers, other: Numbers
) -> tuple[Numbers, Numbers]:
    """Number of places at which both of a pair have contrast, and the bits that differ there."""
    both = usable[one] & usable[other]
    return both.sum(axis=1), (np.bitwise_count(hashes[one] ^ hashes[other]) * both).sum(axis=1, dtype=np.int64)


def close_pairs(hashes: npt.NDArray[np.uint64], usable: npt.NDArray[np.bool_]) -> Iterator[tuple[Numbers, Numbers]]:
    """Iterate over the pairs of usable hashes that differ by at most :data:`MAX_BITS`, without a
    comparison of all with all: in arrays, each pair in both directions and possibly several times.

    Such hashes agree in one of the :data:`BANDS` but for the bits that may differ there, so those
    are looked up that have a band's value, or the value with these bits flipped (Norouzi, Punjani
    and Fleet, *Fast Exact Search in Hamming Space with Multi-Index Hashing*, 2014).
    """
    rows = np.flatnonzero(usable)
    for band in BANDS:
        values = ((hashes >> np.uint64(band.lowest)) & np.uint64((1 << band.bits) - 1)).astype(np.int64)
        by_value = rows[np.argsort(values[rows], kind="stable")]
        ordered = values[by_value]
        is_there = np.zeros(1 << band.bits, np.bool_)
        is_there[ordered] = True
        flips = _flips(band)
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[first : first + _ROWS_AT_ONCE]
            wanted = values[some, None] ^ flips
            row, flip = np.nonzero(is_there[wanted])
            sought = wanted[row, flip]
            start, stop = (np.searchsorted(ordered, sought, side) for side in ("left", "right"))
            for one, at in _spread(some[row], start, stop):
                other = by_value[at]
                close = np.bitwise_count(hashes[one] ^ hashes[other]) <= MAX_BITS
                yield one[close], other[close]


def _flips(band: Band) -> Numbers:
    """Every value that has no more bits than may differ."""
    chosen = (bits for count in range(band.differ + 1) for bits in combinations(range(band.bits), count))
    return np.array([sum(1 << bit for bit in bits) for bits in chosen])


def _spread(rows: Numbers, starts: Numbers, stops: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Pair each row with each number from its start to its stop; some pairs at once."""
    counts = stops - starts
    ends = np.cumsum(counts)
    first = 0
    while first < len(rows):
        before = int(ends[first] - counts[first])
        last = max(first + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")))
        part = slice(first, last)
        offsets = np.repeat(starts[part] - (ends[part] - counts[part]), counts[part])
        yield np.repeat(rows[part], counts[part]), offsets + np.arange(before, int(ends[last - 1]))
        first = last


def _pair(one: Clip, other: Clip, bits: float, colour: int) -> NearDuplicate:
    first, second = sorted((one, other), key=lambda clip: clip.clip_id)
    return NearDuplicate(
        clips=(first.clip_id, second.clip_id), splits=(first.split, second.split), bits=bits, colour=colour
    )


def without_near_duplicates(clips: Sequence[Clip], pairs: Iterable[NearDuplicate]) -> tuple[list[Clip], list[Reject]]:
    """Drop clips until no two are near-duplicates: of a test and a training clip the latter, else
    the one that comes later. Rejects are in the order of the clips."""
    beside: dict[str, list[str]] = {}
    for pair in pairs:
        for one, other in (pair.clips, pair.clips[::-1]):
            beside.setdefault(one, []).append(other)
    kept: dict[str, Clip] = {}
    rejects: dict[str, Reject] = {}
    for clip in sorted(clips, key=lambda clip: (_KEPT.index(clip.split), clip.clip_id)):
        same = next((kept[other] for other in sorted(beside.get(clip.clip_id, ())) if other in kept), None)
        if same is None:
            kept[clip.clip_id] = clip
            continue
        detail = (
            f"video: {clip.path!r} shows what {same.path!r} does (clip {same.clip_id!r}, {same.split}); to keep both,"
            " set ingest.near_duplicates: report"
        )
        rejects[clip.clip_id] = Reject(item=clip.clip_id, reason="near-duplicate", detail=detail)
    return [clip for clip in clips if clip.clip_id in kept], [
        rejects[clip.clip_id] for clip in clips if clip.clip_id in rejects
    ]
