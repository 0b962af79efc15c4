"""When each frame is shown, from the times of its packets, of which some are missing, doubled or out of order.

The order of frames is the order in which a decoder gives them out. Packets' times tell that order only where they were not made up from
the order of storage: an AVI file has none of its own, and many a program writes decode times in their place.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappushpop
from itertools import pairwise
from typing import NamedTuple

#: Containers that store when a packet is decoded, not when its frame is shown.
WITHOUT_TIMES = frozenset(("avi", "asf"))
#: Codecs whose decoders give frames out in the order of storage.
NEVER_REORDERED = frozenset(
    ("vp8", "vp9", "av1", "theora", "mjpeg", "prores", "ffv1", "dnxhd", "h263", "flv1", "qtrle", "png", "rawvideo", "wmv1", "wmv2")
)
#: Where more than this share of the times cannot be right, none is believed.
MOST_WRONG = 0.25
#: Up to this share of wrong times the assumed depth of reordering is taken for right.
_FEW_WRONG = 0.05
#: Frames that a decoder holds back, one more than it needs so that a single time too late disturbs no other; the last is more than H.264
#: and HEVC allow.
_DEPTHS = (3, 5, 17)


class Packet(NamedTuple):
    """A packet as far as times go: presentation and decode time in the file's units, whether decoding can start there, whether its
    frame is decoded but not shown."""

    pts: int | None
    dts: int | None
    key: bool
    discard: bool


@dataclass(frozen=True)
class PacketIndex:
    """Frames in the order in which the decoder gives them out, and the times of those that a decoder can start at.

    Attributes:
        times: when each frame is shown, never decreasing; a frame without a time of its own has that of its neighbour, or one between
            its neighbours'. None where so many are wrong that an even rate is the better guess.
        even: the same, but with a time between its neighbours' also for a frame whose time another one has.
        keys: presentation times of key frames.
        shown: how many frames are shown.
        ordered: whether each frame can be told by the time of its packet, and their order is that of their times.
        invented: whether times contradict the codec: they were made up from the order of storage, or one is wrong.
        first: presentation time of the first frame that decodes, where others are stored before it.
        dropped: how many are.
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
        """The index from the frame of this presentation time on; so many others are stored before it."""
        times = self.times
        by_time = times is not None and self.ordered and first is not None
        dropped = bisect_left(times, first) if by_time else stored_before  # type: ignore[arg-type,type-var]
        if not dropped:
            return self
        if times is None:
            return replace(self, shown=self.shown - dropped, first=first, dropped=dropped)
        assert self.even is not None
        return replace(
            self, times=times[dropped:], even=self.even[dropped:], shown=self.shown - dropped, first=first, dropped=dropped
        )


def index_packets(packets: Sequence[Packet], container: str, codec: str, reorders: bool | None, doubtful: bool) -> PacketIndex:
    """The index of all packets of a stream, in order of storage.

    Args:
        packets: those that hold something.
        container, codec: as libav names them.
        reorders: whether frames are stored in another order than they are shown in; None where it is not known.
        doubtful: whether a frame that lies between two others in the codec's view has a time behind both (:func:`between`).
    """
    shown = [packet for packet in packets if not packet.discard]
    keys = tuple(sorted(packet.pts for packet in packets if packet.key and packet.pts is not None))
    stamps = [packet.pts for packet in shown]
    reorders = reorders if codec not in NEVER_REORDERED else False
    ordered = len({*stamps} - {None}) == len(stamps)
    if not WITHOUT_TIMES.isdisjoint(container.split(",")):
        decoded = [packet.dts for packet in shown]
        # Sorted they are the times of the frames in order, whichever packet holds which.
        times = sorted(time for time in decoded if time is not None)
        complete = len(times) == len(shown) and bool(times)
        ordered = ordered and complete and not (reorders or doubtful) and stamps == decoded == times
        bounded = _within_bounds(times, _without_doubles(times), 0) if complete else None
        said, even = bounded or (None, None)
        return PacketIndex(said, even, keys, len(shown), ordered)
    # Held back, and yet shown in order of storage: nothing but the codec's own types of frames would tell.
    invented = doubtful or (reorders is True and _rising(stamps))
    found = frame_times(stamps, _DEPTHS if reorders else (0,) if reorders is False else (0, *_DEPTHS))
    if found is None:
        return PacketIndex(None, None, keys, len(shown), ordered=False)
    said, even, wrong = found
    return PacketIndex(said, even, keys, len(shown), ordered and not invented and not wrong, invented)


def index_frames(stamps: Sequence[int | None], index: PacketIndex) -> PacketIndex:
    """The index of a file whose packets do not tell the order, from the times of its frames as a decoder gives them out.

    Where they are those of all packets that are shown, the place of a wrong one is known; where many are wrong, they were made up, and
    in order they tell when the next frame is shown, whichever it is.
    """
    found = frame_times(stamps, (0,)) if len(stamps) == index.shown and index.times is not None else None
    if found is None:
        return replace(index, ordered=False, invented=True)
    said, even, wrong = found
    return replace(index, times=said, even=even, ordered=False, invented=index.invented or wrong > 0)


