"""Validation of a file or frame folder by decoding all of it, with a look at every decoded frame:
one decode for both."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.lib.video.encoder import TIMEOUT_S, Decoded, read_decoded, validate_command
from stages.lib.video.errors import VideoError
from stages.lib.video.folders import pictures_in

#: Side of the pictures that are looked at, in pixels; how many of them are handed on at once.
SMALL_PX, AT_ONCE = 64, 32
_BYTES = 3 * SMALL_PX**2


def validate_watched(path: Path, see: Callable[[npt.NDArray[np.uint8]], None], timeout_s: float = TIMEOUT_S) -> Decoded:
    """Do what :func:`stages.lib.video.encoder.validate` does, and hand on every frame as it is
    decoded.

    Args:
        see: is given the frames in the decoder's output order, scaled to uint8 BGR
            [n, SMALL_PX, SMALL_PX, 3], with some n a call.

    Raises:
        VideoError: ``damaged`` with ffmpeg's message, or ``timeout``.
        FfmpegMissing: there is no ffmpeg.
    """
    # Times and messages go to files: a pipe that nobody reads would fill up and stop the decoder.
    with tempfile.TemporaryFile() as times, tempfile.TemporaryFile() as messages:
        command = validate_command(path, f"pipe:{times.fileno()}", SMALL_PX)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages, pass_fds=(times.fileno(),)
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(timeout_s, end)
        clock.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                while block := process.stdout.read(AT_ONCE * _BYTES):
                    whole = np.frombuffer(block, np.uint8, len(block) // _BYTES * _BYTES)
                    see(whole.reshape(-1, SMALL_PX, SMALL_PX, 3))
            status = process.wait()
        finally:
            clock.cancel()
            process.kill()
            process.wait()
        if late.is_set():
            raise VideoError("timeout", f"{path.name}: decoding did not end within {timeout_s:g} s")
        times.seek(0)
        messages.seek(0)
        return read_decoded(path, subprocess.CompletedProcess(command, status, times.read(), messages.read()))


def validate_folder_watched(folder: Path, see: Callable[[npt.NDArray[np.uint8]], None]) -> None:
    """Do what :func:`stages.lib.video.folders.validate_folder` does with a whole frame folder, and
    hand on every picture as :func:`validate_watched` does.

    Raises:
        VideoError: a picture does not decode or has another size than the first (``damaged``).
    """
    for pixels in pictures_in(folder):
        small = Image.fromarray(pixels).resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX)
        see(np.ascontiguousarray(np.asarray(small)[None, :, :, ::-1]))
