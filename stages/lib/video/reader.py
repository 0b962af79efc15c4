"""Frames by number, from the fastest reader that is right on the file.

Where the probe finds nothing against decord, both return the same pixels. decord opens a small file faster; on 720p PyAV is 1.5 to 1.8
times as fast, since it leaves out frames that no wanted one refers to and converts no frame that nobody wants (``make bench-video``).

A reader is opened, asked once and dropped: an idle decord reader prefetches into hundreds of megabytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from stages.lib.video.errors import VideoError
from stages.lib.video.probe import UNTRUSTED_TIMES, decode, decoded, open_video, packet_index, probe

Backend = Literal["decord", "pyav"]
#: Takes a frame's number and the decoded frame.
Keep = Callable[[int, Any], None]
#: Makes one frame, uint8 RGB [height, width, 3], smaller; all of a file come out in one size.
Shrunk = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]

#: Decoders that leave out frames that no other frame refers to when they are told to.
SKIPPING = frozenset(("h264", "hevc"))

#: Pixels of all frames of a file up to which decord is the faster reader.
DECORD_PIXELS = 1_000_000


class Facts(Protocol):
    """What has to be known of a file before it is read; a probe knows it, and so does a clip of the manifest.

    ``width`` and ``height`` are of a frame as it is shown; ``decord_safe`` says whether decord returns the right frames, and
    ``hazards`` why not.
    """

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def hazards(self) -> tuple[str, ...]: ...
    @property
    def decord_safe(self) -> bool: ...


@dataclass
class ReadStats:
    """How many frames each reader served, for a stage's metrics. Passed in, so that nothing global counts."""

    decord: int = 0
    pyav: int = 0

    def count(self, backend: Backend, frames: int) -> None:
        setattr(self, backend, getattr(self, backend) + frames)


def read_frames(
    path: Path,
    indices: Sequence[int],
    *,
    known: Facts | None = None,
    stats: ReadStats | None = None,
    shrunk: Shrunk | None = None,
) -> tuple[npt.NDArray[np.uint8], Backend]:
    """Frames ``indices`` in presentation order, upright.

    Args:
        path: the file.
        indices: frame numbers, any order, repetition allowed.
        known: what a probe of the file says, where the caller knows it already.
        stats: counts the frames served.
        shrunk: is given each frame as it comes, so that of a large file only one frame is in memory in its full size; None: as they are.

    Returns:
        uint8 RGB [len(indices), height, width, 3], all of the first frame's size (or of what ``shrunk`` makes of it), and the reader
        that served them.

    Raises:
        IndexError: a number outside the file.
        VideoError: the file cannot be read, or a frame that its packets promise does not decode.
    """
    facts: Facts = known or probe(path)
    for index in indices:
        if not 0 <= index < facts.frames:
            raise IndexError(f"{path.name}: frame {index} was asked for, there are {facts.frames} (0 to {facts.frames - 1})")
    if not indices:
        return np.empty((0, facts.height, facts.width, 3), np.uint8), choose(facts)
    backend = choose(facts)
    pixels = _read_decord(path, indices, facts, shrunk) if backend == "decord" else _read_pyav(path, indices, facts, shrunk)
    if stats is not None:
        stats.count(backend, len(indices))
    return pixels, backend


def choose(facts: Facts) -> Backend:
    """Which reader serves a file: decord for a small one that it is right on, else PyAV."""
    small = facts.frames * facts.width * facts.height <= DECORD_PIXELS
    return "decord" if small and facts.decord_safe and _decord_installed() else "pyav"


@lru_cache(maxsize=1)
def _decord_installed() -> bool:
    # decord has wheels for x86-64 Linux and Windows only.
    return find_spec("decord") is not None


def _read_decord(path: Path, indices: Sequence[int], facts: Facts, shrunk: Shrunk | None = None) -> npt.NDArray[np.uint8]:
    import decord

    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != facts.frames:
            raise VideoError("damaged", f"{path.name}: decord counts {len(reader)} frames, the packets {facts.frames}")
        pixels: npt.NDArray[np.uint8] = reader.get_batch(list(indices)).asnumpy()
    except decord.DECORDError as error:
        raise VideoError("damaged", f"{path.name}: decord: {str(error).splitlines()[-1]}") from error
    # It is asked for small files only.
    return pixels if shrunk is None else np.stack([shrunk(frame) for frame in pixels])


