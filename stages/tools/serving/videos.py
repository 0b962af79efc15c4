"""Frames of the videos in requests: decoded in separate processes, each file once, within bounds of
memory and time.

An untrusted file may hang a decoder, kill it, or exhaust the memory. It is decoded in a process of
its own that may be ended, under a memory limit, and each frame is scaled there to the size of the
model's processor: the result is small.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from stages.domain.core.frames import Frames
from stages.domain.core.timeline import SampledFrames
from stages.lib.models.resizing import shrink_of
from stages.lib.video.errors import VideoError
from stages.runtime.workers import IsolatedWorker, ItemFailure
from stages.tools.serving.decode import DecodeRequest, load_bounded
from stages.tools.serving.files import OpenFile, too_large
from stages.tools.serving.limits import (
    DECODER_BYTES,
    MAX_SLOW,
    QUICK,
    QUICK_S,
    RETRY_S,
    SECONDS,
    SLOW,
    VIDEO_PIXEL_BYTES,
)
from stages.tools.serving.refusal import Refused

#: Characters of base64 that are read at once; a multiple of four.
_PIECE = 4 << 18


@dataclass(frozen=True)
class Job:
    """A file to decode: its path for another process, its name in messages, how many frames are
    sampled, and the folder of the model."""

    path: Path
    name: str
    sampled: SampledFrames
    model: Path


def decode(job: Job) -> Frames:
    """Decode its frames, scaled to the size of the model's processor.

    Raises:
        VideoError: it cannot be read, or takes more memory than it may (``too-large``).
    """
    import torch

    # The parent's resources are not usable in this process: threads are not inherited.
    torch.set_num_threads(1)
    try:
        frames = load_bounded(DecodeRequest(job.path, job.sampled, VIDEO_PIXEL_BYTES), shrink_of(job.model))
        named = tuple(warning.replace(job.path.name, job.name, 1) for warning in frames.warnings)
        return replace(frames, warnings=named)
    except VideoError as error:
        if _is_short_of_memory(error):
            raise out_of_memory(job.name) from error
        raise VideoError(error.reason, error.detail.replace(job.path.name, job.name, 1)) from error
    except (MemoryError, RuntimeError) as error:
        if _is_short_of_memory(error):
            raise out_of_memory(job.name) from error
        raise


def _is_short_of_memory(error: BaseException) -> bool:
    # libav and torch have no MemoryError; both report it in their own words.
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("Cannot allocate memory", "can't allocate memory", "not enough memory")
    )


def out_of_memory(name: str) -> VideoError:
    """Error for a video that takes more memory than it may."""
    return VideoError(
        "too-large", f"{name}: needs more memory than {DECODER_BYTES >> 20} MB to decode; scale the video down"
    )


class Decoders:
    """Decoding processes for all requests. Slow decoding starts again in separate processes, so
    that one slow file blocks no other client.

    Args:
        model: the folder of the model.
        sampled: frames per video.
        limit_s: time limit per video.
    """

    def __init__(self, model: Path, sampled: SampledFrames, limit_s: float) -> None:
        self._model, self._sampled, self._limit_s = model, sampled, limit_s
        self._quick = IsolatedWorker(decode, processes=QUICK, memory_bytes=DECODER_BYTES)
        self._slow = IsolatedWorker(decode, processes=SLOW, memory_bytes=DECODER_BYTES)
        self._places = threading.BoundedSemaphore(MAX_SLOW)

    def __call__(self, file: OpenFile, field: str, ends: float) -> Frames:
        """Decode the frames of a file.

        Raises:
            Refused: it cannot be read, takes too long, or too many slow files are waiting.
        """
        # Another process opens the descriptor by this name; the file's former path is irrelevant.
        job = Job(Path(f"/proc/{os.getpid()}/fd/{file.descriptor}"), file.name, self._sampled, self._model)
        try:
            result = self._quick(job, min(QUICK_S, self._limit_s), max(ends - time.monotonic(), 0.001))
            if isinstance(result, ItemFailure) and result.reason == "timeout" and self._limit_s > QUICK_S:
                if not self._places.acquire(blocking=False):
                    raise Refused(
                        503, f"{field}: {MAX_SLOW} videos that take long wait already; try again in {RETRY_S} s"
                    )
                try:
                    result = self._slow(job, self._limit_s, max(ends - time.monotonic(), 0.001))
                finally:
                    self._places.release()
        except VideoError as error:
            raise Refused(400, f"{field}: {error}; send a video that ffmpeg can read") from error
        if isinstance(result, ItemFailure):
            if result.reason == "timeout":
                raise timed_out(f"decoding {field}", self._limit_s)
            if result.reason == "waiting":
                raise timed_out(f"decoding {field}, with what came before it", None)
            raise Refused(400, f"{field}: {file.name}: {result.detail}; send a video that ffmpeg can read")
        return result

    def close(self) -> None:
        """End the processes, whatever their state."""
        self._quick.close()
        self._slow.close()


def timed_out(what: str, limit_s: float | None) -> Refused:
    """Refusal for a request whose time is over. ``limit_s``: the limit, if it is not the
    request's."""
    within = "in the time of the request" if limit_s is None else f"within {limit_s:g} s"
    return Refused(504, f"{what}: not done {within} ({SECONDS}); send a shorter video or fewer questions")


def keep_base64(text: bytes, left_bytes: int) -> OpenFile:
    """Store a base64 video as a file without a name: it vanishes with its descriptor, however this
    process ends.

    Args:
        text: standard base64, without line breaks.
        left_bytes: most bytes of the decoded video.

    Raises:
        Refused: too many, none, or not base64.
    """
    if len(text) * 3 // 4 > left_bytes + 2:
        raise Refused(413, too_large("video_base64", len(text) * 3 / 4, left_bytes))
    if not text:
        raise Refused(400, "video_base64: empty; send the bytes of a video file")
    hashed = hashlib.sha256()
    with tempfile.TemporaryFile(prefix="vidbridge-") as file:
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            try:
                if start + _PIECE < len(text) and b"=" in piece:
                    raise binascii.Error("Excess data after padding")
                content = binascii.a2b_base64(piece, strict_mode=True)
            except (binascii.Error, ValueError) as error:
                raise Refused(
                    400, f"video_base64: {error}; send the file's bytes as standard base64, without line breaks"
                ) from error
            hashed.update(content)
            file.write(content)
        file.flush()
        return OpenFile(os.dup(file.fileno()), ("bytes", hashed.digest()), "video_base64")


class Budget:
    """A shared budget of bytes; requests wait for their share in order of arrival."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._changed = threading.Condition()
        self._queue: list[object] = []

    @contextmanager
    def of(self, size: int, ends: float) -> Iterator[None]:
        """Hold ``size`` bytes for the duration of the block.

        Raises:
            Refused: they were not free in time.
        """
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                free = self._changed.wait_for(
                    lambda: self._queue[0] is ticket and self._left >= size, max(ends - time.monotonic(), 0)
                )
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
            if not free:
                raise timed_out("waiting for other requests", None)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()
