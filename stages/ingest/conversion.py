"""Re-encoding of a file, once, into H.264 that every reader decodes correctly: upright,
progressive, square pixels, 8 bits, the colours of BT.709."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.error
import ffmpeg

from stages.lib.video.encoder import (
    CONTAINERS,
    TIMEOUT_S,
    encode_stream,
    ffmpeg_binary,
    last_lines,
    remove_partial,
    run_ffmpeg,
)
from stages.lib.video.errors import VideoError
from stages.lib.video.folders import pictures_in
from stages.lib.video.pictures import Look
from stages.lib.video.probe import PIXEL_ASPECT, UNTRUSTED_TIMES, Probe
from stages.runtime import paths

#: Light of 1.0 in a picture of ordinary range, and the brightest in one of a high range whose
#: metadata do not tell it, in cd/m2.
WHITE, PEAK = 100, 1000


def normalise_command(
    path: Path, out: Path, source: Probe, look: Look, crf: int, skip: int = 0, in_order: bool = False
) -> list[str]:
    """Build the command that re-encodes a file as H.264 that every reader decodes correctly.

    The output has closed GOPs of at most 48 frames, 8 bits, upright frames of one even size with
    square pixels, and its first frame at time 0. Every frame but the first ``skip`` is kept, in the
    decoder's order. ``in_order`` stores frames in presentation order.

    The two fields of an interlaced frame become one frame (bwdif); the frame keeps its time.
    Colours of a high dynamic range are mapped to BT.709 by the curve "hable".
    """
    read = ffmpeg.input(str(path.absolute()), protocol_whitelist="file,pipe", format_whitelist=CONTAINERS, threads=1)
    stream = read["V:0"]
    if skip:
        stream = stream.filter("select", f"gte(n,{skip})")
    stream = stream.filter("setpts", _times(source))
    for name, options in (*_deinterlaced(look), *_mapped(look), *_squared(source)):
        stream = stream.filter(name, **options)
    even = stream.filter("crop", "trunc(iw/2)*2", "trunc(ih/2)*2")
    output = even.output(
        str(out.absolute()),
        copyts=None,
        format="mp4",
        vcodec="libx264",
        preset="veryfast",
        crf=crf,
        pix_fmt="yuv420p",
        g=48,
        threads=1,
        fps_mode="passthrough",
        video_track_timescale=90_000,
        map_metadata=-1,
        map_chapters=-1,
        fflags="+bitexact",
        movflags="+faststart",
        sws_flags="bicubic+accurate_rnd+full_chroma_int+bitexact",
        **({"bf": 0} if in_order else {}),
        **{"flags:v": "+bitexact+cgop", "x264-params": "open-gop=0"},
    )
    command: list[str] = output.global_args("-hide_banner", "-nostdin", "-loglevel", "error", "-xerror").compile(
        cmd=ffmpeg_binary(), overwrite_output=True
    )
    return command


def _times(source: Probe) -> str:
    """Expression of a frame's time: its own behind that of the first frame, or by its number at the
    file's rate if the file has no times to trust."""
    if source.times is None or source.variable_rate or UNTRUSTED_TIMES in source.hazards:
        return f"N/({source.rate.numerator}/{source.rate.denominator}*TB)"
    # Not STARTPTS: it resets when the size changes midway.
    return f"PTS-({source.times[0]})"


Filter = tuple[str, dict[str, str | float]]


def _deinterlaced(look: Look) -> list[Filter]:
    # deint=interlaced: frames that are marked as progressive stay as they are.
    return [("bwdif", {"mode": "send_frame", "parity": "auto", "deint": "interlaced"})] if look.interlaced else []


