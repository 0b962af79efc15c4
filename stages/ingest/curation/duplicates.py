"""Near-duplicates: clips that show the same, encoded, scaled, brightened or trimmed otherwise.

Two clips of about one length are compared at eight places. They are near-duplicates if their
perceptual hashes differ by few bits and their colours by little; the latter tells apart what moves
alike in other colours. docs/guides/curation.md holds the measurements behind the thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
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
    pairs = []
    for one, stop in enumerate(stops):
        both = usable[one + 1 : stop] & usable[one]
        places = both.sum(axis=1)
        differ = (np.bitwise_count(hashes[one + 1 : stop] ^ hashes[one]) * both).sum(axis=1)
        for other in np.flatnonzero((places >= FEWEST) & (differ <= MAX_BITS * places)):
            first, second = order[one], order[one + 1 + other]
            at = both[other]
            colour = int(np.abs(signatures[first].colours[at] - signatures[second].colours[at]).max())
            if colour <= MAX_COLOUR:
                bits = round(float(differ[other] / places[other]), 2)
                pairs.append(_pair(clips[first], clips[second], bits, colour))
    return sorted(pairs, key=lambda pair: pair.clips)


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
