"""Opening of a video file through PyAV, and decoding of its packets in the decoder's order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error

from stages.lib.video.encoder import CONTAINERS
from stages.lib.video.errors import VideoError


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file as PyAV's container and its first video stream other than cover art, decoded by
    one thread.

    Only local files of known containers are opened: a playlist named ``.mp4`` is not followed.

    Raises:
        VideoError: ``missing-file``, ``empty-file``, ``not-a-video``, ``no-video-stream``, or
            ``damaged``, also if libav fails inside the ``with`` block.
    """
    # Faults are raised as errors; libav's own messages would only break a progress bar.
    av.logging.set_level(av.logging.PANIC)
    if not path.is_file():
        raise VideoError("missing-file", f"{path.name}: no such file")
    if path.stat().st_size == 0:
        raise VideoError("empty-file", f"{path.name}: holds no byte")
    try:
        # A title that is not UTF-8 is not a fault of the video.
        container = av.open(
            str(path.absolute()),
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS},
        )
    except (av.error.FFmpegError, ValueError) as error:
        reason, finding = (
            ("damaged", "its beginning is a video's, but it cannot be opened")
            if _opens_like_a_video(path)
            else ("not-a-video", "no known video format")
        )
        raise VideoError(reason, f"{path.name}: {finding} ({_text(error)})") from error
    with container:
        if not (container.streams.video or container.streams.audio):
            raise VideoError(
                "damaged", f"{path.name}: it opens, but what says which streams it holds is missing or cut off"
            )
        streams = moving_pictures(container)
        if not streams:
            raise VideoError("no-video-stream", f"{path.name}: holds sound or still pictures only")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(
                "unsupported-codec", f"{path.name}: no decoder for its video stream; re-encode it as H.264"
            )
        stream.codec_context.thread_count = 1
        try:
            yield container, stream
        except av.error.FFmpegError as error:
            raise VideoError("damaged", f"{path.name}: {_text(error)}") from error


def stated_s(path: Path) -> float:
    """Duration that a file's header states, in seconds, for an estimate; 0 if it states none, or
    cannot be opened (whoever decodes it is told why)."""
    try:
        with open_video(path) as (container, _):
            return float(max(0, container.duration or 0) / av.time_base)
    except VideoError:
        return 0.0


def moving_pictures(container: Any) -> list[Any]:
    """List the video streams other than cover art."""
    return [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Iterate over frames in the decoder's order. Packets before the first key frame may fail to
    decode."""
    begun = False
    for packet in container.demux(stream):
        begun = begun or packet.is_keyframe
        yield from decode(packet, begun)


def decode(packet: Any, begun: bool) -> list[Any]:
    """Decode a packet to the frames that it completes; a failure before the first key frame gives
    none."""
    try:
        frames: list[Any] = packet.decode()
    except av.error.InvalidDataError:
        if begun:
            raise
        return []
    return frames


def _opens_like_a_video(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF")


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
