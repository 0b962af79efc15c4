"""Frames of an untrusted video: memory is estimated before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.domain.core.frames import Frames, Shrink
from stages.domain.core.timeline import SampledFrames, frame_count, sample_indices
from stages.lib.video.errors import VideoError
from stages.lib.video.pictures import warnings_about
from stages.lib.video.probe import probe
from stages.lib.video.reader import read_frames


@dataclass(frozen=True)
class DecodeRequest:
    """Request for frames of the file at ``path``, as many as ``sampled`` gives it; at most
    ``max_bytes`` of pixels are in memory at any time."""

    path: Path
    sampled: SampledFrames
    max_bytes: int


def load_bounded(request: DecodeRequest, shrink: Shrink | None = None) -> Frames:
    """Load the frames, spread evenly over the video, in full size or, with ``shrink``, scaled down
    one by one.

    Raises:
        VideoError: the file cannot be read, or its frames are too large (``too-large``).
    """
    facts = probe(request.path)
    count = frame_count(request.sampled, facts.slots, facts.rate)
    height, width = (facts.height, facts.width) if shrink is None else shrink.size(count, facts.height, facts.width)
    size = count * height * width * 3
    if (height, width) != (facts.height, facts.width):
        size += facts.height * facts.width * 3
    if size > request.max_bytes:
        detail = (
            f"{request.path.name}: {count} frames of {facts.width}x{facts.height} take {size >> 20} MB,"
            f" {request.max_bytes >> 20} MB are allowed; scale the video down"
        )
        raise VideoError("too-large", detail)
    indices = sample_indices(facts.slots, count)
    pixels, _ = read_frames(
        request.path,
        [facts.frame_at(index) for index in indices],
        facts=facts,
        shrunk=None if shrink is None else lambda frame: shrink.apply(frame, (height, width)),
    )
    return Frames(pixels, indices, facts.slots, facts.rate, warnings_about(request.path))
