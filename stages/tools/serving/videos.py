"""Frames of the videos that requests send: decoded beside the server, each file once, within bounds of memory and time.

A stranger's file may hang a decoder, kill it, or ask for all memory there is. It is decoded in a process of its own that may be ended,
under a limit of memory, and frame after frame is made as small there as the model's processor makes it anyway: what comes back is small.
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
from dataclasses import dataclass
from pathlib import Path

from stages.domain.core.frames import Frames
from stages.lib.models.processor import shrink_of
from stages.lib.video.errors import VideoError
from stages.runtime.workers import IsolatedWorker, ItemFailure
from stages.tools.serving.decode import Wanted, load_bounded
from stages.tools.serving.files import OpenFile, too_large
from stages.tools.serving.limits import DECODER_BYTES, MAX_SLOW, QUICK, QUICK_S, RETRY_S, SECONDS, SLOW, VIDEO_PIXEL_BYTES
from stages.tools.serving.refusal import Refused

#: Characters of base64 that are read at once; they come in fours.
_PIECE = 4 << 18


@dataclass(frozen=True)
class Job:
    """A file to decode: where another process finds it, how messages call it, how many frames are shown, and the folder of the model."""

    path: Path
    name: str
    frames: int
    model: Path


def decode(job: Job) -> Frames:
    """Its frames, as small as the model's processor makes them.

    Raises:
        VideoError: it cannot be read, or takes more memory than it may (``too-large``).
    """
    import torch

    # What its parent holds is not this process's to use: threads did not come along.
    torch.set_num_threads(1)
    try:
        return load_bounded(Wanted(job.path, job.frames, VIDEO_PIXEL_BYTES), shrink_of(job.model))
    except VideoError as error:
        if _is_short_of_memory(error):
            raise hungry(job.name) from error
        raise VideoError(error.reason, error.detail.replace(job.path.name, job.name, 1)) from error
    except (MemoryError, RuntimeError) as error:
        if _is_short_of_memory(error):
            raise hungry(job.name) from error
        raise


def _is_short_of_memory(error: BaseException) -> bool:
    # libav and torch have no MemoryError; both say it in their words.
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("Cannot allocate memory", "can't allocate memory", "not enough memory")
    )


def hungry(name: str) -> VideoError:
    """What is said of a video that takes more memory than it may."""
    return VideoError("too-large", f"{name}: needs more memory than {DECODER_BYTES >> 20} MB to decode; scale the video down")


class Decoders:
    """Decoding processes for all requests. What is not done soon is begun again where nobody else waits for it, so that one slow file
    keeps no other client waiting.

    Args:
        model: the folder of the model.
        frames: how many frames of a video it is shown.
        limit_s: how long one video may take.
    """

    def __init__(self, model: Path, frames: int, limit_s: float) -> None:
        self._model, self._frames, self._limit_s = model, frames, limit_s
        self._quick = IsolatedWorker(decode, processes=QUICK, memory_bytes=DECODER_BYTES)
        self._slow = IsolatedWorker(decode, processes=SLOW, memory_bytes=DECODER_BYTES)
        self._places = threading.BoundedSemaphore(MAX_SLOW)

    def __call__(self, file: OpenFile, field: str, ends: float) -> Frames:
        """The frames of a file.

        Raises:
            Refused: it cannot be read, takes too long, or too many such files wait already.
        """
        # Another process reaches an open file by this name; what path it once had plays no part.
        job = Job(Path(f"/proc/{os.getpid()}/fd/{file.descriptor}"), file.name, self._frames, self._model)
        try:
            made = self._quick(job, min(QUICK_S, self._limit_s), max(ends - time.monotonic(), 0.001))
            if isinstance(made, ItemFailure) and made.reason == "timeout" and self._limit_s > QUICK_S:
                if not self._places.acquire(blocking=False):
                    raise Refused(503, f"{field}: {MAX_SLOW} videos that take long wait already; try again in {RETRY_S} s")
                try:
                    made = self._slow(job, self._limit_s, max(ends - time.monotonic(), 0.001))
                finally:
                    self._places.release()
        except VideoError as error:
            raise Refused(400, f"{field}: {error}; send a video that ffmpeg can read") from error
        if isinstance(made, ItemFailure):
            if made.reason == "timeout":
                raise late(f"decoding {field}", self._limit_s)
            if made.reason == "waiting":
                raise late(f"decoding {field}, with what came before it", None)
            raise Refused(400, f"{field}: {file.name}: {made.detail}; send a video that ffmpeg can read")
        return made

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._quick.close()
        self._slow.close()


def late(what: str, limit_s: float | None) -> Refused:
    """What is said when the time is over. ``limit_s``: the limit, where it is not the request's."""
    within = "in the time of the request" if limit_s is None else f"within {limit_s:g} s"
    return Refused(504, f"{what}: not done {within} ({SECONDS}); send a shorter video or fewer questions")


def keep_base64(text: bytes, left_bytes: int) -> OpenFile:
    """The bytes of a video sent as base64, as a file without a name: it is gone with its descriptor, however this process ends.

    Args:
        text: standard base64, without line breaks.
        left_bytes: how many bytes may come of it.

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
    """So many bytes for all; who cannot have theirs waits, and who waits longest is first."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._changed = threading.Condition()
        self._queue: list[object] = []

    @contextmanager
    def of(self, size: int, ends: float) -> Iterator[None]:
        """Hold ``size`` bytes for the block.

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
                raise late("waiting for other requests", None)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()