def _read_pyav(path: Path, indices: Sequence[int], facts: Facts, shrunk: Shrunk | None = None) -> npt.NDArray[np.uint8]:
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    pixels = np.empty((len(indices), facts.height, facts.width, 3) if shrunk is None else (0, 0, 0, 3), np.uint8)
    # One for all frames: a new one would set up its conversion for each.
    reformatter = VideoReformatter()

    def keep(index: int, frame: Any) -> None:
        nonlocal pixels
        shown = _upright(frame, facts, reformatter)
        if shrunk is not None:
            shown = shrunk(shown)
            if not len(pixels):
                pixels = np.empty((len(indices), *shown.shape), np.uint8)
        pixels[places[index]] = shown

    packets = packet_index(path)
    if packets.shown != facts.frames:
        raise VideoError("damaged", f"{path.name}: {packets.shown} frames are stored, {facts.frames} were expected")
    if packets.times is None or not packets.ordered or UNTRUSTED_TIMES in facts.hazards:
        _in_sequence(path, packets.first, set(places), keep)
        return pixels
    try:
        _by_time(path, {packets.times[number]: number for number in sorted(places)}, packets.keys, keep)
    except _OutOfOrder:
        _in_sequence(path, packets.first, set(places), keep)
    return pixels


class _OutOfOrder(Exception):
    """The decoder gave a frame out behind one that is said to be shown later."""


def _in_sequence(path: Path, first: int | None, left: set[int], keep: Keep) -> None:
    """Count the frames as they are decoded: the file does not say which is shown when.

    Args:
        first: presentation time of frame 0, where others may be decoded before it.
    """
    number = -1
    with open_video(path) as (container, stream):
        for frame in decoded(container, stream):
            if number < 0 and first is not None and frame.pts != first:
                continue
            number += 1
            if number in left:
                keep(number, frame)
                left.discard(number)
            if not left:
                return
    raise VideoError("damaged", f"{path.name}: frame {min(left)} does not decode")


def _by_time(path: Path, wanted: dict[int, int], keys: Sequence[int], keep: Keep) -> None:
    """Decode the wanted frames (presentation time to number, in order of time), each by its exact time.

    Of each group of pictures no more is decoded than its wanted frames refer to. Where a file does not lead to a key frame as it
    says (MPEG-TS), or a frame does not come from its own, what is left is decoded from the beginning.

    Raises:
        _OutOfOrder: the times are not those of the decoder's order after all.
    """
    left = dict(wanted)
    with open_video(path) as (container, stream):
        for key, group in groupby(wanted, key=lambda time: keys[max(0, bisect_right(keys, time) - 1)] if keys else None):
            if key is None:
                break
            if key > keys[0]:
                container.seek(key, stream=stream)
            packets = container.demux(stream)
            first = next(packets, None)
            if first is None or first.pts is None or first.pts > key:
                break
            _decode(first, packets, stream, set(group), left, keep)
    if not left:
        return
    with open_video(path) as (container, stream):
        packets = container.demux(stream)
        _decode(next(packets), packets, stream, set(left), left, keep)
    if left:
        raise VideoError("damaged", f"{path.name}: frame {min(left.values())} does not decode")


def _decode(first: Any, packets: Iterable[Any], stream: Any, times: set[int], left: dict[int, int], keep: Keep) -> None:
    """Feed packets until all that hold a frame of ``times`` have been fed, then have the decoder give out what it holds back.

    A frame refers only to packets before its own, so none behind the last wanted one is needed.
    """
    context = stream.codec_context
    skips = context.name in SKIPPING
    unfed = set(times)
    latest: int | None = None

    def take(frames: Iterable[Any]) -> None:
        nonlocal latest
        for frame in frames:
            if latest is not None and frame.pts is not None and frame.pts < latest:
                raise _OutOfOrder
            latest = frame.pts
            if frame.pts in times and frame.pts in left and not frame.is_corrupt:
                keep(left.pop(frame.pts), frame)

    begun = False
    for packet in chain((first,), packets):
        if not packet.size:
            continue
        begun = begun or packet.is_keyframe
        if skips:
            context.skip_frame = "DEFAULT" if packet.pts in unfed else "NONREF"
        unfed.discard(packet.pts)
        take(decode(packet, begun))
        if not unfed:
            break
    take(context.decode(None))


def _upright(frame: Any, facts: Facts, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    # libav and np.rot90 count counter-clockwise.
    turns = round(frame.rotation / 90) % 4
    width, height = (facts.height, facts.width) if turns % 2 else (facts.width, facts.height)
    stored = reformatter.reformat(frame, width, height, "rgb24").to_ndarray().astype(np.uint8, copy=False)
    return np.rot90(stored, k=turns) if turns else stored
