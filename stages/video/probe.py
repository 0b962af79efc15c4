"""What a video file holds, read from its packets: about 10 ms a clip, and the first frame.

The header of a file lies more often than its packets, and decord trusts the header. Every circumstance under which decord
is known to return other frames than were asked for is listed in :attr:`Probe.hazards`; a file without any is decord's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.error

from stages.video.encoder import CONTAINERS
from stages.video.errors import VideoError

#: A file whose frame distances differ by more than this share of a frame has a variable rate (Matroska rounds to 1 ms).
RATE_TOLERANCE = Fraction(1, 4)


@dataclass(frozen=True)
class PacketIndex:
    """Presentation times of the frames that are shown, in order, and of those that a decoder can start at.

    ``times`` is None where the file does not say when its frames are shown: such a file can only be read in sequence.
    """

    times: tuple[int, ...] | None
    keys: tuple[int, ...]
    shown: int


@dataclass(frozen=True)
class Probe:
    """What a file holds.

    Attributes:
        codec, pixel_format: as ffmpeg names them.
        width, height: of a frame as it is shown, rotation applied.
        rate: frames a second.
        frames: how many are shown.
        duration_s: from the first frame's start to the last one's end.
        rotation: degrees clockwise that a player turns the stored frames by: 0, 90, 180 or 270.
        variable_rate: frame i is not shown at i / rate.
        hazards: slugs, why decord must not read the file.
    """

    codec: str
    pixel_format: str
    width: int
    height: int
    rate: Fraction
    frames: int
    duration_s: Fraction
    rotation: int
    variable_rate: bool
    hazards: tuple[str, ...]

    @property
    def decord_safe(self) -> bool:
        return not self.hazards


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first moving picture stream (cover art is none), to be decoded by one thread.

    Only local files of known containers are opened: a playlist named ``.mp4`` is not followed.

    Raises:
        VideoError: ``missing-file``, ``empty-file``, ``not-a-video``, ``no-video-stream``, or ``damaged``, also where
            libav fails inside the ``with`` block.
    """
    if not path.is_file():
        raise VideoError("missing-file", f"{path.name}: no such file")
    if path.stat().st_size == 0:
        raise VideoError("empty-file", f"{path.name}: holds no byte")
    try:
        container = av.open(str(path.absolute()), options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS})
    except (av.error.FFmpegError, ValueError) as error:
        known = _opens_like_a_video(path)
        reason, what = ("damaged", "its beginning is a video's") if known else ("not-a-video", "no known video format")
        raise VideoError(reason, f"{path.name}: {what}, but it cannot be opened ({_text(error)})") from error
    with container:
        if not len(container.streams):
            raise VideoError("damaged", f"{path.name}: it opens, but what says which streams it holds is missing")
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise VideoError("no-video-stream", f"{path.name}: holds sound or still pictures only")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError("unsupported-codec", f"{path.name}: no decoder for its video stream; re-encode it as H.264")
        stream.codec_context.thread_count = 1
        try:
            yield container, stream
        except av.error.FFmpegError as error:
            raise VideoError("damaged", f"{path.name}: {_text(error)}") from error


def packet_index(container: Any, stream: Any) -> PacketIndex:
    """The times of all packets that are shown; the container is at its end afterwards."""
    return _index([_facts(packet) for packet in container.demux(stream) if packet.size])


