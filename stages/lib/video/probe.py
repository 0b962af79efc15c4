"""Probe of video files by their packets and their first frame, in about 10 ms per clip.

A file's header is wrong more often than its packets, and decord trusts the header.
:attr:`Probe.hazards` lists every known reason why decord would return other frames than requested;
a file without hazards is safe for decord.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.video.frame

from stages.lib.video.container import decode, decoded, moving_pictures, open_video
from stages.lib.video.errors import VideoError
from stages.lib.video.packets import PacketScan, leading_frames
from stages.lib.video.rotation import NEVER_TURNED, says_upright
from stages.lib.video.times import Packet, PacketIndex, index_frames

#: A file whose frame intervals differ by more than this share of a frame has a variable rate
#: (Matroska rounds to 1 ms).
RATE_TOLERANCE = Fraction(1, 4)
#: Invented times (derived from the storage order) that stay within this many frames of the header's
#: rate give way to it.
INVENTED_FRAMES = 2
#: The hazard that packets' times do not identify frames, so frames are counted in the decoder's
#: output order.
UNTRUSTED_TIMES = "untrusted-times"
#: The hazard that stored pixels are not square. decord returns them as they are stored.
PIXEL_ASPECT = "pixel-aspect"
#: Ratios of a pixel's width to its height outside these bounds are errors of the header; pixels
#: count as square then.
_ASPECTS = (Fraction(1, 8), Fraction(8))
#: Up to this many pixels in all frames of a file decord is the faster reader, and ingest decodes
#: all of them.
DECORD_PIXELS = 1_000_000
#: Containers that hold nothing but a stream: no times, and a rate only if the stream has one.
RAW_STREAMS = frozenset(("h264", "hevc"))
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
        width, height: size of a displayed frame: with rotation applied, and of square pixels.
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


def packet_index(path: Path) -> PacketIndex:
    """Index the times of all displayed frames, as :func:`probe` uses them."""
    with open_video(path) as (container, stream):
        scan = PacketScan(container, stream)
        for packet in container.demux(stream):
            if packet.size:
                scan.take(packet)
        index = scan.index()
    return _from_first_frame(path, index, scan.packets) if scan.starts_amid() else index


def probe(path: Path, *, distrust: bool = False, rate: Fraction | None = None) -> Probe:
    """Read facts about a file from its header and its packets; all frames are decoded only if these
    do not determine their order.

    Args:
        distrust: the packets do not determine the order, as a full decode has revealed earlier.
        rate: frames per second of a raw stream, which has no times; None: as the stream says.

    Raises:
        VideoError: the file is not a readable video; see :func:`open_video`, and ``no-frames``,
            ``no-frame-rate``, ``untrusted-times``.
    """
    with open_video(path) as (container, stream):
        context = stream.codec_context
        scan = PacketScan(container, stream)
        # Only a decoded frame has the rotation, and decoding one takes as long as everything else.
        upright, first = container.format.name in NEVER_TURNED or says_upright(path), None
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
        raw = container.format.name in RAW_STREAMS
        rate = (rate or context.framerate) if raw else _rate(stream, index)
        if rate is None:
            raise VideoError(
                "no-frame-rate",
                f"{path.name}: {index.shown} frame(s), and neither header nor timestamps give a rate"
                + ("; state it: rate in the row, or ingest.frame_rate" if raw else ""),
            )
        rate = Fraction(rate)
        # libav counts counter-clockwise.
        rotation = 0 if first is None else int(round(-first.rotation / 90) * 90 % 360)
        turned = rotation in (90, 270)
        width = _square_width(stream)
        step = 1 / (rate * stream.time_base)
        span = Fraction(0) if index.times is None else (index.times[-1] - index.times[0]) * stream.time_base
        duration_s = index.shown / rate if index.times is None else span + 1 / rate
        if container.format.name == "gif" and scan.last_duration:
            # The last picture of an animation is often held; other containers rarely tell.
            duration_s = span + scan.last_duration * stream.time_base
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
            "open-gop": leading_frames(scan.packets),
            "no-key-frame-first": not scan.packets[0].key,
            # Decoding may start there, but the picture is complete only some frames later (periodic
            # intra refresh).
            "recovery-points": scan.recovery_points,
            "frame-count": stream.frames not in (0, len(scan.packets)),
            "resolution-change": scan.parameters_change,
            "rotation": rotation != 0,
            PIXEL_ASPECT: width != context.width,
        }
        return Probe(
            codec=context.name,
            pixel_format=str(context.pix_fmt),
            width=context.height if turned else width,
            height=width if turned else context.height,
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


def _square_width(stream: Any) -> int:
    """Width of a stored frame in square pixels; its height stays."""
    width, aspect = int(stream.codec_context.width), stream.sample_aspect_ratio
    return round(width * aspect) if aspect and _ASPECTS[0] <= aspect <= _ASPECTS[1] else width


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
