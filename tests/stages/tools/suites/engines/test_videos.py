"""Resolve questions to files, and load their frames."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stages.lib.video.encoder import encode, ffmpeg_binary
from stages.lib.video.errors import VideoError
from stages.lib.video.loader import load_video
from stages.tools.serving.decode import DecodeRequest, load_bounded
from stages.tools.suites.engines.contents import Contents
from stages.tools.suites.engines.questions import drawn, questions
from stages.tools.suites.engines.videos import VideoFolder, VideoLoader, video_key_of
from stages.tools.suites.frames import frame_count, load_at
from stages.tools.suites.score import read_questions
from tests.support.suites.annotations import lines, mvbench


def test_a_video_is_found_by_the_name_that_annotations_give_it(tmp_path: Path) -> None:
    for name in ("a.mp4", "deep/b.webm", "deep/b.srt", "one/twin.mp4", "two/twin.mp4", "deep/c.MP4", "sub/c.json"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "secret.mp4").touch()
    folder = VideoFolder(tmp_path / "in")

    def found(name: str) -> str:
        return folder.find(name).relative_to(tmp_path / "in").as_posix()

    assert found("a.mp4") == "a.mp4"
    assert found("deep/b.webm") == "deep/b.webm"
    assert found("b") == "deep/b.webm", "an id, and subtitles of the same name"
    assert found("task/b.mp4") == "deep/b.webm", "elsewhere, and in another container"
    assert found("c") == "deep/c.MP4"
    assert found("two/twin.mp4") == "two/twin.mp4"
    for name, reason in (
        ("twin.mp4", "ambiguous-name"),
        ("three/twin.mp4", "ambiguous-name"),
        ("nowhere.mp4", "missing-file"),
        ("../secret.mp4", "unsafe-name"),
        (str(tmp_path / "secret.mp4"), "unsafe-name"),
    ):
        with pytest.raises(VideoError) as error:
            folder.find(name)
        assert error.value.reason == reason


def test_a_video_that_is_shown_as_it_is_though_it_needs_conversion_is_named(tmp_path: Path) -> None:
    for name, filters, flags in (
        ("fields.mp4", "tinterlace=interleave_top,setfield=tff", ["-flags", "+ilme+ildct"]),
        ("plain.mp4", "setfield=prog", []),
    ):
        command = [ffmpeg_binary(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x64:r=16:d=2", "-vf", filters]
        subprocess.run([*command, "-c:v", "libx264", *flags, str(tmp_path / name)], timeout=60, check=True)
    (warning,) = load_at(tmp_path / "fields.mp4", None, 4, None).warnings
    assert warning.startswith("fields.mp4: its frames hold the lines of two moments")
    assert "deinterlace it first: ffmpeg" in warning
    assert load_video(tmp_path / "fields.mp4", 4).warnings == (warning,)
    assert load_bounded(DecodeRequest(tmp_path / "fields.mp4", 4, 1 << 24)).warnings == (warning,)
    assert load_at(tmp_path / "plain.mp4", None, 4, None).warnings == ()
    (tmp_path / "action.json").write_text(json.dumps([mvbench(video=name) for name in ("fields.mp4", "plain.mp4")]))
    items = read_questions("mvbench", tmp_path / "action.json").items
    loader = VideoLoader(items, tmp_path, pytest.fail, Contents(tmp_path / "videos.jsonl"), pytest.fail)
    for item in items:
        loader.load(video_key_of(item))
    assert loader.warnings == {"action/fields.mp4": (warning,)}


def test_frames_by_protocol_of_the_whole_and_of_a_part(tmp_path: Path) -> None:
    grey = np.repeat(np.arange(0, 240, 3, dtype=np.uint8), 32 * 32 * 3).reshape(80, 32, 32, 3)
    file = tmp_path / "ten.mp4"
    encode(grey, Fraction(8), file, 4)  # ten seconds, brighter and brighter

    def shown(fps: Fraction | None, most: int, part: tuple[float, float] | None) -> list[int]:
        frames = load_at(file, fps, most, part)
        assert len(frames.indices) == len(frames.pixels)
        return [round(float(frame.mean()) / 3) for frame in frames.pixels]

    assert len(shown(Fraction(1), 128, None)) == 10
    assert shown(None, 4, None) == pytest.approx([0, 26, 53, 79], abs=1)
    assert len(shown(Fraction(2), 16, None)) == 16
    part = shown(Fraction(1), 128, (5.0, 8.0))
    assert (len(part), part[0], part[-1]) == (4, pytest.approx(40, abs=1), pytest.approx(63, abs=1))
    assert load_at(file, None, 4, (5.0, 99.0)).total == 40
    between = load_at(file, Fraction(1), 128, (2.51, 2.6))
    assert (between.total, round(float(between.pixels[0].mean()) / 3)) == (1, pytest.approx(20, abs=1)), (
        "on display since 2.5 s"
    )
    assert load_at(file, None, 4, (9.9, 10.0)).total == 1
    assert load_at(file, None, 4, (2.4, 2.6)).total == 1, "the frame that begins in it"
    for wrong in ((11.0, 12.0), (5.0, 5.0), (6.0, 5.0), (-1.0, 2.0)):
        with pytest.raises(VideoError, match="no-such-part"):
            shown(Fraction(1), 128, wrong)
    assert [frame_count(Fraction(s), Fraction(1), 128) for s in (0, 1, 3, 127, 500)] == [2, 2, 4, 128, 128]


def test_rows_of_mvbench_name_a_part_of_their_video(tmp_path: Path) -> None:
    rows = [mvbench(), mvbench(start=1.5, end=4), mvbench(start=1.5, end=4), mvbench(start=2, end=4)]
    items = read_questions("mvbench", lines(tmp_path / "action.json", rows)).items
    assert [item.part_s for item in items] == [None, (1.5, 4), (1.5, 4), (2, 4)]
    assert len({video_key_of(item) for item in items}) == 3, "what is shown is another part, or the same"
    asked = questions([(item.item_id, video_key_of(item), "?") for item in items], {items[1].item_id})
    assert [(q.item_id, q.view) for q in asked if q.video_key.endswith("#1.5-4.0")] == [
        ("action/1", "video"),
        ("action/2", "video"),
        ("action/1", "blank"),
        ("action/1", "shuffled"),
    ]


def test_parts_late_in_a_long_video_are_told_apart(tmp_path: Path) -> None:
    rows = [mvbench(start=1234.567, end=1240.0), mvbench(start=1234.568, end=1240.0)]
    items = read_questions("mvbench", lines(tmp_path / "action.json", rows)).items
    assert len({video_key_of(item) for item in items}) == 2, (
        "else one of the two would be asked about the other's frames"
    )


def test_controls_are_drawn_by_seed() -> None:
    ids = [f"{i}" for i in range(200)]
    few = drawn(ids, 50, 7)
    assert len(few) == 50
    assert few == drawn(list(reversed(ids)), 50, 7) != drawn(ids, 50, 8)
    assert len(few & drawn(ids[1:], 50, 7)) >= 49
    assert drawn(ids, None, 7) == set(ids)
    assert drawn(ids, 0, 7) == set()