def probe(path: Path) -> Probe:
    """Read what the file holds from its header and its packets.

    Raises:
        VideoError: the file is no readable video; see :func:`open_video`, and ``no-frames``, ``no-frame-rate``.
    """
    with open_video(path) as (container, stream):
        context = stream.codec_context
        extradata = bytes(context.extradata or b"")
        facts: list[_Packet] = []
        parameters_change, first = False, None
        for packet in container.demux(stream):
            if first is None:
                # Only a decoded frame tells how it is rotated, so as many packets are decoded as the first one takes.
                first = next(iter(packet.decode()), None)
            if not packet.size:
                continue
            facts.append(_facts(packet))
            parameters_change |= packet.has_sidedata("new_extradata")
            if packet.is_keyframe and not parameters_change:
                parameters_change = _brings_new_parameters(bytes(packet), context.name, extradata)
        index = _index(facts)
        if not index.shown:
            raise VideoError("no-frames", f"{path.name}: the video stream shows no frame")
        rate = _rate(stream, index)
        if rate is None:
            raise VideoError("no-frame-rate", f"{path.name}: {index.shown} frame(s), and neither header nor timestamps give a rate")
        if first is None:
            raise VideoError("damaged", f"{path.name}: not one frame can be decoded")
        # libav counts counter-clockwise.
        rotation = int(round(-first.rotation / 90) * 90 % 360)
        turned = rotation in (90, 270)
        step = 1 / (rate * stream.time_base)
        variable = index.times is not None and _spread(index.times) > RATE_TOLERANCE * step
        hazards = {
            "container": "mp4" not in container.format.name.split(","),
            "codec": context.name not in ("h264", "hevc"),
            "pixel-format": context.pix_fmt not in ("yuv420p", "yuvj420p"),
            "no-timestamps": index.times is None,
            "late-start": index.times is not None and index.times[0] != 0,
            "discarded-frames": index.shown != len(facts),
            "open-gop": _leading_frames(facts),
            "no-key-frame-first": not facts[0].key,
            "frame-count": stream.frames not in (0, len(facts)),
            "resolution-change": parameters_change,
            "rotation": rotation != 0,
        }
        span = Fraction(0) if index.times is None else (index.times[-1] - index.times[0]) * stream.time_base
        return Probe(
            codec=context.name,
            pixel_format=str(context.pix_fmt),
            width=context.height if turned else context.width,
            height=context.width if turned else context.height,
            rate=rate,
            frames=index.shown,
            duration_s=index.shown / rate if index.times is None else span + 1 / rate,
            rotation=rotation,
            variable_rate=variable,
            hazards=tuple(slug for slug, found in hazards.items() if found),
        )


@dataclass(frozen=True)
class _Packet:
    pts: int | None
    key: bool
    discard: bool


def _facts(packet: Any) -> _Packet:
    return _Packet(packet.pts, packet.is_keyframe, packet.is_discard)


def _index(facts: list[_Packet]) -> PacketIndex:
    shown = [packet for packet in facts if not packet.discard]
    times = sorted(packet.pts for packet in shown if packet.pts is not None)
    usable = len(times) == len(shown) == len(set(times))
    keys = tuple(sorted(packet.pts for packet in facts if packet.key and packet.pts is not None))
    return PacketIndex(tuple(times) if usable and times else None, keys, len(shown))


def _leading_frames(facts: list[_Packet]) -> bool:
    """Whether a frame is stored after a key frame but shown before it: the mark of an open GOP."""
    key: int | None = None
    for packet in facts:
        if packet.key:
            key = packet.pts
        elif key is not None and packet.pts is not None and packet.pts < key:
            return True
    return False


def _spread(times: tuple[int, ...]) -> int:
    steps = [later - earlier for earlier, later in pairwise(times)]
    return max(steps) - min(steps) if steps else 0


def _rate(stream: Any, index: PacketIndex) -> Fraction | None:
    """The header's rate where the timestamps bear it out, else the timestamps' own."""
    stated = [Fraction(rate) for rate in (stream.guessed_rate, stream.average_rate) if rate]
    if index.times is None or len(index.times) < 2:
        return stated[0] if stated else None
    measured = Fraction(len(index.times) - 1) / ((index.times[-1] - index.times[0]) * stream.time_base)
    agreeing = [rate for rate in stated if abs(rate / measured - 1) < Fraction(1, 100)]
    return agreeing[0] if agreeing else measured.limit_denominator(100_000)


def _brings_new_parameters(packet: bytes, codec: str, extradata: bytes) -> bool:
    """Whether a key frame of an MP4 or Matroska file carries a sequence parameter set that the header does not know.

    Such a stream may change its size midway. Layouts: ISO/IEC 14496-15, avcC and hvcC.
    """
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        prefix, shift, mask, sps = (extradata[4] & 3) + 1, 0, 0x1F, 7
    elif codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        prefix, shift, mask, sps = (extradata[21] & 3) + 1, 1, 0x3F, 33
    else:
        return False
    at = 0
    while at + prefix < len(packet):
        size = int.from_bytes(packet[at : at + prefix], "big")
        unit = packet[at + prefix : at + prefix + size]
        if unit and unit[0] >> shift & mask == sps and unit not in extradata:
            return True
        at += prefix + size
    return False


def _opens_like_a_video(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF")


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
