"""Presentation times of frames, from packets' times, some of which may be missing, doubled or out
of order.

The order of frames is the decoder's output order. Packets' times determine that order only if they
were not derived from the storage order: an AVI file has no presentation times, and some programs
write decode times in their place.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappushpop
from itertools import pairwise
from typing import NamedTuple

#: Containers that store decode times, not presentation times.
WITHOUT_TIMES = frozenset(("avi", "asf"))
#: Codecs whose decoders output frames in storage order.
NEVER_REORDERED = frozenset(
    (
        "vp8",
        "vp9",
        "av1",
        "theora",
        "mjpeg",
        "prores",
        "ffv1",
        "dnxhd",
        "h263",
        "flv1",
        "qtrle",
        "png",
        "rawvideo",
        "wmv1",
        "wmv2",
        "gif",
    )
)
#: If more than this share of the times is wrong, none of them is used.
MOST_WRONG = 0.25
#: Up to this share of wrong times the assumed reordering depth is accepted.
_FEW_WRONG = 0.05
#: Reordering depths tried: frames that a decoder holds back, plus one, so that a single late time
#: does not affect others. The last one exceeds the limit of H.264 and HEVC.
_DEPTHS = (3, 5, 17)


class Packet(NamedTuple):
    """Times of a packet. ``pts``, ``dts``: presentation and decode time in the file's units;
    ``key``: decoding can start there; ``discard``: its frame is decoded but not displayed."""

    pts: int | None
    dts: int | None
    key: bool
    discard: bool


@dataclass(frozen=True)
class PacketIndex:
    """Times of frames in the decoder's output order, and times of key frames.

    Attributes:
        times: presentation time of each frame, never decreasing; a frame without a time of its own
            has its neighbour's, or one between its neighbours'. None if so many are wrong that a
            constant rate is the better guess.
        even: the same, but a frame whose time another one has gets a time between its neighbours',
            too.
        keys: presentation times of key frames.
        shown: number of displayed frames.
        ordered: True if the packets' times identify the frames and are in the frames' order.
        invented: True if the times contradict the codec: they were derived from the storage order,
            or one is wrong.
        first: presentation time of the first frame that decodes, if others are stored before it.
        dropped: number of those others.
    """

    times: tuple[int, ...] | None
    even: tuple[int, ...] | None
    keys: tuple[int, ...]
    shown: int
    ordered: bool
    invented: bool = False
    first: int | None = None
    dropped: int = 0

    def starting_at(self, first: int | None, stored_before: int) -> PacketIndex:
        """Return the index from the frame with presentation time ``first`` on, which has
        ``stored_before`` frames before it."""
        times = self.times
        by_time = times is not None and self.ordered and first is not None
        dropped = bisect_left(times, first) if by_time else stored_before  # type: ignore[arg-type,type-var]
        if not dropped:
            return self
        if times is None:
            return replace(self, shown=self.shown - dropped, first=first, dropped=dropped)
        assert self.even is not None
        return replace(
            self,
            times=times[dropped:],
            even=self.even[dropped:],
            shown=self.shown - dropped,
            first=first,
            dropped=dropped,
        )


def index_packets(
    packets: Sequence[Packet], container: str, codec: str, reorders: bool | None, doubtful: bool
) -> PacketIndex:
    """Index all packets of a stream, in storage order.

    Args:
        packets: the packets that are not empty.
        container, codec: as libav names them.
        reorders: True if storage order differs from presentation order; None if unknown.
        doubtful: True if a frame that is bidirectional in the codec (:func:`between`) has a time
            behind both frames it refers to.
    """
    shown = [packet for packet in packets if not packet.discard]
    keys = tuple(sorted(packet.pts for packet in packets if packet.key and packet.pts is not None))
    stamps = [packet.pts for packet in shown]
    reorders = reorders if codec not in NEVER_REORDERED else False
    ordered = len({*stamps} - {None}) == len(stamps)
    if not WITHOUT_TIMES.isdisjoint(container.split(",")):
        decoded = [packet.dts for packet in shown]
        # Sorted, they are the times of the frames in order, independent of the packets that hold
        # them.
        times = sorted(time for time in decoded if time is not None)
        complete = len(times) == len(shown) and bool(times)
        ordered = ordered and complete and not (reorders or doubtful) and stamps == decoded == times
        bounded = _within_bounds(times, _without_doubles(times), 0) if complete else None
        repaired, even = bounded or (None, None)
        return PacketIndex(repaired, even, keys, len(shown), ordered)
    # A stream that reorders, yet has times in storage order: only the codec's own frame types
    # reveal that.
    invented = doubtful or (reorders is True and _rising(stamps))
    result = frame_times(stamps, _DEPTHS if reorders else (0,) if reorders is False else (0, *_DEPTHS))
    if result is None:
        return PacketIndex(None, None, keys, len(shown), ordered=False)
    repaired, even, wrong = result
    return PacketIndex(repaired, even, keys, len(shown), ordered and not invented and not wrong, invented)


def index_frames(stamps: Sequence[int | None], index: PacketIndex) -> PacketIndex:
    """Index a file whose packets do not determine the order, from the times of its decoded frames
    in output order.

    If there is one time for each displayed packet, the position of a wrong one is known. If many
    are wrong, they were invented; in order they still give the time of the next frame, independent
    of the frame.
    """
    result = frame_times(stamps, (0,)) if len(stamps) == index.shown and index.times is not None else None
    if result is None:
        return replace(index, ordered=False, invented=True)
    repaired, even, wrong = result
    return replace(index, times=repaired, even=even, ordered=False, invented=index.invented or wrong > 0)


def frame_times(
    stamps: Sequence[int | None], depths: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Compute times in the decoder's output order, from packets' times in storage order.

    A time that is missing, or that does not fit between its neighbours', is replaced by one between
    them; only its own frame is affected. Two equal times both stay, as in a player, which never
    displays the earlier frame.

    Args:
        depths: numbers of frames that the decoder may hold back; the first one with few wrong times
            is used, else the best.

    Returns:
        The times; the same with doubled ones replaced, too; and the number of missing or unfit
            ones. None if too many are wrong.
    """
    if not stamps:
        return None
    best: tuple[list[tuple[int, int]], int] | None = None
    for depth in depths:
        kept = _longest_rise(_given_out(stamps, depth))
        if best is None or len(kept) > len(best[0]):
            best = kept, depth
        if len(stamps) - len(kept) <= _FEW_WRONG * len(stamps):
            break
    assert best is not None
    kept, depth = best
    wrong = len(stamps) - len(kept)
    if not kept:
        return None
    times = _filled(stamps, kept, depth)
    bounded = _within_bounds(times, _without_doubles(times), wrong)
    return bounded and (*bounded, wrong)


