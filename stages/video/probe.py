"""What a video file holds, read from its packets: about 10 ms a clip, and the first frame.

The header of a file lies more often than its packets, and decord trusts the header. Every circumstance under which decord
is known to return other frames than were asked for is listed in :attr:`Probe.hazards`; a file without any is decord's.
"""

from __future__ import annotations

import re
from bisect import bisect_right
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
        start: presentation time of the first frame in the units of the file; None where it does not say when frames are shown.
        slots: where frame i is not shown at i / rate (a variable frame rate): the number of the frame on display in the middle of
            each slot of a clock of ``rate``, which is then a whole number; else None.
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
    start: int | None
    slots: tuple[int, ...] | None
    hazards: tuple[str, ...]

    @property
    def decord_safe(self) -> bool:
        return not self.hazards

    @property
    def variable_rate(self) -> bool:
        return self.slots is not None


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first moving picture stream (cover art is none), to be decoded by one thread.

    Only local files of known containers are opened: a playlist named ``.mp4`` is not followed.

    Raises:
        VideoError: ``missing-file``, ``empty-file``, ``not-a-video``, ``no-video-stream``, or ``damaged``, also where
            libav fails inside the ``with`` block.
    """
    # What goes wrong is raised; libav's own remarks would only tear a progress bar.
    av.logging.set_level(av.logging.PANIC)
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
        if not (container.streams.video or container.streams.audio):
            raise VideoError("damaged", f"{path.name}: it opens, but what says which streams it holds is missing or cut off")
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
        parameters_change, recovery_points = False, False
        # Only a decoded frame tells how it is rotated, and that takes as long as all the rest.
        upright, first = container.format.name in NEVER_TURNED or _says_upright(path), None
        for packet in container.demux(stream):
            if not upright and first is None:
                first = next(iter(packet.decode()), None)
            if not packet.size:
                continue
            facts.append(_facts(packet))
            parameters_change |= packet.has_sidedata("new_extradata")
            if packet.is_keyframe and (kinds := _units(bytes(packet), context.name, extradata)):
                parameters_change |= any(kind == "new-parameters" for kind in kinds)
                recovery_points |= context.name == "h264" and "idr" not in kinds
        index = _index(facts)
        if not index.shown:
            raise VideoError("no-frames", f"{path.name}: the video stream shows no frame")
        rate = _rate(stream, index)
        if rate is None:
            raise VideoError("no-frame-rate", f"{path.name}: {index.shown} frame(s), and neither header nor timestamps give a rate")
        # A stream that opening it could not make out has no pixel format (to ask PyAV for its name would end the process).
        if (first is None and not upright) or context.format is None:
            raise VideoError("damaged", f"{path.name}: not one frame can be decoded")
        # libav counts counter-clockwise.
        rotation = 0 if first is None else int(round(-first.rotation / 90) * 90 % 360)
        turned = rotation in (90, 270)
        step = 1 / (rate * stream.time_base)
        span = Fraction(0) if index.times is None else (index.times[-1] - index.times[0]) * stream.time_base
        duration_s = index.shown / rate if index.times is None else span + 1 / rate
        slots = None
        if index.times is not None and _spread(index.times) > RATE_TOLERANCE * step:
            rate = Fraction(max(1, round(rate)))
            slots = _slots(index.times, stream.time_base, rate, duration_s)
        hazards = {
            "container": "mp4" not in container.format.name.split(","),
            "codec": context.name not in ("h264", "hevc"),
            "pixel-format": context.pix_fmt not in ("yuv420p", "yuvj420p"),
            "no-timestamps": index.times is None,
            "late-start": index.times is not None and index.times[0] != 0,
            "discarded-frames": index.shown != len(facts),
            "open-gop": _leading_frames(facts),
            "no-key-frame-first": not facts[0].key,
            # Decoding may start there, but the picture is whole only some frames later (periodic intra refresh).
            "recovery-points": recovery_points,
            "frame-count": stream.frames not in (0, len(facts)),
            "resolution-change": parameters_change,
            "rotation": rotation != 0,
        }
        return Probe(
            codec=context.name,
            pixel_format=str(context.pix_fmt),
            width=context.height if turned else context.width,
            height=context.width if turned else context.height,
            rate=rate,
            frames=index.shown,
            duration_s=duration_s,
            rotation=rotation,
            start=index.times[0] if index.times else None,
            slots=slots,
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


def _slots(times: tuple[int, ...], time_base: Fraction, rate: Fraction, duration_s: Fraction) -> tuple[int, ...]:
    """The frame on display in the middle of each slot of a clock of ``rate`` that starts with the first frame."""
    # Half a slot is 1 / (2 rate) seconds; times count from the first frame, in units of the time base.
    half = 1 / (2 * rate * time_base)
    middles = (times[0] + (2 * slot + 1) * half for slot in range(max(1, int(duration_s * rate))))
    return tuple(bisect_right(times, middle) - 1 for middle in middles)


def _rate(stream: Any, index: PacketIndex) -> Fraction | None:
    """The header's rate where the timestamps bear it out, else the timestamps' own."""
    stated = [Fraction(rate) for rate in (stream.guessed_rate, stream.average_rate) if rate]
    if index.times is None or len(index.times) < 2:
        return stated[0] if stated else None
    measured = Fraction(len(index.times) - 1) / ((index.times[-1] - index.times[0]) * stream.time_base)
    agreeing = [rate for rate in stated if abs(rate / measured - 1) < Fraction(1, 100)]
    return agreeing[0] if agreeing else measured.limit_denominator(100_000)


def _units(packet: bytes, codec: str, extradata: bytes) -> list[str]:
    """What a key frame of an MP4 or Matroska file is made of, as far as it matters here; empty where that cannot be told.

    ``new-parameters``: a sequence parameter set that the header does not know, so that the stream may change its size midway; ``idr``: a
    picture behind which nothing refers to what was before; ``other``. Layouts: ISO/IEC 14496-15, avcC and hvcC; types: ITU-T H.264,
    table 7-1, and H.265, table 7-1.
    """
    idr: tuple[int, ...]
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        prefix, shift, mask, sps, idr = (extradata[4] & 3) + 1, 0, 0x1F, 7, (5,)
    elif codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        prefix, shift, mask, sps, idr = (extradata[21] & 3) + 1, 1, 0x3F, 33, (19, 20)
    else:
        return []
    kinds = []
    at = 0
    while at + prefix < len(packet):
        size = int.from_bytes(packet[at : at + prefix], "big")
        kind = packet[at + prefix] >> shift & mask
        if kind == sps and packet[at + prefix : at + prefix + size] not in extradata:
            kinds.append("new-parameters")
        else:
            kinds.append("idr" if kind in idr else "other")
        at += prefix + size
    return kinds


#: Containers that have no place for a rotation.
NEVER_TURNED = frozenset(("mpegts", "mpeg", "avi", "flv", "asf", "ogg"))
#: The matrix of a track header that turns nothing (ISO/IEC 14496-12, 8.3.2), and where it stands behind the box's type, by version.
_IDENTITY = b"".join(number.to_bytes(4, "big") for number in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
_MATRIX_AT = {0: 44, 1: 56}


def _says_upright(path: Path) -> bool:
    """Whether this is an MP4 file all of whose track headers say that nothing is turned; False where that cannot be told."""
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"moov":
                return _all_upright(file.read(size - 8))
            if size == 1:
                size = int.from_bytes(file.read(8), "big") - 8
            if size < 8:
                return False
            file.seek(size - 8, 1)
    return False


def _all_upright(moov: bytes) -> bool:
    headers = list(re.finditer(b"tkhd", moov))
    for header in headers:
        at = header.start() + _MATRIX_AT.get(moov[header.end()], 0) if header.end() < len(moov) else 0
        if moov[at : at + len(_IDENTITY)] != _IDENTITY:
            return False
    return bool(headers)


def _opens_like_a_video(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] in (b"\x1aE\xdf\xa3", b"RIFF")


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
