"""Every container x codec x B-frames x times that a real encoder writes, each frame carrying its
own number.

An animal of :mod:`~tests.support.video.zoo` each. Where a time was made wrong on purpose, one frame
may lose its slot and no other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from stages.lib.video.encoder import encode
from tests.support.video.numbered_frames import FRAMES, RATE, draw_numbers
from tests.support.video.zoo import run

#: The frame whose time is made wrong, in order of storage.
BAD = 31


@dataclass(frozen=True)
class Crossing:
    """A file to make: container, codec with its options, and what becomes of the times.

    ``varies``: whether frames are shown for different lengths; ``rejected``: one of these is the
    reason why ingest sets it aside.
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
    "vp9-altref": (
        "-c:v",
        "libvpx-vp9",
        "-auto-alt-ref",
        "1",
        "-lag-in-frames",
        "16",
        "-b:v",
        "500k",
        "-cpu-used",
        "8",
    ),
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
SETTS: dict[str, str] = {"own": "", "dts": "setts=pts=DTS-STARTDTS:dts=DTS-STARTDTS", "raw-dts": "setts=pts=DTS"}
#: Which other frame's time, in order of storage, the frame BAD is given: of a container that stores
#: times only.
ONE_WRONG: dict[str, int] = {"doubled": -1, "backwards": -9, "ahead": 9}
#: An edit list that was made for other times leaves out other frames than it should: what is set
#: aside is not wrong.
CUT_BY_WRONG_TIMES = frozenset(("untrusted-times",))
#: Codecs whose first decode times are negative, so that the edit list begins behind them.
CUT_AT_THE_START = frozenset(("h264-bf1", "h264-bf2", "h264-bf3", "h264-bf16", "h264-open", "hevc-bf3"))


def crossings() -> list[Crossing]:
    made = []
    for container, codecs in HOLDS.items():
        for codec in codecs:
            made += [Crossing(container, codec, times) for times in ("own", "dts")]
            if container in ("mkv", "ts", "flv"):
                made.append(Crossing(container, codec, "raw-dts"))
            if container in ("mp4", "mov"):
                rejected = CUT_BY_WRONG_TIMES if codec in CUT_AT_THE_START else frozenset()
                made.append(Crossing(container, codec, "raw-dts", rejected=rejected))
    for codec in (
        "h264-bf0",
        "h264-bf1",
        "h264-bf2",
        "h264-bf3",
        "hevc-bf3",
        "mpeg4-bf2",
        "vp8-altref",
        "vp9-altref",
        "av1",
    ):
        made += [Crossing("mkv", codec, times, varies) for times in ONE_WRONG for varies in (False, True)]
        made += [
            Crossing(container, codec, "own", varies=True)
            for container in ("mkv", "mp4")
            if (container, codec) != ("mp4", "vp8-altref")
        ]
    return made


def build_crossing(crossing: Crossing, folder: Path) -> Path:
    """Make the file."""
    source, path = folder / f".{crossing.codec}{'-varies' if crossing.varies else ''}.nut", folder / crossing.name
    if not source.exists():
        plain = folder / ".plain.mp4"
        if not plain.exists():
            encode(draw_numbers(list(range(FRAMES))), RATE, plain, crf=10)
        varied = (
            ("-vf", f"setpts='({STARTS})/TB'", "-fps_mode", "passthrough", "-enc_time_base", "1/1000")
            if crossing.varies
            else ()
        )
        run("-i", str(plain), *varied, *CODECS[crossing.codec], str(source))
    # NUT keeps an MPEG-4 header beside the stream; a transport stream has no place for it.
    filters = [*(["dump_extra"] if crossing.container == "ts" and crossing.codec.startswith("mpeg4") else [])]
    filters += [found] if (found := SETTS.get(crossing.times)) else []
    run("-i", str(source), "-c", "copy", *(("-bsf:v", ",".join(filters)) if filters else ()), str(path))
    if crossing.times in ONE_WRONG:
        _give_time_of(path, BAD, BAD + ONE_WRONG[crossing.times])
    return path


#: When frame N of the varying clip is shown, in seconds: five a second, then ten, then three.
STARTS = "if(lt(N,20),N*.2,if(lt(N,40),4+(N-20)*.1,6+(N-40)*.3))"
_SHOWN_TENTHS = [2] * 20 + [1] * 20 + [3] * 20


def shown_at(seconds: Fraction, varies: bool) -> int:
    """The number of the frame on display then."""
    ends = list(accumulate(_SHOWN_TENTHS)) if varies else list(range(1, FRAMES + 1))
    return bisect_right(ends, seconds * 10) if seconds * 10 < ends[-1] else FRAMES - 1


def _give_time_of(path: Path, bad: int, other: int) -> None:
    """Write the time of block ``other`` of a Matroska file into block ``bad``, which a muxer would
    refuse."""
    content = bytearray(path.read_bytes())
    # One track without lacing: a block is 0xA3, its size, track 1 (0x81), 16 bits of time, flags.
    blocks: list[tuple[int, int]] = []  # where the time stands, and the cluster's own time
    for level, kind, start, size in _elements(bytes(content), 0, len(content)):
        del level
        if kind == 0xE7:
            cluster = int.from_bytes(content[start : start + size], "big")
        elif kind in (0xA3, 0xA1):
            blocks.append((start + 1, cluster))
    at, cluster = blocks[bad]
    there, its_cluster = blocks[other]
    time = int.from_bytes(content[there : there + 2], "big", signed=True) + its_cluster - cluster
    content[at : at + 2] = time.to_bytes(2, "big", signed=True)
    path.write_bytes(bytes(content))


#: Elements of Matroska that hold others: Segment, Cluster, BlockGroup.
_HOLDERS = (0x18538067, 0x1F43B675, 0xA0)


def _elements(content: bytes, start: int, stop: int, level: int = 0) -> Iterator[tuple[int, int, int, int]]:
    """Depth, identity, place and size of each element (EBML, RFC 8794)."""
    at = start
    while at < stop:
        length = 9 - content[at].bit_length()
        kind = int.from_bytes(content[at : at + length], "big")
        at += length
        length = 9 - content[at].bit_length()
        size = int.from_bytes(content[at : at + length], "big") & ((1 << 7 * length) - 1)
        at += length
        if size == (1 << 7 * length) - 1:
            size = stop - at
        yield level, kind, at, size
        if kind in _HOLDERS:
            yield from _elements(content, at, at + size, level + 1)
        at += size
