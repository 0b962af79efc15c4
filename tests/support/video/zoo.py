"""Videos as the world has them, made by real encoders, each frame carrying its own number: right
and wrong are counted, not assumed.

An animal is a file, what ingest should say of it, and which numbers its clock's slots show, as a
player would show them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from stages.lib.video.encoder import encode, ffmpeg_binary
from tests.support.video.numbered_frames import FRAMES, RATE, Pixels, draw_numbers


@dataclass(frozen=True)
class Animal:
    """``shows``: the number that each slot shows; None where ingest must set the file aside for one
    of ``reasons``."""

    name: str
    shows: tuple[int, ...] | None
    reasons: frozenset[str] = frozenset()


ALL = tuple(range(FRAMES))


def run(*arguments: str) -> None:
    command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-y", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, (command, done.stderr.decode())


def build(folder: Path) -> list[Animal]:
    """Make the zoo in ``folder`` and return its animals."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "plain.mp4"
    encode(draw_numbers(list(ALL)), RATE, plain, crf=10)
    animals = [Animal(plain.name, ALL)]

    def from_plain(
        name: str, *output: str, before: Sequence[str] = (), shows: tuple[int, ...] | None = ALL, reasons: str = ""
    ) -> Path:
        run(*before, "-i", str(plain), *output, str(folder / name))
        animals.append(Animal(name, shows, frozenset(reasons.split())))
        return folder / name

    def write(name: str, content: bytes, reasons: str) -> None:
        (folder / name).write_bytes(content)
        animals.append(Animal(name, None, frozenset(reasons.split())))

    x264, x265 = ("-c:v", "libx264"), ("-c:v", "libx265")
    from_plain("open-gop.mp4", *x264, "-x264-params", "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0")
    from_plain(
        "open-gop-hevc.mp4", *x265, "-x265-params", "open-gop=1:keyint=10:min-keyint=10:bframes=3:log-level=none"
    )
    from_plain("closed-hevc.mp4", *x265, "-x265-params", "open-gop=0:keyint=10:log-level=none")
    from_plain("ten-bit.mp4", *x265, "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none")
    from_plain("full-chroma.mp4", *x264, "-pix_fmt", "yuv444p")
    from_plain("vp9.webm", "-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime")
    from_plain("av1.mp4", "-c:v", "libsvtav1", "-preset", "13", "-svtav1-params", "lp=1")
    from_plain("stream.ts", *x264, "-g", "12")
    from_plain("matroska.mkv", "-c", "copy")
    from_plain("mpeg4.avi", "-c:v", "mpeg4", "-bf", "2", "-q:v", "2")
    from_plain("h264.flv", *x264, "-bf", "2")
    from_plain("very-long-gop.mp4", *x264, "-g", "9999", "-bf", "3")
    from_plain("every-frame-a-key.mp4", *x264, "-g", "1")
    from_plain("short-gops.mp4", *x264, "-g", "2", "-bf", "0")
    from_plain("intra-refresh.mp4", *x264, "-x264-params", "intra-refresh=1:keyint=10:bframes=0")
    from_plain("odd-size.webm", "-vf", "scale=65:63:flags=neighbor", "-c:v", "libvpx-vp9", "-cpu-used", "8")
    from_plain("twice-the-same-time.mkv", *x264, "-bf", "0", "-bsf:v", "setts=ts=floor(TS/200)*200")
    from_plain("interlaced.mp4", *x264, "-flags", "+ilme+ildct", "-x264-params", "tff=1:keyint=10")

    # A variable rate: frames 10 to 19 are left out, so that frame 9 stays on display for more than
    # a second.
    gone = tuple(range(10, 20))
    held = tuple(9 if n in gone else n for n in ALL)
    rate = 8  # the nearest whole number to 49 frames in 5.9 s
    slots = tuple(
        held[min(FRAMES - 1, int((Fraction(2 * k + 1, 2 * rate)) * RATE))]
        for k in range(int(Fraction(600, 100) * rate))
    )
    from_plain("variable-rate.mp4", "-vf", "select='not(between(n,10,19))'", "-fps_mode", "vfr", *x264, shows=slots)

    # Cut at a time without decoding: the file holds frames before the cut that a player leaves out.
    keyed = folder / "plain-with-keys.mp4"
    run("-i", str(plain), *x264, "-g", "20", "-bf", "2", str(keyed))
    animals.append(Animal(keyed.name, ALL))
    run("-ss", "2.5", "-i", str(keyed), "-c", "copy", str(folder / "stream-copied-cut.mp4"))
    animals.append(Animal("stream-copied-cut.mp4", tuple(range(25, FRAMES))))

    for degrees in ("90", "180"):
        from_plain(f"rotated-{degrees}.mp4", "-c", "copy", before=("-display_rotation:v:0", degrees))

    small, large, both = folder / ".small.ts", folder / ".large.ts", folder / ".both.ts"
    run("-i", str(plain), "-vf", "scale=32:32:flags=neighbor", *x264, str(small))
    run("-i", str(plain), *x264, str(large))
    both.write_bytes(small.read_bytes() + large.read_bytes())
    run("-i", str(both), "-c", "copy", str(folder / "resolution-change.mp4"))
    animals.append(Animal("resolution-change.mp4", ALL + ALL))

    cover = folder / ".cover.png"
    run("-i", str(plain), "-frames:v", "1", str(cover))
    art = ("-map", "1:v", "-map", "0:v", "-c", "copy", "-disposition:v:0", "attached_pic")
    from_plain("cover-art-first.mp4", "-i", str(cover), *art)
    sound = ("-f", "lavfi", "-i", "sine=duration=0.5", "-map", "1:a", "-c:a", "aac")
    from_plain("sound-only.mp4", *sound, shows=None, reasons="no-video-stream")
    from_plain(
        "cover-only.mp4",
        "-i",
        str(cover),
        *art[:2],
        "-c",
        "copy",
        "-disposition:v:0",
        "attached_pic",
        shows=None,
        reasons="no-video-stream",
    )
    from_plain("one-frame.mp4", "-frames:v", "1", *x264, shows=None, reasons="too-short")

    at_end = folder / ".no-faststart.mp4"
    run("-i", str(keyed), "-c", "copy", str(at_end))
    fast = folder / ".faststart.mp4"
    run("-i", str(keyed), "-c", "copy", "-movflags", "+faststart", str(fast))
    write("truncated-faststart.mp4", fast.read_bytes()[: fast.stat().st_size * 2 // 3], "damaged")
    write("truncated-no-faststart.mp4", at_end.read_bytes()[: at_end.stat().st_size * 2 // 3], "damaged")
    # Behind the header, in what the frames are stored as.
    rotten = np.frombuffer((folder / "every-frame-a-key.mp4").read_bytes(), np.uint8).copy()
    rotten[np.random.default_rng(3).integers(100, len(rotten) // 2, 60)] ^= 0x5A
    write("bit-rot.mp4", rotten.tobytes(), "damaged frame-count")
    write("zero-bytes.mp4", b"", "empty-file")
    write("text.mp4", b"not a video at all\n" * 200, "not-a-video")
    write("page.mp4", b"<!doctype html><html><body>404 Not Found</body></html>", "not-a-video")
    write(
        "playlist.mp4",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{plain.name}\n#EXT-X-ENDLIST\n".encode(),
        "not-a-video",
    )
    write("concat.mp4", f"ffconcat version 1.0\nfile {plain.name}\n".encode(), "not-a-video")

    for name in ("-starts-with-a-dash.mp4", "Ünïcode und Räume 視頻.mp4", "percent %03d.mp4", "it's; $(quoted).mp4"):
        run("-i", str(plain), *x264, "-crf", "12", "-metadata", f"title={name}", f"file:{folder / name}")
        animals.append(Animal(name, ALL))
    (folder / "loop.mp4").symlink_to("loop.mp4")
    animals.append(Animal("loop.mp4", None, frozenset(("missing-file",))))
    return animals


def upright(pixels: Pixels, name: str) -> Pixels:
    """The numbers' grid as it was drawn, for an animal that a player turns."""
    return (
        np.rot90(pixels, -int(name.split("-")[1].split(".")[0]) // 90, axes=(1, 2))
        if name.startswith("rotated")
        else pixels
    )


def read_blocks(pixels: Pixels) -> list[int]:
    """The numbers, from the middle of each block, whatever the size."""
    _, height, width, _ = pixels.shape
    rows, columns = ((2 * np.arange(4) + 1) * height // 8), ((2 * np.arange(4) + 1) * width // 8)
    bits = pixels[:, rows][:, :, columns].mean(axis=3).reshape(len(pixels), 16) > 128
    return [int(number) for number in (bits << np.arange(16)).sum(axis=1)]
