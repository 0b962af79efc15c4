"""Errors of video files, with a reason that a program counts and a detail for people."""

from __future__ import annotations

from stages.errors import InputError, MachineError


class VideoError(InputError):
    """A video that cannot be used.

    Attributes:
        reason: a stable slug (``damaged``, ``empty-file``, ``no-video-stream`` …).
        detail: the finding, for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail, "")
        self.args = (reason, detail)  # which it is pickled by, out of a worker process

    @property
    def reason(self) -> str:
        return self.field

    @property
    def detail(self) -> str:
        return self.problem


class FfmpegMissing(MachineError, RuntimeError):
    """There is no ffmpeg to run; the message names the remedy."""
