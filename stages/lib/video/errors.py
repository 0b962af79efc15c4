"""Errors of video files, with a reason that a program counts and a detail for people."""

from __future__ import annotations

from stages.errors import VidbridgeError


class VideoError(VidbridgeError):
    """A video that cannot be used.

    Attributes:
        reason: a stable slug (``damaged``, ``empty-file``, ``no-video-stream`` …).
        detail: the finding, for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        # Both go to the base class, so that the error can be pickled out of a worker process.
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class FfmpegMissing(VidbridgeError, RuntimeError):
    """There is no ffmpeg to run; the message names the remedy."""
