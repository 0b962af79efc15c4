"""Reading of frames by number, with the fastest reader that is correct on the file.

If the probe finds no hazard for decord, both readers return the same pixels. decord opens a small
file faster; on 720p PyAV is 1.5 to 1.8 times as fast, since it skips frames that no requested one
refers to and converts requested frames only (``make bench-video``).

A reader is opened, used once and dropped: an idle decord reader prefetches hundreds of megabytes.
"""

from __future__ import annotations

import logging
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

from stages.lib.video.container import decode, decoded, open_video
from stages.lib.video.errors import VideoError
from stages.lib.video.folders import read_folder
from stages.lib.video.probe import DECORD_PIXELS, UNTRUSTED_TIMES, packet_index, probe
from stages.lib.video.times import PacketIndex

log = logging.getLogger(__name__)

Backend = Literal["decord", "pyav"]
#: Receives a frame's number and the decoded frame.
Keep = Callable[[int, Any], None]
#: Shrinks one frame, uint8 RGB [height, width, 3]; all frames of a file get the same size.
Shrunk = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]

#: Decoders that can skip frames that no other frame refers to.
SKIPPING = frozenset(("h264", "hevc"))


class Facts(Protocol):
    """The facts about a file that reading needs; a probe has them, and so has a clip of the
    manifest.

    ``width``, ``height``: size of a displayed frame; ``decord_safe``: decord returns the right
    frames; ``hazards``: reasons why not.
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
    """Counts of frames by reader, for a stage's metrics. The caller passes it in, so there is no
    global counter."""

    decord: int = 0
    pyav: int = 0

    def count(self, backend: Backend, frames: int) -> None:
        setattr(self, backend, getattr(self, backend) + frames)


def read_frames(
    path: Path,
    indices: Sequence[int],
    *,
    facts: Facts | None = None,
    stats: ReadStats | None = None,
    shrunk: Shrunk | None = None,
    packets: Callable[[Path], PacketIndex] = packet_index,
) -> tuple[npt.NDArray[np.uint8], Backend]:
    """Read the frames ``indices`` (numbers in presentation order), upright.

    Args:
        path: the file, or the folder of a video in pictures.
        indices: frame numbers, any order, repetition allowed.
        facts: facts about the file, if the caller has them already; None: the file is probed.
        stats: counts the frames served.
        shrunk: resizes each frame as it is decoded, so that only one frame of a large file is in
            memory in its full size; None: no resize.
        packets: indexes the file's packets; a caller that reads many parts of one file remembers
            the result.

    Returns:
        uint8 RGB [len(indices), height, width, 3], all in the first frame's size (or its size after
            ``shrunk``), and the reader that
        served them.

    Raises:
        IndexError: a number outside the file.
        VideoError: the file cannot be read, or a frame that its packets promise does not decode.
    """
    facts = facts or probe(path)
    for index in indices:
        if not 0 <= index < facts.frames:
            raise IndexError(
                f"{path.name}: frame {index} was requested, there are {facts.frames} (0 to {facts.frames - 1})"
            )
    if not indices:
        return np.empty((0, facts.height, facts.width, 3), np.uint8), choose(facts)
    backend = choose(facts)
    pixels = _read_decord(path, indices, facts, shrunk) if backend == "decord" else None
    if pixels is None:
        backend, pixels = "pyav", _read_pyav(path, indices, facts, shrunk, packets)
    if stats is not None:
        stats.count(backend, len(indices))
    return pixels, backend


def choose(facts: Facts) -> Backend:
    """Choose the reader of a file: decord for a small file on which it is correct, else PyAV."""
    small = facts.frames * facts.width * facts.height <= DECORD_PIXELS
    return "decord" if small and facts.decord_safe and _decord_installed() else "pyav"


@lru_cache(maxsize=1)
def _decord_installed() -> bool:
    # decord publishes wheels for x86-64 Linux and Windows only.
    return find_spec("decord") is not None


def _read_decord(
    path: Path, indices: Sequence[int], facts: Facts, shrunk: Shrunk | None = None
) -> npt.NDArray[np.uint8] | None:
    """Read with decord; None if it fails: it does on sound files of some widths (of the even ones
    below 132 px on 16, 24, 48 and 72: "from_size == to_size"). PyAV tells damage from that."""
    import decord

    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != facts.frames:
            raise VideoError("damaged", f"{path.name}: decord counts {len(reader)} frames, the packets {facts.frames}")
        pixels: npt.NDArray[np.uint8] = reader.get_batch(list(indices)).asnumpy()
    except decord.DECORDError as error:
        log.debug("%s: decord: %s", path, str(error).splitlines()[-1])
        return None
    # All frames at once: decord reads small files only.
    return pixels if shrunk is None else np.stack([shrunk(frame) for frame in pixels])


def _read_pyav(
    path: Path,
    indices: Sequence[int],
    facts: Facts,
    shrunk: Shrunk | None = None,
    index_of: Callable[[Path], PacketIndex] = packet_index,
) -> npt.NDArray[np.uint8]:
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(indices):
        rows.setdefault(index, []).append(row)
    pixels = np.empty((len(indices), facts.height, facts.width, 3) if shrunk is None else (0, 0, 0, 3), np.uint8)
    # One for all frames: a new one would set up its conversion each time.
    reformatter = VideoReformatter()

    def keep(index: int, frame: Any) -> None:
        put(index, _upright(frame, facts, reformatter))

    def put(index: int, upright: npt.NDArray[np.uint8]) -> None:
        nonlocal pixels
        if shrunk is not None:
            upright = shrunk(upright)
            if not len(pixels):
                pixels = np.empty((len(indices), *upright.shape), np.uint8)
        pixels[rows[index]] = upright

    if path.is_dir():
        read_folder(path, indices, facts.frames, put, (facts.height, facts.width))
        return pixels
    packets = index_of(path)
    if packets.shown != facts.frames:
        raise VideoError("damaged", f"{path.name}: {packets.shown} frames are stored, {facts.frames} were expected")
    if packets.times is None or not packets.ordered or UNTRUSTED_TIMES in facts.hazards:
        _in_sequence(path, packets.first, set(rows), keep)
        return pixels
    try:
        _by_time(path, {packets.times[number]: number for number in sorted(rows)}, packets.keys, keep)
    except _OutOfOrder:
        _in_sequence(path, packets.first, set(rows), keep)
    return pixels


class _OutOfOrder(Exception):
    """The decoder returned a frame after one with a later presentation time."""


def _in_sequence(path: Path, first: int | None, left: set[int], keep: Keep) -> None:
    """Read frames by counting them in the decoder's order, for files without reliable presentation
    times.

    Args:
        first: presentation time of frame 0, if others may be decoded before it.
    """
    number = -1
    with open_video(path) as (container, stream):
        for frame in decoded(container, stream):
            if number < 0 and first is not None and frame.pts != first:
                continue
            number += 1
            if number in left:
                # A decoder returns a damaged picture rather than none.
                if frame.is_corrupt:
                    break
                keep(number, frame)
                left.discard(number)
            if not left:
                return
    raise VideoError("damaged", f"{path.name}: frame {min(left)} does not decode")


def _by_time(path: Path, requested: dict[int, int], keys: Sequence[int], keep: Keep) -> None:
    """Decode the requested frames (presentation time to number, in order of time), each by its
    exact time.

    Of each group of pictures only the frames that requested ones refer to are decoded. If a seek
    does not reach the key frame (MPEG-TS), or a frame does not decode from its own group, the
    remaining ones are decoded from the beginning.

    Raises:
        _OutOfOrder: the times contradict the decoder's order after all.
    """
    left = dict(requested)
    with open_video(path) as (container, stream):
        for key, group in groupby(
            requested, key=lambda time: keys[max(0, bisect_right(keys, time) - 1)] if keys else None
        ):
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
    """Feed packets until all with a frame of ``times`` are fed, then flush the decoder.

    A frame refers only to packets before its own, so none behind the last requested one is needed.
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
