"""What a video file holds, read from its packets: about 10 ms a clip, and the first frame.

The header of a file lies more often than its packets, and decord trusts the header. Every circumstance under which decord
is known to return other frames than were asked for is listed in :attr:`Probe.hazards`; a file without any is decord's.
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

#: A file whose frame distances differ by more than this share of a frame has a variable rate (Matroska rounds to 1 ms).
RATE_TOLERANCE = Fraction(1, 4)
#: Times that were made up from the order of storage are no better than the header's rate within so many frames.
INVENTED_FRAMES = 2
#: The hazard that frames cannot be told by the times of their packets: they are counted as the decoder gives them out.
UNTRUSTED_TIMES = "untrusted-times"
_DISCARDS = (
    "its edit list leaves out frames by times that are not those at which they are shown; rewrite its times"
    " (ffmpeg -ignore_editlist 1), or re-encode it"
)
_INTRA = av.video.frame.PictureType.I


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
        time_base: seconds of a unit of the file's times.
        times: when each frame is shown, in units of the time base, never decreasing; None where the file does not say.
        variable_rate: whether frame i is not shown at i / rate. ``rate`` is then a whole number, that of the file's clock.
        starts_s: how much later than the file, its sound included, the first frame starts. A player counts from the file's start, and so
            do the seconds of an annotation.
        dropped: how many frames are stored before the first that decodes; they are not counted in ``frames``.
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
        """How many slots its even clock of ``rate`` has; of a file with even frames, its frames. Nothing has to be walked for it."""
        return max(1, int(self.duration_s * self.rate)) if self.variable_rate else self.frames

    def frame_at(self, slot: int) -> int:
        """The number of the frame on display in the middle of a slot."""
        if not self.variable_rate or self.times is None:
            return slot
        # Half a slot is 1 / (2 rate) seconds; times count from the first frame, in units of the time base.
        half = 1 / (2 * self.rate * self.time_base)
        return bisect_right(self.times, self.times[0] + (2 * slot + 1) * half) - 1


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
        # A title in another encoding than UTF-8 says nothing against the picture.
        container = av.open(
            str(path.absolute()), metadata_errors="replace", options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        )
    except (av.error.FFmpegError, ValueError) as error:
        known = _opens_like_a_video(path)
        reason, what = (
            ("damaged", "its beginning is a video's, but it cannot be opened")
            if known
            else ("not-a-video", "no known video format")
        )
        raise VideoError(reason, f"{path.name}: {what} ({_text(error)})") from error
    with container:
        if not (container.streams.video or container.streams.audio):
            raise VideoError("damaged", f"{path.name}: it opens, but what says which streams it holds is missing or cut off")
        streams = moving_pictures(container)
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


def moving_pictures(container: Any) -> list[Any]:
    """The video streams that are no cover art."""
    return [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]


def packet_index(path: Path) -> PacketIndex:
    """The times of all frames that are shown, as :func:`probe` takes them."""
    with open_video(path) as (container, stream):
        found = _Found(container, stream)
        for packet in container.demux(stream):
            if packet.size:
                found.take(packet)
        index = found.index()
    return _from_first_frame(path, index, found.packets) if found.starts_amid() else index


def probe(path: Path, *, distrust: bool = False) -> Probe:
    """Read what the file holds from its header and its packets; only where these do not tell the order of frames, all are decoded.

    Args:
        distrust: the packets do not tell the order, as somebody who decoded all frames knows.

    Raises:
        VideoError: the file is no readable video; see :func:`open_video`, and ``no-frames``, ``no-frame-rate``,
            ``untrusted-times``.
    """
    with open_video(path) as (container, stream):
        context = stream.codec_context
        found = _Found(container, stream)
        # Only a decoded frame tells how it is rotated, and that takes as long as all the rest.
        upright, first = container.format.name in NEVER_TURNED or _says_upright(path), None
        for packet in container.demux(stream):
            if not upright and first is None:
                first = next(iter(decode(packet, packet.is_keyframe or bool(found.packets and found.packets[0].key))), None)
            if packet.size:
                found.take(packet)
        index = found.index()
        # A stream that opening it could not make out has no pixel format (to ask PyAV for its name would end the process).
        if index.shown and ((first is None and not upright) or context.format is None):
            raise VideoError("damaged", f"{path.name}: not one frame can be decoded")
        starts = index.times[0] if index.times is not None else stream.start_time
        if found.starts_amid():
            index = _from_first_frame(path, index, found.packets)
        if distrust:
            index = replace(index, ordered=False)
        if index.times is not None and not index.ordered and found.has_times:
            if found.discards:
                raise VideoError(UNTRUSTED_TIMES, f"{path.name}: {_DISCARDS}")
            index = index_frames(_decoded_times(path, index.first), index)
        if not index.shown:
            raise VideoError("no-frames", f"{path.name}: the video stream shows no frame")
        rate = _rate(stream, index)
        if rate is None:
            raise VideoError("no-frame-rate", f"{path.name}: {index.shown} frame(s), and neither header nor timestamps give a rate")
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
            "discarded-frames": found.discards,
            # decord takes the one that libav thinks best, not the first.
            "several-streams": len(moving_pictures(container)) > 1,
            "open-gop": _leading_frames(found.packets),
            "no-key-frame-first": not found.packets[0].key,
            # Decoding may start there, but the picture is whole only some frames later (periodic intra refresh).
            "recovery-points": found.recovery_points,
            "frame-count": stream.frames not in (0, len(found.packets)),
            "resolution-change": found.parameters_change,
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


class _Found:
    """What the packets of a stream say, taken one after the other."""

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
        # Asking every packet takes a third of the time of this method; what decoding cannot start at brings no parameters of its own.
        if key and packet.has_sidedata("new_extradata"):
            self.parameters_change = True
        if key and (kinds := _units(bytes(packet), self._codec, self._extradata)):
            self.parameters_change |= any(kind == "new-parameters" for kind in kinds)
            self.recovery_points |= self._codec == "h264" and "idr" not in kinds
        # What is stored before the first key frame may lie between frames that are not in the file.
        self._begun |= key
        late = self._begun and time is not None and (self._latest is None or time > self._latest)
        if late:
            self._latest = time
        # A frame between two others is stored behind both, so its time lies before the later one's: here it would lie behind all.
        if self._codec in TYPED and not key and (late or not self._between) and not self._doubtful:
            found = between(memoryview(packet), self._codec, self._prefix)
            self._between |= found
            self._doubtful = found and late

    @property
    def has_times(self) -> bool:
        """Whether the container stores when frames are shown."""
        return WITHOUT_TIMES.isdisjoint(self._container.split(","))

    @property
    def discards(self) -> bool:
        return any(packet.discard for packet in self.packets)

    def index(self) -> PacketIndex:
        reorders = self._between if self._codec in TYPED else None if not self._context.has_b_frames else True
        return index_packets(self.packets, self._container, self._codec, reorders, self._doubtful)

    def starts_amid(self) -> bool:
        """Whether frames may be stored before the first that decodes: no key frame stands first, or frames of the group before it."""
        if not self.packets or not any(packet.key for packet in self.packets):
            return False
        second = next((at for at, packet in enumerate(self.packets) if at and packet.key), len(self.packets))
        return not self.packets[0].key or _leading_frames(self.packets[:second])


def _from_first_frame(path: Path, index: PacketIndex, packets: Sequence[Packet]) -> PacketIndex:
    """The index without the frames that refer to what is not in the file, as a recording has them that was cut anywhere."""
    with open_video(path) as (container, stream):
        whole = (frame for frame in decoded(container, stream) if frame.pict_type == _INTRA and not frame.is_corrupt)
        first = next(whole, None)
    if first is None:
        raise VideoError("damaged", f"{path.name}: not one frame can be decoded")
    stored = [packet.pts for packet in packets if not packet.discard]
    return index.starting_at(first.pts, stored.index(first.pts)) if first.pts in stored else index


def _decoded_times(path: Path, first: int | None) -> list[int | None]:
    """Presentation times of all frames in the decoder's order, from that of this time on."""
    with open_video(path) as (container, stream):
        times = [frame.pts for frame in decoded(container, stream)]
    return times[times.index(first) :] if first in times else times


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames in the decoder's order. A packet before the first key frame need not decode."""
    begun = False
    for packet in container.demux(stream):
        begun = begun or packet.is_keyframe
        yield from decode(packet, begun)


