"""Probe of video files by their packets and their first frame, in about 10 ms per clip.

A file's header is wrong more often than its packets, and decord trusts the header.
:attr:`Probe.hazards` lists every known reason why decord would return other frames than requested;
a file without hazards is safe for decord.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.error
import av.video.frame

from stages.lib.video.encoder import CONTAINERS
from stages.lib.video.errors import VideoError
from stages.lib.video.times import TYPED, WITHOUT_TIMES, Packet, PacketIndex, between, index_frames, index_packets

#: A file whose frame intervals differ by more than this share of a frame has a variable rate
#: (Matroska rounds to 1 ms).
RATE_TOLERANCE = Fraction(1, 4)
#: Invented times (derived from the storage order) that stay within this many frames of the header's
#: rate give way to it.
INVENTED_FRAMES = 2
#: The hazard that packets' times do not identify frames, so frames are counted in the decoder's
#: output order.
UNTRUSTED_TIMES = "untrusted-times"
_DISCARDS = (
    "its edit list leaves out frames by times that are not those at which they are shown; rewrite its times"
    " (ffmpeg -ignore_editlist 1), or re-encode it"
)
_INTRA = av.video.frame.PictureType.I


@dataclass(frozen=True)
class Probe:
    """Facts about a video file.

    Attributes:
        codec, pixel_format: as ffmpeg names them.
        width, height: size of a displayed frame, with rotation applied.
        rate: frames per second.
        frames: number of displayed frames.
        duration_s: seconds from the first frame's start to the last one's end.
        rotation: degrees clockwise by which a player turns the stored frames: 0, 90, 180 or 270.
        time_base: seconds per unit of the file's times.
        times: presentation time of each frame, in units of the time base, never decreasing; None if
            the file does not store them.
        variable_rate: True if presentation times are not i / rate. ``rate`` is then a whole number,
            that of a constant clock.
        starts_s: seconds from the start of the file, sound included, to the first frame. Players
            and annotations count from the file's start.
        dropped: number of frames stored before the first that decodes; ``frames`` does not count
            them.
        hazards: reasons why decord must not read the file, as slugs.
    """

    codec: str
    pixel_format: str
    width: int
    height: int
    rate: Fraction
    frames: int
    duration_s: Fraction
    rotation: int
    time_base: Fraction
    times: tuple[int, ...] | None
    variable_rate: bool
    starts_s: Fraction
    dropped: int
    hazards: tuple[str, ...]

    @property
    def decord_safe(self) -> bool:
        return not self.hazards

    @property
    def slots(self) -> int:
        """Number of slots of its constant clock of ``rate``; for a constant-rate file, its number
        of frames."""
        return max(1, int(self.duration_s * self.rate)) if self.variable_rate else self.frames

    def frame_at(self, slot: int) -> int:
        """Number of the frame displayed in the middle of a slot."""
        if not self.variable_rate or self.times is None:
            return slot
        # Half a slot is 1 / (2 rate) seconds; times count from the first frame, in units of the
        # time base.
        half = 1 / (2 * self.rate * self.time_base)
        return bisect_right(self.times, self.times[0] + (2 * slot + 1) * half) - 1


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


def moving_pictures(container: Any) -> list[Any]:
    """List the video streams other than cover art."""
    return [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]


def packet_index(path: Path) -> PacketIndex:
    """Index the times of all displayed frames, as :func:`probe` uses them."""
    with open_video(path) as (container, stream):
        scan = _PacketScan(container, stream)
        for packet in container.demux(stream):
            if packet.size:
                scan.take(packet)
        index = scan.index()
    return _from_first_frame(path, index, scan.packets) if scan.starts_amid() else index


def probe(path: Path, *, distrust: bool = False) -> Probe:
    """Read facts about a file from its header and its packets; all frames are decoded only if these
    do not determine their order.

    Args:
        distrust: the packets do not determine the order, as a full decode has revealed earlier.

    Raises:
        VideoError: the file is not a readable video; see :func:`open_video`, and ``no-frames``,
            ``no-frame-rate``, ``untrusted-times``.
    """
    with open_video(path) as (container, stream):
        context = stream.codec_context
        scan = _PacketScan(container, stream)
        # Only a decoded frame has the rotation, and decoding one takes as long as everything else.
        upright, first = container.format.name in NEVER_TURNED or _says_upright(path), None
        for packet in container.demux(stream):
            if not upright and first is None:
                first = next(
                    iter(decode(packet, packet.is_keyframe or bool(scan.packets and scan.packets[0].key))), None
                )
            if packet.size:
                scan.take(packet)
        index = scan.index()
        # A stream that libav could not identify has no pixel format (reading its name through PyAV
        # would crash the process).
        if index.shown and ((first is None and not upright) or context.format is None):
            raise VideoError("damaged", f"{path.name}: not one frame can be decoded")
        starts = index.times[0] if index.times is not None else stream.start_time
        if scan.starts_amid():
            index = _from_first_frame(path, index, scan.packets)
        if distrust:
            index = replace(index, ordered=False)
        if index.times is not None and not index.ordered and scan.has_times:
            if scan.discards:
                raise VideoError(UNTRUSTED_TIMES, f"{path.name}: {_DISCARDS}")
            index = index_frames(_decoded_times(path, index.first), index)
        if not index.shown:
            raise VideoError("no-frames", f"{path.name}: the video stream shows no frame")
        rate = _rate(stream, index)
        if rate is None:
            raise VideoError(
                "no-frame-rate", f"{path.name}: {index.shown} frame(s), and neither header nor timestamps give a rate"
            )
        # libav counts counter-clockwise.
        rotation = 0 if first is None else int(round(-first.rotation / 90) * 90 % 360)
        turned = rotation in (90, 270)
        step = 1 / (rate * stream.time_base)
        span = Fraction(0) if index.times is None else (index.times[-1] - index.times[0]) * stream.time_base
        duration_s = index.shown / rate if index.times is None else span + 1 / rate
        variable = index.even is not None and _spread(index.even) > RATE_TOLERANCE * step
        if variable and index.invented and (stated := _near(index.even, stream)) is not None:
            rate, duration_s, variable = stated, index.shown / stated, False
        if variable:
            rate = Fraction(max(1, round(rate)))
        times = index.times if variable else index.even
        hazards = {
            "container": "mp4" not in container.format.name.split(","),
            "codec": context.name not in ("h264", "hevc"),
            "pixel-format": context.pix_fmt not in ("yuv420p", "yuvj420p"),
            "no-timestamps": times is None,
            UNTRUSTED_TIMES: times is not None and not index.ordered,
            "late-start": times is not None and times[0] != 0,
            "discarded-frames": scan.discards,
            # decord uses the stream that libav ranks best, not the first.
            "several-streams": len(moving_pictures(container)) > 1,
            "open-gop": _leading_frames(scan.packets),
            "no-key-frame-first": not scan.packets[0].key,
            # Decoding may start there, but the picture is complete only some frames later (periodic
            # intra refresh).
            "recovery-points": scan.recovery_points,
            "frame-count": stream.frames not in (0, len(scan.packets)),
            "resolution-change": scan.parameters_change,
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
            time_base=Fraction(stream.time_base),
            times=times,
            variable_rate=variable,
            starts_s=_behind_the_start(container, stream, starts, times),
            dropped=index.dropped,
            hazards=tuple(slug for slug, is_found in hazards.items() if is_found),
        )


class _PacketScan:
    """Facts collected from the packets of a stream, one after the other."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.packets: list[Packet] = []
        self.parameters_change = self.recovery_points = False
        self._container, self._codec = container.format.name, stream.codec_context.name
        self._context = stream.codec_context
        self._extradata = bytes(stream.codec_context.extradata or b"")
        self._prefix = _length_bytes(self._codec, self._extradata)
        self._latest: int | None = None
        self._begun = self._between = self._doubtful = False

    def take(self, packet: Any) -> None:
        time, key = packet.pts, packet.is_keyframe
        self.packets.append(Packet(time, packet.dts, key, packet.is_discard))
        # Only key frames: checking every packet takes a third of this method's time, and other
        # packets bring no parameters.
        if key and packet.has_sidedata("new_extradata"):
            self.parameters_change = True
        if key and (kinds := _units(bytes(packet), self._codec, self._extradata)):
            self.parameters_change |= any(kind == "new-parameters" for kind in kinds)
            self.recovery_points |= self._codec == "h264" and "idr" not in kinds
        # Packets before the first key frame may lie between frames that are not in the file.
        self._begun |= key
        late = self._begun and time is not None and (self._latest is None or time > self._latest)
        if late:
            self._latest = time
        # A bidirectional frame is stored behind the two that it refers to, so its time must precede
        # the later one's; a time behind all contradicts that.
        if self._codec in TYPED and not key and (late or not self._between) and not self._doubtful:
            bidirectional = between(memoryview(packet), self._codec, self._prefix)
            self._between |= bidirectional
            self._doubtful = bidirectional and late

    @property
    def has_times(self) -> bool:
        """True if the container stores presentation times."""
        return WITHOUT_TIMES.isdisjoint(self._container.split(","))

    @property
    def discards(self) -> bool:
        return any(packet.discard for packet in self.packets)

    def index(self) -> PacketIndex:
        reorders = self._between if self._codec in TYPED else None if not self._context.has_b_frames else True
        return index_packets(self.packets, self._container, self._codec, reorders, self._doubtful)

    def starts_amid(self) -> bool:
        """True if frames may be stored before the first that decodes: the first packet is not a key
        frame, or its group has leading frames."""
        if not self.packets or not any(packet.key for packet in self.packets):
            return False
        second = next((at for at, packet in enumerate(self.packets) if at and packet.key), len(self.packets))
        return not self.packets[0].key or _leading_frames(self.packets[:second])


