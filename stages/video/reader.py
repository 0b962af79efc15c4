"""Frames by number, from whichever reader is right on the file: decord where the probe finds nothing against it, else PyAV.

A reader is opened, asked once and dropped: an idle decord reader prefetches into hundreds of megabytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stages.video.errors import VideoError
from stages.video.probe import Probe, open_video, packet_index, probe

Backend = Literal["decord", "pyav"]


@dataclass
class ReadStats:
    """How many frames each reader served, for a stage's metrics. Passed in, so that nothing global counts."""

    decord: int = 0
    pyav: int = 0

    def count(self, backend: Backend, frames: int) -> None:
        setattr(self, backend, getattr(self, backend) + frames)


def read_frames(
    path: Path, indices: Sequence[int], *, known: Probe | None = None, stats: ReadStats | None = None
) -> tuple[npt.NDArray[np.uint8], Backend]:
    """Frames ``indices`` in presentation order, upright.

    Args:
        path: the file.
        indices: frame numbers, any order, repetition allowed.
        known: the file's probe, where the caller has it already.
        stats: counts the frames served.

    Returns:
        uint8 RGB [len(indices), height, width, 3], all of the first frame's size, and the reader that served them.

    Raises:
        IndexError: a number outside the file.
        VideoError: the file cannot be read, or a frame that its packets promise does not decode.
    """
    facts = known or probe(path)
    for index in indices:
        if not 0 <= index < facts.frames:
            raise IndexError(f"{path.name}: frame {index} was asked for, there are {facts.frames} (0 to {facts.frames - 1})")
    if not indices:
        return np.empty((0, facts.height, facts.width, 3), np.uint8), "decord" if facts.decord_safe else "pyav"
    backend: Backend = "decord" if facts.decord_safe and _decord_installed() else "pyav"
    pixels = _read_decord(path, indices, facts) if backend == "decord" else _read_pyav(path, indices, facts)
    if stats is not None:
        stats.count(backend, len(indices))
    return pixels, backend


@lru_cache(maxsize=1)
def _decord_installed() -> bool:
    # decord has wheels for x86-64 Linux and Windows only.
    return find_spec("decord") is not None


def _read_decord(path: Path, indices: Sequence[int], facts: Probe) -> npt.NDArray[np.uint8]:
    import decord

    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != facts.frames:
            raise VideoError("damaged", f"{path.name}: decord counts {len(reader)} frames, the packets {facts.frames}")
        pixels: npt.NDArray[np.uint8] = reader.get_batch(list(indices)).asnumpy()
    except decord.DECORDError as error:
        raise VideoError("damaged", f"{path.name}: decord: {str(error).splitlines()[-1]}") from error
    return pixels


def _read_pyav(path: Path, indices: Sequence[int], facts: Probe) -> npt.NDArray[np.uint8]:
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    pixels = np.empty((len(indices), facts.height, facts.width, 3), np.uint8)

    def keep(index: int, frame: Any) -> None:
        pixels[places[index]] = _upright(frame, facts)

    with open_video(path) as (container, stream):
        times = packet_index(container, stream)
    if times.times is None:
        _in_sequence(path, sorted(places), keep)
    else:
        _by_time(path, {index: times.times[index] for index in sorted(places)}, times.keys, keep)
    return pixels


def _in_sequence(path: Path, wanted: Sequence[int], keep: Any) -> None:
    left = set(wanted)
    with open_video(path) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index in left:
                keep(index, frame)
                left.discard(index)
            if not left:
                return
    raise VideoError("damaged", f"{path.name}: frame {min(left)} does not decode")


def _by_time(path: Path, wanted: dict[int, int], keys: Sequence[int], keep: Any) -> None:
    """Decode each wanted frame by its exact time; jump to a key frame only where that skips something."""
    with open_video(path) as (container, stream):
        frames, at = None, None
        for index, time in wanted.items():
            key = keys[max(0, bisect_right(keys, time) - 1)] if keys else None
            if frames is None or (key is not None and at is not None and key > at):
                if key is not None and key > (keys[0] if keys else 0):
                    container.seek(key, stream=stream)
                frames = container.decode(stream)
            frame = next((f for f in frames if f.pts is not None and f.pts >= time), None)
            if frame is not None and frame.pts > time:
                # The container's index sent us too far (MPEG-TS does): this and all later frames, from the beginning.
                frame = None
            if frame is None:
                break
            keep(index, frame)
            at = frame.pts
        else:
            return
    left = {time: index for index, time in wanted.items() if at is None or time > at}
    with open_video(path) as (container, stream):
        for frame in container.decode(stream):
            if frame.pts in left:
                keep(left.pop(frame.pts), frame)
            if not left:
                return
    raise VideoError("damaged", f"{path.name}: frame {min(left.values())} does not decode")


def _upright(frame: Any, facts: Probe) -> npt.NDArray[np.uint8]:
    turned = facts.rotation in (90, 270)
    width, height = (facts.height, facts.width) if turned else (facts.width, facts.height)
    stored: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24", width=width, height=height)
    # np.rot90 counts counter-clockwise, a player clockwise.
    return np.rot90(stored, k=-facts.rotation // 90) if facts.rotation else stored