def frame_times(stamps: Sequence[int | None], depths: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Times in the order of the decoder's output, from those of packets in order of storage.

    Args:
        depths: how many frames the decoder may hold back; the first that leaves few times wrong is taken, else the best.

    A time that is missing, or that does not fit between its neighbours', costs its own frame its slot: it is replaced by one between
    them. Of two equal times both stay, as a player shows it: the earlier frame is never seen.

    Returns:
        The times; the same with doubled ones replaced as well; and how many were missing or did not fit. None where too many are wrong.
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


def _within_bounds(times: Sequence[int], even: Sequence[int], wrong: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    doubled = sum(earlier == later for earlier, later in pairwise(times))
    return (tuple(times), tuple(even)) if wrong + doubled <= MOST_WRONG * len(times) else None


def _rising(stamps: Sequence[int | None]) -> bool:
    known = [time for time in stamps if time is not None]
    return all(earlier <= later for earlier, later in pairwise(known))


def _given_out(stamps: Sequence[int | None], depth: int) -> list[tuple[int, int]]:
    """Time and place in storage of each frame, as a decoder that holds ``depth`` frames back gives them out."""
    known = [(time, place) for place, time in enumerate(stamps) if time is not None]
    held = sorted(known[:depth])
    out = [heappushpop(held, frame) for frame in known[depth:]]
    while held:
        out.append(heappop(held))
    return out


def _longest_rise(frames: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """As many of the frames as stand in order of their times (a longest increasing subsequence), and those that have the same time as
    one of them next to it."""
    if all(earlier[0] <= later[0] for earlier, later in pairwise(frames)):
        return frames
    ends: list[int] = []  # the least last time of a rise of each length
    last: list[int] = []  # and which frame has it
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
    """The kept times and one for each other frame, in the widest gap near its place in storage."""
    times = [time for time, _ in kept]
    if len(kept) == len(stamps):
        return times
    step = _usual_step(times)
    places = sorted(place for _, place in kept)
    gaps: dict[int, int] = {}  # how many frames are missing before which of the kept ones
    for place in sorted(set(range(len(stamps))) - set(places)):
        at = bisect_right(places, place)
        near = range(max(1, at - depth), min(len(times) - 1, at + depth) + 1)
        widest = max(near, key=lambda gap: (times[gap] - times[gap - 1]) / (gaps.get(gap, 0) + 1), default=at)
        wide = depth and 0 < widest < len(times) and times[widest] - times[widest - 1] > step * (gaps.get(widest, 0) + 1.5)
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
    """The times, each that its predecessor has as well replaced by one between its neighbours'."""
    firsts = [(time, place) for place, time in enumerate(times) if not place or time != times[place - 1]]
    if len(firsts) == len(times):
        return list(times)
    own = {place: time for time, place in firsts}
    return _filled([own.get(place) for place in range(len(times))], firsts, 0)


def _usual_step(times: Sequence[int]) -> int:
    steps = sorted(later - earlier for earlier, later in pairwise(times) if later > earlier)
    return steps[len(steps) // 2] if steps else 1


#: Codecs whose packets say what kind of frame they hold, where :func:`between` can read it.
TYPED = frozenset(("h264", "mpeg4", "mpeg1video", "mpeg2video"))
_SLICE = re.compile(rb"\x00\x00\x01[\x01\x05\x21\x25\x41\x45\x61\x65]", re.DOTALL)


def between(packet: memoryview, codec: str, prefix: int) -> bool:
    """Whether a packet's frame is bidirectional: coded from others that are shown before and behind it, and stored behind both.

    Args:
        packet: its bytes.
        codec: one of :data:`TYPED`; of others False is returned.
        prefix: bytes of the length that stands before each unit of H.264; 0 where start codes do (ITU-T H.264, annex B).
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
    """Of the first slice of a frame, whose header starts with first_mb_in_slice = 0 and slice_type (ITU-T H.264, 7.3.3)."""
    header = -1
    if prefix:
        at = 0
        while at + prefix < len(packet):
            if packet[at + prefix] & 0x1F in (1, 5):
                header = at + prefix + 1
                break
            at += prefix + int.from_bytes(packet[at : at + prefix], "big")
    else:
        found = _SLICE.search(packet)
        header = found.end() if found else -1
    if not 0 <= header < len(packet):
        return False
    # Exp-Golomb codes: 1 is 0; 010 is 1 (B), 00111 is 6 (B, as all slices of the frame).
    return packet[header] & 0xF0 == 0xA0 or packet[header] & 0xFC == 0x9C