def _from_first_frame(path: Path, index: PacketIndex, packets: Sequence[Packet]) -> PacketIndex:
    """Drop leading frames that refer to frames outside the file, as in a recording that was cut at
    any point."""
    with open_video(path) as (container, stream):
        whole = (frame for frame in decoded(container, stream) if frame.pict_type == _INTRA and not frame.is_corrupt)
        first = next(whole, None)
    if first is None:
        raise VideoError("damaged", f"{path.name}: not one frame can be decoded")
    stored = [packet.pts for packet in packets if not packet.discard]
    return index.starting_at(first.pts, stored.index(first.pts)) if first.pts in stored else index


def _decoded_times(path: Path, first: int | None) -> list[int | None]:
    """Presentation times of all frames in the decoder's order, starting at the frame with time
    ``first``."""
    with open_video(path) as (container, stream):
        times = [frame.pts for frame in decoded(container, stream)]
    return times[times.index(first) :] if first in times else times


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


def _behind_the_start(container: Any, stream: Any, starts: int | None, times: tuple[int, ...] | None) -> Fraction:
    """Seconds from the start of playback, picture or sound, to the first frame.

    Args:
        starts: time of the first stored frame, even if it does not decode.
        times: times of the frames that decode.
    """
    if starts is None:
        return Fraction(0)
    at = starts if times is None else times[0]
    others = [
        other.start_time * other.time_base
        for other in (*container.streams.audio, *container.streams.video)
        if other is not stream
        and other.start_time is not None
        and not other.disposition & av.stream.Disposition.attached_pic
    ]
    return Fraction(at * stream.time_base - min([starts * stream.time_base, *others]))


