"""Encoding of frames as H.264, and validation of a file by decoding all of it. ffmpeg-python builds
every command.

ffmpeg-python has no time-out of its own, so commands are compiled and run here, as a list and never
through a shell.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import ffmpeg
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from stages.lib.video.errors import FfmpegMissing, VideoError
from stages.runtime import paths

#: More than any reasonable clip needs: a stuck encoder or decoder ends with an error instead of a
#: hang.
TIMEOUT_S = 600.0

#: Containers that may be opened; playlists and concat scripts, which name other files, may not.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,h264,hevc"


def ffmpeg_binary() -> str:
    """Path of the ffmpeg to run: ``VIDBRIDGE_FFMPEG`` if set, else the one of the locked
    imageio-ffmpeg.

    A system ffmpeg is never used silently: the generated corpus must have the same bytes on every
    machine.

    Raises:
        FfmpegMissing: the named file does not exist or is not executable, or imageio-ffmpeg has
            none for this platform.
    """
    named = os.environ.get("VIDBRIDGE_FFMPEG")
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise FfmpegMissing(
                "VIDBRIDGE_FFMPEG",
                f"{named!r} is not an executable file",
                "correct it, or unset it to use the locked ffmpeg",
            )
        return str(Path(named).absolute())
    package = Path(imageio_ffmpeg.__file__).parent
    try:
        binary: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise FfmpegMissing(
            "ffmpeg", f"imageio-ffmpeg has none for this platform ({error})", "set VIDBRIDGE_FFMPEG to one"
        ) from error
    if package not in Path(binary).parents:
        raise FfmpegMissing(
            "ffmpeg",
            f"imageio-ffmpeg offers {binary!r}, which is not its own",
            "reinstall imageio-ffmpeg, or set VIDBRIDGE_FFMPEG to that file to use it knowingly",
        )
    return binary


def encode_command(width: int, height: int, rate: Fraction, path: Path, crf: int) -> list[str]:
    """Build the command of one deterministic encode: raw RGB frames on stdin, an H.264 MP4 at
    ``path``.

    Single-threaded and bit-exact, without metadata, so the same frames give the same bytes. Every
    GOP is closed and at most two seconds long, so every reader can seek.
    """
    source = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=str(rate))
    output = source.output(
        str(path.absolute()),
        format="mp4",
        vcodec="libx264",
        preset="veryfast",
        crf=crf,
        pix_fmt="yuv420p",
        g=max(1, round(2 * rate)),
        threads=1,
        map_metadata=-1,
        fflags="+bitexact",
        movflags="+faststart",
        # The scaler's SIMD paths differ between processors unless it runs in exact mode.
        sws_flags="bicubic+accurate_rnd+full_chroma_int+bitexact",
        **{"flags:v": "+bitexact+cgop", "x264-params": "open-gop=0"},
    )
    command: list[str] = output.global_args("-hide_banner", "-loglevel", "error").compile(
        cmd=ffmpeg_binary(), overwrite_output=True
    )
    return command


def encode(
    frames: npt.NDArray[np.uint8] | Iterable[npt.NDArray[np.uint8]],
    rate: Fraction,
    path: Path,
    crf: int,
    timeout_s: float = TIMEOUT_S,
) -> list[str]:
    """Write frames as an H.264 MP4 (yuv420p, closed GOP); the same input gives the same bytes.

    Args:
        frames: uint8 RGB, [T, H, W, 3] or T arrays [H, W, 3]; H and W even.
        rate: frames per second.
        path: the file to write; an existing file is replaced.
        crf: constant rate factor of x264, 0 (lossless) to 51.

    Returns:
        The command that ran, as ffmpeg-python built it.

    Raises:
        ValueError: no frames, a wrong shape, or an odd size.
        VideoError: ``encode-failed``, with ffmpeg's message.
        OSError: the disk is full (``ENOSPC``).
        FfmpegMissing: there is no ffmpeg.
    """
    array = np.asarray(frames if isinstance(frames, np.ndarray) else list(frames))
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not len(array):
        raise ValueError(f"frames: shape {array.shape}, {array.dtype}; need uint8 [T, H, W, 3] with T >= 1")
    _, height, width, _ = array.shape
    _check_even(width, height)
    command = encode_command(width, height, rate, path, crf)
    try:
        done = run_ffmpeg(command, timeout_s, stdin=np.ascontiguousarray(array).tobytes())
    except subprocess.TimeoutExpired as error:
        remove_partial(path)
        raise VideoError("encode-failed", f"{path.name}: ffmpeg did not end within {timeout_s:g} s") from error
    if done.returncode:
        remove_partial(path)
        raise _encode_failure(path, done.stderr)
    return command


def encode_stream(
    frames: Iterable[npt.NDArray[np.uint8]], width: int, height: int, rate: Fraction, path: Path, crf: int
) -> None:
    """Encode as :func:`encode` does, for videos that may not fit into memory: ``frames`` are chunks
    [n, height, width, 3]; n may differ.

    ``path`` appears complete or not at all.

    Raises:
        ValueError, VideoError, OSError, FfmpegMissing: as :func:`encode`.
    """
    _check_even(width, height)
    unfinished = path.with_suffix(paths.UNFINISHED)
    command = encode_command(width, height, rate, unfinished, crf)
    with tempfile.TemporaryFile() as messages:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages)
        except FileNotFoundError as error:
            raise _missing(command) from error
        try:
            assert process.stdin is not None
            # A broken pipe means that ffmpeg has ended; its messages give the reason.
            with suppress(BrokenPipeError), process.stdin:
                for chunk in frames:
                    process.stdin.write(np.ascontiguousarray(chunk).tobytes())
            status = process.wait(TIMEOUT_S)
        except BaseException:
            process.kill()
            process.wait()
            remove_partial(unfinished)
            raise
        if status:
            remove_partial(unfinished)
            messages.seek(0)
            raise _encode_failure(path, messages.read())
    unfinished.replace(path)


_INTERLACED = b"vidbridge.interlaced=1"
#: Chain of filters that prints it at the first interlaced frame; it costs nothing, since frames are
#: passed on by reference.
_LOOK = (
    "select=not(eq(interlace_type\\,PROGRESSIVE))*eq(selected_n\\,0),metadata=add:vidbridge.interlaced:1,"
    "metadata=print:file=pipe\\\\:2,nullsink"
)


def validate_command(path: Path, times: str = "pipe:1", small_px: int | None = None) -> list[str]:
    """Build the command of a whole-file decode that stops at the first error, prints each frame's
    time to ``times``, and :data:`_INTERLACED` to standard error if a frame is interlaced; with
    ``small_px``, it also writes each frame to standard output, as BGR of that width and height."""
    source = ffmpeg.input(str(path.absolute()), protocol_whitelist="file,pipe", format_whitelist=CONTAINERS, threads=1)
    # V, not v: cover art is not a moving picture, and may be the first stream.
    # A frame without metadata would not be printed.
    printed = (
        source["V:0"]
        .filter("metadata", mode="add", key="frame", value="1")
        .filter("metadata", mode="print", file=times)
    )
    if small_px is None:
        output = printed.output("-", format="null", fps_mode="passthrough", copyts=None)
    else:
        scaled = printed.filter("scale", small_px, small_px, flags="area+accurate_rnd+full_chroma_int+bitexact")
        output = scaled.output("pipe:1", format="rawvideo", pix_fmt="bgr24", fps_mode="passthrough", copyts=None)
    command: list[str] = output.global_args(
        "-hide_banner", "-nostdin", "-loglevel", "error", "-nostats", "-xerror", "-filter_complex_threads", "1"
    ).compile(cmd=ffmpeg_binary())
    # ffmpeg-python has no branch that ends in a sink.
    graph = command.index("-filter_complex") + 1
    command[graph] = f"[0:V:0]split[all][looked];[looked]{_LOOK};{command[graph].replace('[0:V:0]', '[all]')}"
    return command


class Decoded(NamedTuple):
    """Result of decoding a whole file.

    ``times``: each frame's presentation time, in units of the file, in the decoder's output order;
    ffmpeg's guess, or None, where the file does not store it, or stores it in another order.
    ``interlaced``: some frame holds the lines of two moments.
    """

    times: tuple[int | None, ...]
    interlaced: bool


def validate(path: Path, timeout_s: float = TIMEOUT_S) -> Decoded:
    """Decode the whole file.

    Raises:
        VideoError: ``damaged`` with ffmpeg's message, or ``timeout``.
        FfmpegMissing: there is no ffmpeg.
    """
    try:
        done = run_ffmpeg(validate_command(path), timeout_s)
    except subprocess.TimeoutExpired as error:
        raise VideoError("timeout", f"{path.name}: decoding did not end within {timeout_s:g} s") from error
    return read_decoded(path, done)


def read_decoded(path: Path, done: subprocess.CompletedProcess[bytes]) -> Decoded:
    """Parse what a command of :func:`validate_command` printed; raises as :func:`validate`."""
    times = tuple(_time(line) for line in done.stdout.splitlines() if line.startswith(b"frame:"))
    messages = [line for line in done.stderr.splitlines() if not line.startswith((b"frame:", _INTERLACED))]
    if done.returncode or not times:
        reason = last_lines(b"\n".join(messages)) or "no frame could be decoded"
        raise VideoError("damaged", f"{path.name}: {reason}")
    return Decoded(times, _INTERLACED in done.stderr)


def _time(line: bytes) -> int | None:
    """Parse the time of a line ``frame:0    pts:512     pts_time:0.04``."""
    pts = line.partition(b" pts:")[2].split()[0]
    return int(pts) if pts.lstrip(b"-").isdigit() else None


def _check_even(width: int, height: int) -> None:
    if width % 2 or height % 2:
        raise ValueError(
            f"frames: {width}x{height}; H.264 in yuv420p needs an even width and height, so crop or pad by one pixel"
        )


def run_ffmpeg(command: list[str], timeout_s: float, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command of ffmpeg to its end.

    Raises:
        FfmpegMissing: there is no ffmpeg.
        subprocess.TimeoutExpired: it did not end in time, and was ended.
    """
    try:
        if stdin is None:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
            )
        return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise _missing(command) from error


def _missing(command: list[str]) -> FfmpegMissing:
    return FfmpegMissing(
        "ffmpeg", f"{command[0]!r} does not exist", "set VIDBRIDGE_FFMPEG, or reinstall imageio-ffmpeg"
    )


def _encode_failure(path: Path, stderr: bytes) -> OSError | VideoError:
    """Build the error to raise if ffmpeg could not write ``path``: a full disk is not a fault of
    the frames."""
    message = last_lines(stderr)
    if "No space left on device" in message:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return VideoError("encode-failed", f"{path.name}: {message}")


def last_lines(stderr: bytes) -> str:
    """Quote the last different lines: they name the cause, and a damaged file can repeat one
    message ten thousand times."""
    lines = dict.fromkeys(line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip())
    return " | ".join(list(lines)[-3:])


def remove_partial(path: Path) -> None:
    """Remove a file that is not complete, so that it is not mistaken for a clip; a device or pipe
    named as output stays."""
    if path.is_file():
        path.unlink()