def _within_bounds(
    times: Sequence[int], even: Sequence[int], wrong: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    doubled = sum(earlier == later for earlier, later in pairwise(times))
    return (tuple(times), tuple(even)) if wrong + doubled <= MOST_WRONG * len(times) else None


def _rising(stamps: Sequence[int | None]) -> bool:
    present = [time for time in stamps if time is not None]
    return all(earlier <= later for earlier, later in pairwise(present))


def _given_out(stamps: Sequence[int | None], depth: int) -> list[tuple[int, int]]:
    """Time and storage position of each frame, in the output order of a decoder that holds back
    ``depth`` frames."""
    present = [(time, position) for position, time in enumerate(stamps) if time is not None]
    held = sorted(present[:depth])
    out = [heappushpop(held, frame) for frame in present[depth:]]
    while held:
        out.append(heappop(held))
    return out


def _longest_rise(frames: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Select a longest increasing subsequence of the frames' times, and the neighbours of its
    members that have the same time."""
    if all(earlier[0] <= later[0] for earlier, later in pairwise(frames)):
        return frames
    ends: list[int] = []  # the smallest last time of a subsequence of each length
    last: list[int] = []  # the frame that has it
    before: list[int] = []
    for number, (time, _) in enumerate(frames):
        length = bisect_left(ends, time)
        before.append(last[length - 1] if length else -1)
        ends[length : length + 1] = [time]
        last[length : length + 1] = [number]
    risen = set()
    at = last[-1]
    while at >= 0:
        risen.add(at)
        at = before[at]
    doubled = {
        number
        for number, (time, _) in enumerate(frames)
        for other in (number - 1, number + 1)
        if number not in risen and other in risen and frames[other][0] == time
    }
    return [frames[number] for number in sorted(risen | doubled)]


def _filled(stamps: Sequence[int | None], kept: list[tuple[int, int]], depth: int) -> list[int]:
    """Return the kept times and one for each other frame, in the widest gap near its storage
    position."""
    times = [time for time, _ in kept]
    if len(kept) == len(stamps):
        return times
    step = _usual_step(times)
    positions = sorted(position for _, position in kept)
    gaps: dict[int, int] = {}  # number of missing frames before each of the kept ones
    for position in sorted(set(range(len(stamps))) - set(positions)):
        at = bisect_right(positions, position)
        near = range(max(1, at - depth), min(len(times) - 1, at + depth) + 1)
        widest = max(near, key=lambda gap: (times[gap] - times[gap - 1]) / (gaps.get(gap, 0) + 1), default=at)
        wide = (
            depth and 0 < widest < len(times) and times[widest] - times[widest - 1] > step * (gaps.get(widest, 0) + 1.5)
        )
        chosen = widest if wide else at
        gaps[chosen] = gaps.get(chosen, 0) + 1
    filled = []
    for at in range(len(times) + 1):
        count = gaps.get(at, 0)
        if at == 0:
            filled += [times[0] - step * missing for missing in range(count, 0, -1)]
        elif at == len(times):
            filled += [times[-1] + step * missing for missing in range(1, count + 1)]
        else:
            width = times[at] - times[at - 1]
            filled += [times[at - 1] + width * missing // (count + 1) for missing in range(1, count + 1)]
        filled += times[at : at + 1]
    return filled


def _without_doubles(times: Sequence[int]) -> list[int]:
    """Replace each time that equals its predecessor by one between its neighbours'."""
    firsts = [(time, index) for index, time in enumerate(times) if not index or time != times[index - 1]]
    if len(firsts) == len(times):
        return list(times)
    own = {index: time for time, index in firsts}
    return _filled([own.get(index) for index in range(len(times))], firsts, 0)


def _usual_step(times: Sequence[int]) -> int:
    steps = sorted(later - earlier for earlier, later in pairwise(times) if later > earlier)
    return steps[len(steps) // 2] if steps else 1


#: Codecs whose packets contain the frame type, in a form that :func:`between` reads.
TYPED = frozenset(("h264", "mpeg4", "mpeg1video", "mpeg2video"))
_SLICE = re.compile(rb"\x00\x00\x01[\x01\x05\x21\x25\x41\x45\x61\x65]", re.DOTALL)


def between(packet: memoryview, codec: str, prefix: int) -> bool:
    """True if a packet's frame is bidirectional: predicted from frames presented before and after
    it, and stored behind both.

    Args:
        packet: its bytes.
        codec: one of :data:`TYPED`; for others the result is False.
        prefix: bytes of the length field before each unit of H.264; 0 for start codes (ITU-T H.264,
            annex B).
    """
    if codec == "h264":
        return _slice_is_bidirectional(packet, prefix)
    if codec == "mpeg4":
        # ISO/IEC 14496-2, 6.2.5: vop_coding_type; 2 is B.
        at = bytes(packet[:4096]).find(b"\x00\x00\x01\xb6")
        return at >= 0 and at + 4 < len(packet) and packet[at + 4] >> 6 == 2
    if codec in ("mpeg1video", "mpeg2video"):
        # ITU-T H.262, 6.2.3: temporal_reference of 10 bits, then picture_coding_type; 3 is B.
        at = bytes(packet[:4096]).find(b"\x00\x00\x01\x00")
        return at >= 0 and at + 5 < len(packet) and packet[at + 5] >> 3 & 7 == 3
    return False


def _slice_is_bidirectional(packet: memoryview, prefix: int) -> bool:
    """True if the first slice is bidirectional; its header starts with first_mb_in_slice = 0 and
    slice_type (ITU-T H.264, 7.3.3)."""
    header = -1
    if prefix:
        at = 0
        while at + prefix < len(packet):
            if packet[at + prefix] & 0x1F in (1, 5):
                header = at + prefix + 1
                break
            at += prefix + int.from_bytes(packet[at : at + prefix], "big")
    else:
        match = _SLICE.search(packet)
        header = match.end() if match else -1
    if not 0 <= header < len(packet):
        return False
    # Exp-Golomb codes: 1 is 0; 010 is 1 (B), 00111 is 6 (B, as all slices of the frame).
    return packet[header] & 0xF0 == 0xA0 or packet[header] & 0xFC == 0x9C
