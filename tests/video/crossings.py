"""Every container x codec x B-frames x times that a real encoder writes, each frame carrying its own number.

An animal of :mod:`zoo` each. Where a time was made wrong on purpose, one frame may lose its slot and no other.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from numbered_frames import FRAMES, RATE, draw_numbers
from zoo import run

from stages.video.encoder import encode, ffmpeg_binary

#: Frames of the varying clip are shown so long, in tenths of a second: six a second, then thirty, then six again.
SHOWN_TENTHS = [2] * 20 + [1] * 20 + [3] * 20
#: The frame whose time is made wrong, in order of storage.
BAD = 31


@dataclass(frozen=True)
class Crossing:
    """A file to make: container, codec with its options, and what becomes of the times.

    ``varies``: whether frames are shown for different lengths; ``rejected``: reasons why ingest may set it aside instead.
    """

    container: str
    codec: str
    times: str
    varies: bool = False
    rejected: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.codec}-{self.times}{'-varies' if self.varies else ''}.{self.container}"


CODECS: dict[str, tuple[str, ...]] = {
    "h264-bf0": ("-c:v", "libx264", "-bf", "0", "-g", "20"),
    "h264-bf1": ("-c:v", "libx264", "-bf", "1", "-g", "20", "-x264-params", "b-adapt=0"),
    "h264-bf2": ("-c:v", "libx264", "-bf", "2", "-g", "20", "-x264-params", "b-adapt=0"),
    "h264-bf3": ("-c:v", "libx264", "-bf", "3", "-g", "20", "-x264-params", "b-adapt=0:b-pyramid=normal"),
    "h264-bf16": ("-c:v", "libx264", "-bf", "16", "-g", "40", "-x264-params", "b-adapt=0"),
    "h264-open": ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0"),
    "hevc-bf0": ("-c:v", "libx265", "-x265-params", "bframes=0:keyint=20:log-level=none"),
    "hevc-bf3": ("-c:v", "libx265", "-x265-params", "bframes=3:b-adapt=0:keyint=20:log-level=none"),
    "mpeg4-bf0": ("-c:v", "mpeg4", "-q:v", "2", "-bf", "0"),
    "mpeg4-bf2": ("-c:v", "mpeg4", "-q:v", "2", "-bf", "2", "-g", "15"),
    "mpeg2-bf0": ("-c:v", "mpeg2video", "-q:v", "2", "-bf", "0"),
    "mpeg2-bf2": ("-c:v", "mpeg2video", "-q:v", "2", "-bf", "2", "-g", "15"),
    "vp8-altref": ("-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-b:v", "500k", "-g", "20"),
    "vp9-altref": ("-c:v", "libvpx-vp9", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-b:v", "500k", "-cpu-used", "8"),
    "av1": ("-c:v", "libsvtav1", "-preset", "13", "-svtav1-params", "lp=1"),
    "mjpeg": ("-c:v", "mjpeg", "-q:v", "2"),
}
_H264 = [codec for codec in CODECS if codec.startswith("h264")]
_ISO = [codec for codec in CODECS if codec.startswith(("hevc", "mpeg4"))]
_MPEG = [codec for codec in CODECS if codec.startswith("mpeg2")]
HOLDS: dict[str, list[str]] = {
    "mp4": [*_H264, *_ISO, *_MPEG, "av1", "vp9-altref", "mjpeg"],
    "mov": [*_H264, *_ISO, "mjpeg"],
    "mkv": [*CODECS],
    "webm": ["vp8-altref", "vp9-altref", "av1"],
    "avi": [*_H264, "mpeg4-bf0", "mpeg4-bf2", *_MPEG, "vp8-altref", "mjpeg"],
    "ts": [*_H264, *_ISO, *_MPEG],
    "mpg": [*_MPEG],
    "flv": [*_H264],
    "asf": [*_H264, "mpeg4-bf0", "mpeg4-bf2", *_MPEG],
}
#: What setts makes of the times of a stream that is copied.
TIMES: dict[str, str] = {
    "own": "",
    "dts": "setts=pts=DTS-STARTDTS:dts=DTS-STARTDTS",
    "raw-dts": "setts=pts=DTS",
    "doubled": f"setts=pts=if(eq(N\\,{BAD})\\,PREV_OUTPTS\\,PTS)",
    "backwards": f"setts=pts=if(eq(N\\,{BAD})\\,PTS-9*DURATION\\,PTS)",
    "ahead": f"setts=pts=if(eq(N\\,{BAD})\\,PTS+9*DURATION\\,PTS)",
}
#: Times that are wrong for one frame need a container that stores them.
ONE_WRONG = ("doubled", "backwards", "ahead")


def crossings() -> list[Crossing]:
    made = []
    for container, codecs in HOLDS.items():
        for codec in codecs:
            made += [Crossing(container, codec, times) for times in ("own", "dts")]
            if container in ("mp4", "mov", "mkv", "ts", "flv", "mpg"):
                made.append(Crossing(container, codec, "raw-dts"))
    for container in ("mkv", "mp4"):
        for codec in ("h264-bf0", "h264-bf2", "vp9-altref"):
            made += [Crossing(container, codec, times, varies) for times in ONE_WRONG for varies in (False, True)]
            made.append(Crossing(container, codec, "own", varies=True))
    return made


def build_crossing(crossing: Crossing, folder: Path) -> str | None:
    """Make the file; what ffmpeg said where this container takes no such stream."""
    source = folder / f".{crossing.codec}{'-varies' if crossing.varies else ''}.nut"
    if not source.exists():
        plain = folder / ".plain.mp4"
        if not plain.exists():
            encode(draw_numbers(list(range(FRAMES))), RATE, plain, crf=10)
        # Each frame's number of tenths at ten a second, the first of each only.
        starts = "+".join(f"eq(n\\,{sum(SHOWN_TENTHS[:number])})" for number in range(FRAMES))
        varies = ("-fps_mode", "passthrough", "-enc_time_base", "1/90000") if crossing.varies else ()
        shown = ("-vf", f"setpts='({varying_seconds()})/TB'") if crossing.varies else ()
        del starts
        run("-i", str(plain), *shown, *varies, *CODECS[crossing.codec], str(source))
    bitstream = ("-bsf:v", TIMES[crossing.times]) if TIMES[crossing.times] else ()
    command = [
        ffmpeg_binary(),
        "-nostdin",
        "-v",
        "error",
        "-y",
        "-i",
        str(source),
        "-c",
        "copy",
        *bitstream,
        str(folder / crossing.name),
    ]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.stderr.decode() if done.returncode or not (folder / crossing.name).stat().st_size else None


def varying_seconds() -> str:
    """When frame N of the varying clip is shown, as an expression of ffmpeg."""
    return "if(lt(N,20),N*.2,if(lt(N,40),4+(N-20)*.1,6+(N-40)*.3))"


def starts_s(number: int) -> float:
    return sum(SHOWN_TENTHS[:number]) / 10
