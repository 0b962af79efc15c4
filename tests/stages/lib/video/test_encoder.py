"""Encoding: the same bytes every time, by commands that ffmpeg-python built, and clear errors."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path

import ffmpeg
import numpy as np
import pytest

from stages.lib.video.encoder import encode, encode_command, ffmpeg_binary, validate
from stages.lib.video.errors import FfmpegMissing, VideoError
from stages.lib.video.probe import probe
from tests.support.video.numbered_frames import FRAMES, RATE, draw_numbers


def test_the_same_frames_give_the_same_bytes(numbered: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    encode(iter(draw_numbers(list(range(FRAMES)))), RATE, again, crf=10)
    assert again.read_bytes() == numbered.read_bytes()
    assert b"Lavf" not in again.read_bytes()


def test_the_rate_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "ntsc.mp4"
    encode(draw_numbers([1, 2, 3]), Fraction(30000, 1001), path, crf=20)
    assert probe(path).rate == Fraction(30000, 1001)


def test_ffmpeg_python_builds_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[list[str]] = []
    compile_ = ffmpeg.nodes.OutputStream.compile

    def recording(stream: object, **options: object) -> list[str]:
        built.append(compile_(stream, **options))
        return built[-1]

    monkeypatch.setattr(ffmpeg.nodes.OutputStream, "compile", recording)
    path = tmp_path / "clip.mp4"
    command = encode(draw_numbers([7, 8]), RATE, path, crf=20)
    assert len(validate(path).times) == 2
    assert len(built) == 2
    assert command == built[0] == encode_command(64, 64, RATE, path, 20)
    assert command[0] == ffmpeg_binary()


def test_wrong_frames_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(ValueError, match=r"63x64; H\.264 in yuv420p needs an even"):
        encode(np.zeros((2, 64, 63, 3), np.uint8), RATE, path, crf=20)
    with pytest.raises(ValueError, match=r"need uint8 \[T, H, W, 3\]"):
        encode(np.zeros((0, 64, 64, 3), np.uint8), RATE, path, crf=20)
    assert not path.exists()


def test_a_missing_ffmpeg_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDBRIDGE_FFMPEG", str(tmp_path / "nowhere"))
    with pytest.raises(
        FfmpegMissing, match=r"VIDBRIDGE_FFMPEG: '.*nowhere' is not an executable file; correct it, or unset it"
    ):
        encode(draw_numbers([1]), RATE, tmp_path / "clip.mp4", crf=20)


def test_another_ffmpeg_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "my ffmpeg"
    link.symlink_to(ffmpeg_binary())
    monkeypatch.setenv("VIDBRIDGE_FFMPEG", str(link))
    assert encode(draw_numbers([1, 2]), RATE, tmp_path / "clip.mp4", crf=20)[0] == str(link)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device")
def test_a_full_disk_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        encode(draw_numbers(list(range(30))), RATE, Path("/dev/full"), crf=0)
    assert caught.value.errno == errno.ENOSPC


def test_a_failure_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"encode-failed: clip\.mp4: "):
        encode(draw_numbers([1, 2]), RATE, tmp_path / "no-folder" / "clip.mp4", crf=20)
    with pytest.raises(VideoError, match=r"encode-failed: slow\.mp4: ffmpeg did not end within 0\.001 s"):
        encode(draw_numbers([1, 2]), RATE, tmp_path / "slow.mp4", crf=20, timeout_s=0.001)
    assert not list(tmp_path.iterdir())


def test_a_stuck_decode_ends(numbered: Path) -> None:
    with pytest.raises(VideoError, match=r"timeout: plain\.mp4: decoding did not end within"):
        validate(numbered, timeout_s=0.001)