def _mapped(look: Look) -> list[Filter]:
    if not look.hdr:
        return []
    known: dict[str, str | float] = {
        "transferin": look.transfer,
        "primariesin": look.primaries,
        "matrixin": look.matrix,
        "rangein": "full" if look.full_range else "limited",
    }
    return [
        ("zscale", {**known, "transfer": "linear", "npl": WHITE}),
        ("format", {"pix_fmts": "gbrpf32le"}),
        ("zscale", {"primaries": "709"}),
        # Where nothing tells the brightest light, 1,000 cd/m2, for which most is mastered; ffmpeg
        # would assume the 10,000 that PQ can express, and make everything dark.
        ("tonemap", {"tonemap": "hable", "desat": 0, **({} if look.peak else {"peak": PEAK / WHITE})}),
        ("zscale", {"transfer": "709", "matrix": "709", "range": "limited"}),
        ("format", {"pix_fmts": "yuv420p"}),
    ]


def _squared(source: Probe) -> list[Filter]:
    if PIXEL_ASPECT not in source.hazards:
        return []
    return [("scale", {"w": source.width // 2 * 2, "h": source.height // 2 * 2}), ("setsar", {"sar": 1})]


def normalise(
    path: Path, out: Path, source: Probe, look: Look, crf: int, skip: int = 0, timeout_s: float = TIMEOUT_S
) -> None:
    """Re-encode ``path`` to ``out``; see :func:`normalise_command`. ``out`` appears complete or not
    at all.

    Args:
        source, look: facts about the file.
        skip: number of frames that a decoder emits before the first complete one.

    Raises:
        VideoError: ``normalise-failed`` with ffmpeg's message, or ``timeout``.
        FfmpegMissing: there is no ffmpeg.
    """
    # Two workers may process the same content.
    unfinished = out.with_suffix(f".{os.getpid()}{paths.UNFINISHED}")
    times_s = None
    if source.times is not None and source.variable_rate:
        times_s = [(time - source.times[0]) * source.time_base for time in source.times]
    command = normalise_command(path, unfinished, source, look, crf, skip, in_order=times_s is not None)
    try:
        done = run_ffmpeg(command, timeout_s)
        if not done.returncode and times_s is not None:
            _retime(unfinished, times_s)
    except subprocess.TimeoutExpired as error:
        remove_partial(unfinished)
        raise VideoError("timeout", f"{path.name}: encoding it again did not end within {timeout_s:g} s") from error
    except (VideoError, av.error.FFmpegError) as error:
        remove_partial(unfinished)
        raise VideoError("normalise-failed", f"{path.name}: {error}") from error
    if done.returncode:
        remove_partial(unfinished)
        raise VideoError("normalise-failed", f"{path.name}: {last_lines(done.stderr)}")
    unfinished.replace(out)


def _retime(path: Path, times_s: Sequence[Fraction]) -> None:
    """Set the times of the frames of an MP4 file whose storage order is the presentation order."""
    retimed = path.with_suffix(".retimed")
    unit = Fraction(1, 90_000)
    try:
        with (
            av.open(str(path.absolute()), format="mp4") as source,
            av.open(
                str(retimed.absolute()), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
            ) as sink,
        ):
            stream = sink.add_stream_from_template(source.streams.video[0])
            stream.time_base = unit
            last = -1
            packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
            if len(packets) != len(times_s):
                raise VideoError("frame-count", f"{len(packets)} frames were encoded, {len(times_s)} were expected")
            for packet, time_s in zip(packets, times_s, strict=True):
                # Times must increase: of two frames at one time the first is displayed for one
                # unit.
                last = max(last + 1, round(time_s / unit))
                packet.stream, packet.time_base = stream, unit
                packet.pts = packet.dts = last
                sink.mux(packet)
        retimed.replace(path)
    finally:
        remove_partial(retimed)


def normalise_folder(folder: Path, out: Path, source: Probe, crf: int) -> None:
    """Encode the pictures of a frame folder to ``out``, which appears complete or not at all.

    Raises:
        VideoError: a picture does not decode (``damaged``), or ``encode-failed``.
        FfmpegMissing: there is no ffmpeg.
    """
    width, height = source.width // 2 * 2, source.height // 2 * 2
    frames = (pixels[None, :height, :width] for pixels in pictures_in(folder))
    # Two workers may process the same content.
    own = out.with_suffix(f".{os.getpid()}.mp4")
    encode_stream(frames, width, height, source.rate, own, crf)
    own.replace(out)
