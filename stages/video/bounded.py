"""Frames of a video that a stranger sent: nothing is decoded before it is known how much memory that takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.domain.frames import Frames
from stages.video.edits import load_video
from stages.video.errors import VideoError
from stages.video.probe import probe


@dataclass(frozen=True)
class Wanted:
    """``frames`` frames of the file at ``path``, together at most ``max_bytes`` of pixels."""

    path: Path
    frames: int
    max_bytes: int


def load_bounded(wanted: Wanted) -> Frames:
    """The frames, spread evenly over the video.

    Raises:
        VideoError: the file cannot be read, or its frames are too large (``too-large``).
    """
    facts = probe(wanted.path)
    size = wanted.frames * facts.width * facts.height * 3
    if size > wanted.max_bytes:
        detail = (
            f"{wanted.path.name}: {wanted.frames} frames of {facts.width}x{facts.height} take {size >> 20} MB,"
            f" {wanted.max_bytes >> 20} MB are allowed; scale the video down"
        )
        raise VideoError("too-large", detail)
    return load_video(wanted.path, wanted.frames)
