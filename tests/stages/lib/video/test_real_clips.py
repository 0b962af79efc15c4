"""Clips of public test suites against a decoder that is not ours: each frame is the one that ffmpeg
writes at that place, or the file is rightly rejected."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from stages.ingest.examination import Asked, examine
from stages.lib.video import reader
from stages.lib.video.encoder import ffmpeg_binary
from stages.lib.video.errors import VideoError
from stages.lib.video.probe import UNTRUSTED_TIMES, probe
from stages.lib.video.reader import read_frames
from stages.tools.suites.frames import load_at
from tests.support.siblings import REAL_CLIPS, needs_real_clips

#: Unusable files, with the reason: cut off before its index, an empty header, a bad access unit,
#: damaged slices.
SET_ASIDE = {
    "broken.mp4": "damaged",
    "empty.flv": "not-a-video",
    "corrupted.mp4": "damaged",
    "weird_aspect.small.mpg": "damaged",
}
#: Those of them whose damage lies between the pictures that a sampled validation decodes.
FOUND_WHEN_READ = frozenset(("corrupted.mp4", "weird_aspect.small.mpg"))
CLIPS = (
    sorted(path.name for path in REAL_CLIPS.iterdir() if path.is_file() and path.suffix != ".md")
    if REAL_CLIPS.is_dir()
    else []
)
#: Frames are compared as small pictures: a decoder's rounding of colours changes them little.
SIDE = 12


@needs_real_clips
def test_all_of_them_are_here() -> None:
    assert len(CLIPS) == 34
    assert set(SET_ASIDE) < set(CLIPS)


@needs_real_clips
@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_ffmpeg(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine(Asked(name), REAL_CLIPS, None)
    sampled = examine(Asked(name, whole=False), REAL_CLIPS, None)
    if name in FOUND_WHEN_READ:
        assert sampled.media is not None
        facts = probe(REAL_CLIPS / name)
        with pytest.raises(VideoError, match="damaged"):
            read_frames(REAL_CLIPS / name, range(facts.frames), facts=facts)
    else:
        assert (sampled.media, sampled.problem) == (found.media, found.problem)
    if name in SET_ASIDE:
        assert found.problem is not None
        assert found.problem.reason == SET_ASIDE[name]
        return
    assert found.media is not None, found.problem
    assert found.media.duration_s > 0
    path = REAL_CLIPS / name
    facts = probe(path, distrust=UNTRUSTED_TIMES in found.media.hazards)
    assert facts.slots == found.media.frames
    truth = _decoded_by_ffmpeg(path, facts.width, facts.height)
    assert len(truth) == facts.frames
    for most in (0, 10**12)[: 1 + facts.decord_safe]:  # by PyAV, then by decord where it is correct
        monkeypatch.setattr(reader, "DECORD_PIXELS", most)
        for start in range(0, facts.frames, 150):
            numbers = range(start, min(start + 150, facts.frames))
            _agree(_small(read_frames(path, numbers, facts=facts)[0]), truth, numbers)
    few = load_at(path, None, 16, None)
    _agree(_small(few.pixels), truth, [facts.frame_at(slot) for slot in few.indices])


@needs_real_clips
@pytest.mark.parametrize("name", ["broken.mp4", "empty.flv"])
def test_what_opens_nowhere_is_named(name: str) -> None:
    with pytest.raises(VideoError, match=name):
        load_at(REAL_CLIPS / name, None, 8, None)


@needs_real_clips
def test_seconds_count_from_the_start_of_a_file_as_ffmpeg_counts_them() -> None:
    """Its sound starts at 0, its picture .128 s later; another has no sound, so that a player
    begins with its picture."""
    assert probe(REAL_CLIPS / "video_desks.3gp").starts_s == pytest.approx(0.128)
    assert probe(REAL_CLIPS / "test_non_zero_start.mp4").starts_s == 0
    assert float(probe(REAL_CLIPS / "test-middle-pat-pmt.ts").starts_s) == pytest.approx(
        59857.456056 - 59857.336467, abs=1e-5
    )


def _agree(shown: npt.NDArray[np.int16], truth: npt.NDArray[np.int16], numbers: object) -> None:
    """No frame of the file is closer to the displayed one than the frame of that number."""
    for picture, number in zip(shown, list(numbers), strict=True):  # type: ignore[call-overload]
        away = np.abs(truth - picture).mean(axis=(1, 2, 3))
        assert away[number] <= away.min() + 0.5, (
            f"frame {number} looks like frame {int(away.argmin())}: {away[number]:.2f}, {away.min():.2f}"
        )
        assert away[number] < 8, f"frame {number} is {away[number]:.1f} away from itself"


def _small(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    shrunk = [Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX) for frame in pixels]
    return np.stack([np.asarray(image) for image in shrunk]).astype(np.int16)


def _decoded_by_ffmpeg(path: Path, width: int, height: int) -> npt.NDArray[np.int16]:
    """All frames in ffmpeg's output order, upright, as small pictures."""
    command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-i", str(path), "-map", "0:V:0", "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-"]
    small = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while raw := process.stdout.read(width * height * 3):
            small.append(_small(np.frombuffer(raw, np.uint8).reshape(1, height, width, 3))[0])
    return np.stack(small)