def decode(packet: Any, begun: bool) -> list[Any]:
    """The frames that a packet completes; of one that cannot be decoded none, where no key frame has been yet."""
    try:
        frames: list[Any] = packet.decode()
    except av.error.InvalidDataError:
        if begun:
            raise
        return []
    return frames


def _behind_the_start(container: Any, stream: Any, starts: int | None, times: tuple[int, ...] | None) -> Fraction:
    """Seconds from the start of what a player plays, picture or sound, to the first frame.

    Args:
        starts: time of the first frame that is stored, whether or not it decodes.
        times: of those that do.
    """
    if starts is None:
        return Fraction(0)
    at = starts if times is None else times[0]
    others = [
        other.start_time * other.time_base
        for other in (*container.streams.audio, *container.streams.video)
        if other is not stream and other.start_time is not None and not other.disposition & av.stream.Disposition.attached_pic
    ]
    return Fraction(at * stream.time_base - min([starts * stream.time_base, *others]))


def _leading_frames(packets: Sequence[Packet]) -> bool:
    """Whether a frame is stored after a key frame but shown before it: the mark of an open GOP."""
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
    """The header's rate where no time is further than :data:`INVENTED_FRAMES` from what it says."""
    for stated in (stream.guessed_rate, stream.average_rate):
        if stated and times is not None:
            step = 1 / (Fraction(stated) * stream.time_base)
            if all(abs(time - times[0] - number * step) <= INVENTED_FRAMES * step for number, time in enumerate(times)):
                return Fraction(stated)
    return None


def _rate(stream: Any, index: PacketIndex) -> Fraction | None:
    """The header's rate where the timestamps bear it out, else the timestamps' own."""
    stated = [Fraction(rate) for rate in (stream.guessed_rate, stream.average_rate) if rate]
    if index.times is None or index.times[0] == index.times[-1]:
        return stated[0] if stated else None
    measured: Fraction = Fraction(len(index.times) - 1) / ((index.times[-1] - index.times[0]) * stream.time_base)
    agreeing = [rate for rate in stated if abs(rate / measured - 1) < Fraction(1, 100)]
    if agreeing:
        return agreeing[0]
    # A frame in two days has a rate as well.
    return measured.limit_denominator(100_000) or measured


def _units(packet: bytes, codec: str, extradata: bytes) -> list[str]:
    """What a key frame of an MP4 or Matroska file is made of, as far as it matters here; empty where that cannot be told.

    ``new-parameters``: a sequence parameter set that the header does not know, so that the stream may change its size midway; ``idr``: a
    picture behind which nothing refers to what was before; ``other``. Layouts: ISO/IEC 14496-15, avcC and hvcC; types: ITU-T H.264,
    table 7-1, and H.265, table 7-1.
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
    """Bytes of the length before each unit, as the header of an MP4 or Matroska file says; 0 where it says none."""
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0


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
