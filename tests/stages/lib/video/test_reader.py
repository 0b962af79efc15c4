"""No wrong frame: for every container and codec, frame n is frame n."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stages.lib.video import reader
from stages.lib.video.encoder import encode, ffmpeg_binary, validate
from stages.lib.video.errors import VideoError
from stages.lib.video.probe import probe
from stages.lib.video.reader import ReadStats, _read_decord, _read_pyav, choose, read_frames
from tests.support.checkout import ROOT
from tests.support.video.numbered_frames import FRAMES, RATE, draw_numbers, read_numbers

Make = Callable[..., Path]
REAL = ROOT / "tests/data/clips/bigbuckbunny.mp4"
WANTED = [0, 1, 19, 20, 21, 33, 47, 58, 59, 20]


def test_the_projects_own_files_are_read_by_decord(numbered: Path) -> None:
    facts, stats = probe(numbered), ReadStats()
    assert (facts.codec, facts.width, facts.height, facts.frames, facts.rate) == ("h264", 64, 64, FRAMES, RATE)
    assert facts.duration_s == FRAMES / RATE
    assert facts.hazards == ()
    assert not facts.variable_rate
    pixels, backend = read_frames(numbered, WANTED, stats=stats)
    assert backend == "decord"
    assert read_numbers(pixels) == WANTED
    assert stats == ReadStats(decord=len(WANTED), pyav=0)


@pytest.mark.parametrize("video", ["numbered", "real"])
def test_both_readers_give_the_same_pixels(video: str, numbered: Path) -> None:
    path = numbered if video == "numbered" else REAL
    facts = probe(path)
    served = read_frames(path, WANTED)
    assert served[1] == choose(facts) == ("decord" if video == "numbered" else "pyav")
    by_decord = _read_decord(path, WANTED, facts)
    assert by_decord is not None
    assert np.array_equal(by_decord, _read_pyav(path, WANTED, facts))
    assert np.array_equal(served[0], by_decord)


def test_widths_that_decord_does_not_return_are_read_by_the_other_reader(tmp_path: Path) -> None:
    """decord 0.6 copies rows of 48 px from a buffer of longer rows, and refuses ("from_size ==
    to_size")."""
    path = tmp_path / "narrow.mp4"
    source = ["-f", "lavfi", "-i", "testsrc2=size=48x64:rate=8:duration=2", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run([ffmpeg_binary(), "-v", "error", *source], check=True, timeout=60)
    facts, stats = probe(path), ReadStats()
    assert choose(facts) == "decord"
    pixels, backend = read_frames(path, [0, 7, 15], stats=stats)
    assert (pixels.shape, backend, stats) == ((3, 64, 48, 3), "pyav", ReadStats(pyav=3))
    assert np.array_equal(pixels, _read_pyav(path, [0, 7, 15], facts))


def test_without_decord_the_other_reader_serves(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_decord_installed", lambda: False)
    pixels, backend = read_frames(numbered, WANTED)
    assert backend == "pyav"
    assert read_numbers(pixels) == WANTED


ZOO = {
    "open-gop.mp4": (
        ("-c:v", "libx264", "-x264-params", "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0"),
        "open-gop",
    ),
    "open-gop-hevc.mp4": (
        ("-c:v", "libx265", "-x265-params", "open-gop=1:keyint=10:min-keyint=10:bframes=3:log-level=none"),
        "open-gop",
    ),
    "ten-bit.mp4": (("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none"), "pixel-format"),
    "stream.ts": (("-c:v", "libx264", "-g", "12"), "container"),
    "matroska.mkv": (("-c", "copy"), "container"),
    "vp9.webm": (("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime"), "codec"),
    "av1.mp4": (("-c:v", "libsvtav1", "-preset", "13", "-svtav1-params", "lp=1"), "codec"),
    "short-gops.mp4": (("-c:v", "libx264", "-g", "2", "-bf", "0"), None),
}


@pytest.mark.parametrize("name", ZOO)
def test_no_wrong_frame(name: str, make: Make) -> None:
    arguments, hazard = ZOO[name]
    path = make(name, *arguments)
    facts = probe(path)
    assert facts.frames == FRAMES == len(validate(path).times)
    assert facts.rate == RATE
    assert hazard in facts.hazards or (hazard is None and facts.decord_safe)
    pixels, backend = read_frames(path, WANTED)
    assert backend == ("pyav" if hazard else "decord")
    assert read_numbers(pixels) == WANTED
    assert read_numbers(_read_pyav(path, WANTED, facts)) == WANTED


def test_a_stream_copied_cut_shows_what_a_player_shows(make: Make) -> None:
    source = make("ten-frame-gops.mp4", "-c:v", "libx264", "-g", "10", "-crf", "12")
    path = make("cut.mp4", "-c", "copy", before=("-ss", "2.35"), source=source)
    facts = probe(path)
    assert {"discarded-frames", "late-start"} & set(facts.hazards)
    assert facts.frames == len(validate(path).times)
    numbers = read_numbers(read_frames(path, range(facts.frames))[0])
    assert numbers == list(range(FRAMES - facts.frames, FRAMES))


@pytest.mark.parametrize(("degrees", "quarter_turns"), [("90", 1), ("180", 2), ("270", 3)])
def test_rotation_is_applied(degrees: str, quarter_turns: int, make: Make, tmp_path: Path) -> None:
    wide = tmp_path / "wide.mp4"
    encode(np.concatenate([draw_numbers([5, 6, 7]), draw_numbers([1, 2, 3])], axis=2), Fraction(10), wide, crf=10)
    path = make(f"turned-{degrees}.mp4", "-c", "copy", before=("-display_rotation:v:0", degrees), source=wide)
    facts = probe(path)
    assert facts.hazards == ("rotation",)
    turned = np.rot90(read_frames(wide, [1])[0][0], quarter_turns)
    assert (facts.height, facts.width) == turned.shape[:2]
    assert np.array_equal(read_frames(path, [1])[0][0], turned)


def test_variable_rate_is_noticed_and_read_frame_by_frame(make: Make) -> None:
    path = make("vfr.mp4", "-vf", "select='not(between(n,10,19))'", "-fps_mode", "vfr", "-c:v", "libx264")
    facts = probe(path)
    assert facts.variable_rate
    assert facts.frames == FRAMES - 10
    assert read_numbers(read_frames(path, [9, 10, 49])[0]) == [9, 20, 59]


def test_a_change_of_size_is_noticed_and_conformed(make: Make, tmp_path: Path) -> None:
    small = make("small.ts", "-c:v", "libx264", "-vf", "scale=32:32:flags=neighbor", "-bsf:v", "h264_mp4toannexb")
    large = make("large.ts", "-c:v", "libx264", "-bsf:v", "h264_mp4toannexb")
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    joined = make("joined.mp4", "-c", "copy", source=both)
    facts = probe(joined)
    assert "resolution-change" in facts.hazards
    assert read_numbers(read_frames(joined, [5, facts.frames - 1])[0]) == [5, 59]


def test_cover_art_is_not_the_video(make: Make) -> None:
    cover = make("cover.png", "-frames:v", "1")
    art = ("-i", str(cover), "-map", "0:v", "-map", "1:v", "-c", "copy", "-disposition:v:1", "attached_pic")
    cover_last = make("with-cover.mp4", *art)
    cover_first = make(
        "cover-first.mp4",
        "-i",
        str(cover),
        "-map",
        "1:v",
        "-map",
        "0:v",
        "-c",
        "copy",
        "-disposition:v:0",
        "attached_pic",
    )
    for path in (cover_last, cover_first):
        assert len(validate(path).times) == FRAMES
        assert read_numbers(read_frames(path, [41])[0]) == [41]
    sound = make("sound.m4a", "-f", "lavfi", "-i", "sine=duration=0.5", "-map", "1:a", "-c:a", "aac")
    only = make(
        "only-cover.m4a",
        "-i",
        str(cover),
        "-map",
        "0:a",
        "-map",
        "1:v",
        "-c",
        "copy",
        "-disposition:v",
        "attached_pic",
        source=sound,
    )
    for path in (sound, only):
        with pytest.raises(VideoError) as caught:
            probe(path)
        assert caught.value.reason == "no-video-stream"


def test_awkward_names(numbered: Path, tmp_path: Path) -> None:
    for name in ("-y.mp4", "zwei Wörter %03d.mp4", "file:concat|x.mp4"):
        path = tmp_path / name
        path.write_bytes(numbered.read_bytes())
        assert len(validate(path).times) == FRAMES
        assert read_numbers(read_frames(path, [33])[0]) == [33]


def test_a_frame_outside_is_an_error(numbered: Path) -> None:
    with pytest.raises(IndexError, match=r"frame 60 was requested, there are 60 \(0 to 59\)"):
        read_frames(numbered, [0, 60])
    assert read_frames(numbered, [])[0].shape == (0, 64, 64, 3)


def _damage(kind: str, good: bytes) -> bytes:
    return {
        "empty": b"",
        "text": b"This is not a video.\n" * 40,
        "html": b"<!doctype html><title>404</title>" * 20,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "head-only": good[: len(good) // 2],
        "header-only": good[:40],
        "bit-rot": good[: len(good) // 2] + bytes(b ^ 0x5A for b in good[len(good) // 2 :]),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "empty-file"),
        ("text", "not-a-video"),
        ("html", "not-a-video"),
        ("playlist", "not-a-video"),
        ("concat", "not-a-video"),
        ("header-only", "damaged"),
    ],
)
def test_what_is_no_video_is_named(kind: str, reason: str, numbered: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.mp4"
    path.write_bytes(_damage(kind, numbered.read_bytes()))
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == reason
    with pytest.raises(VideoError, match="damaged"):
        validate(path)


@pytest.mark.parametrize("kind", ["head-only", "bit-rot"])
def test_damage_behind_a_sound_header_is_found(kind: str, numbered: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.mp4"
    path.write_bytes(_damage(kind, numbered.read_bytes()))
    with pytest.raises(VideoError, match="damaged"):
        validate(path)
    with pytest.raises(VideoError):
        read_frames(path, range(FRAMES))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"missing-file: gone\.mp4"):
        probe(tmp_path / "gone.mp4")