def _leading_frames(packets: Sequence[Packet]) -> bool:
    """True if a frame is stored after a key frame but presented before it, which marks an open
    GOP."""
    key: int | None = None
    for packet in packets:
        if packet.key:
            key = packet.pts
        elif key is not None and packet.pts is not None and packet.pts < key:
            return True
    return False


def _spread(times: tuple[int, ...]) -> int:
    steps = [later - earlier for earlier, later in pairwise(times)]
    return max(steps) - min(steps) if steps else 0


def _near(times: tuple[int, ...] | None, stream: Any) -> Fraction | None:
    """Header's rate if every time is within :data:`INVENTED_FRAMES` of it; else None."""
    for stated in (stream.guessed_rate, stream.average_rate):
        if stated and times is not None:
            step = 1 / (Fraction(stated) * stream.time_base)
            if all(abs(time - times[0] - number * step) <= INVENTED_FRAMES * step for number, time in enumerate(times)):
                return Fraction(stated)
    return None


def _rate(stream: Any, index: PacketIndex) -> Fraction | None:
    """Header's rate if the timestamps confirm it, else the timestamps' own rate."""
    stated = [Fraction(rate) for rate in (stream.guessed_rate, stream.average_rate) if rate]
    if index.times is None or index.times[0] == index.times[-1]:
        return stated[0] if stated else None
    measured: Fraction = Fraction(len(index.times) - 1) / ((index.times[-1] - index.times[0]) * stream.time_base)
    agreeing = [rate for rate in stated if abs(rate / measured - 1) < Fraction(1, 100)]
    if agreeing:
        return agreeing[0]
    # The rate may be as low as one frame in two days.
    return measured.limit_denominator(100_000) or measured


def _units(packet: bytes, codec: str, extradata: bytes) -> list[str]:
    """Classify the units of a key frame of an MP4 or Matroska file; empty if its layout is unknown.

    ``new-parameters``: a sequence parameter set that is not in the header, so the stream may change
    its size midway; ``idr``: a picture after which nothing refers to earlier pictures; ``other``.
    Layouts: ISO/IEC 14496-15, avcC and hvcC; types: ITU-T H.264, table 7-1, and H.265, table 7-1.
    """
    prefix = _length_bytes(codec, extradata)
    if not prefix:
        return []
    shift, mask, sps, idr = (0, 0x1F, 7, (5,)) if codec == "h264" else (1, 0x3F, 33, (19, 20))
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


def _length_bytes(codec: str, extradata: bytes) -> int:
    """Size in bytes of the length field before each unit, from the header of an MP4 or Matroska
    file; 0 if it has none."""
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0


#: Containers that cannot store a rotation.
NEVER_TURNED = frozenset(("mpegts", "mpeg", "avi", "flv", "asf", "ogg"))
#: Identity matrix of a track header (ISO/IEC 14496-12, 8.3.2), and its offset behind the box's
#: type, by version.
_IDENTITY = b"".join(number.to_bytes(4, "big") for number in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
_MATRIX_AT = {0: 44, 1: 56}


def _says_upright(path: Path) -> bool:
    """True if this is an MP4 file and no track header has a rotation; False if that cannot be
    determined."""
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
