"""Frames of a video file by a benchmark's protocol: so many per second, or so many in all, of a
part of it or of the whole."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

from stages.domain.core.frames import Frames
from stages.domain.core.timeline import sample_indices
from stages.lib.video.errors import VideoError
from stages.lib.video.pictures import warnings_about
from stages.lib.video.probe import probe
from stages.lib.video.reader import read_frames


def frame_count(duration_s: Fraction, fps: Fraction | None, most: int) -> int:
    """Number of frames for a video of this length: even, since the models here merge frames in
    pairs."""
    count = most if fps is None else min(most, math.ceil(duration_s * fps))
    return max(2, count + count % 2)


def load_at(path: Path, fps: Fraction | None, most: int, part_s: tuple[float, float] | None) -> Frames:
    """Load ``fps`` frames a second (None: ``most``), at most ``most``, spread evenly over the video
    or the part of it.

    The first and the last frame are among them. The returned timeline excludes the rest of the
    video. The file is decoded once. A part between two frames' times has the frame that is on
    display then.

    Args:
        part_s: start and end in seconds of the file as a player counts them, its sound included; an
            end after the video's is cut to it, and so is a start before its first frame.

    Raises:
        VideoError: the file cannot be read, or has no frame in that part (``no-such-part``).
    """
    facts = probe(path)
    total = facts.slots
    first, stop = 0, total
    if part_s is not None:
        # The first frame may start later than the file, where the seconds start.
        start_s = facts.starts_s and facts.starts_s + facts.time_base
        begin, end = (Fraction(str(second)) - start_s for second in part_s)
        first, stop = _frames_of(begin, end, facts.rate)
        first, stop = max(0, first), min(total, stop)
        if part_s[0] < 0 or first >= stop:
            raise VideoError(
                "no-such-part",
                f"{path.name}: no frame from {part_s[0]:g} to {part_s[1]:g} s; its picture lasts from"
                f" {float(facts.starts_s):.1f} to {float(facts.starts_s + total / facts.rate):.1f} s",
            )
    total_frames = stop - first
    indices = sample_indices(total_frames, frame_count(total_frames / facts.rate, fps, most))
    stored = [facts.frame_at(first + index) for index in indices]
    pixels, _ = read_frames(path, stored, facts=facts)
    return Frames(pixels, indices, total_frames, facts.rate, warnings_about(path))


def _frames_of(begin: Fraction, end: Fraction, rate: Fraction) -> tuple[int, int]:
    """Frames that begin in a part, given in seconds, as a half-open range.

    If none does, the one that is on display in it. A part of no length has none.
    """
    first, stop = math.ceil(begin * rate), math.ceil(end * rate)
    return (math.floor(begin * rate), stop) if first == stop and begin < end else (first, stop)
