"""Frame n is the n-th frame of the decoder's output, at the file's presentation time: container x
codec x B-frames x times, each as it is and encoded again, through ingest and loader, through both
readers, and as a benchmark or a request loads it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from stages.ingest.examination import Asked, FileReport, examine
from stages.lib.video import reader
from stages.lib.video.errors import VideoError
from stages.lib.video.loader import load_video
from stages.lib.video.probe import Probe, probe
from stages.lib.video.reader import read_frames
from stages.tools.suites.frames import load_at
from tests.support.video.crossings import ONE_WRONG, Crossing, build_crossing, crossings, shown_at
from tests.support.video.numbered_frames import FRAMES
from tests.support.video.zoo import read_blocks

#: A file of each kind of fault, for the ordinary test run; the others take minutes.
FEW = frozenset(
    (
        "h264-bf0-own.avi",
        "h264-bf1-own.avi",
        "h264-bf2-own.avi",
        "h264-bf3-dts.mp4",
        "h264-bf2-raw-dts.mp4",
        "h264-bf16-dts.mkv",
        "h264-bf3-raw-dts.ts",
        "h264-bf2-dts.flv",
        "h264-bf2-own.asf",
        "mpeg4-bf2-own.avi",
        "mpeg2-bf2-dts.mpg",
        "hevc-bf3-dts.mkv",
        "vp8-altref-own.webm",
        "h264-bf2-own-varies.mp4",
        "h264-bf0-doubled-varies.mkv",
        "h264-bf2-backwards-varies.mkv",
        "hevc-bf3-ahead.mkv",
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crossings")


def _parameters() -> list[object]:
    return [
        pytest.param(crossing, id=crossing.name, marks=[] if crossing.name in FEW else pytest.mark.slow)
        for crossing in crossings()
    ]


@pytest.mark.parametrize("crossing", _parameters())
def test_no_wrong_frame(crossing: Crossing, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_crossing(crossing, folder)
    found = examine(Asked(crossing.name), folder, None)
    mended = examine(Asked(crossing.name), folder, tmp_path)
    if crossing.rejected:
        for each in (found, mended):
            assert each.problem is not None
            assert each.problem.reason in crossing.rejected
        with pytest.raises(VideoError, match="untrusted-times"):
            load_video(path, 8)
        return
    _check(crossing, path, found, monkeypatch)
    assert mended.media is not None, mended.problem
    if mended.media.normalised is not None:
        assert mended.media.hazards == ()
        _check(crossing, tmp_path / mended.media.normalised, mended, monkeypatch)


def _check(crossing: Crossing, path: Path, found: FileReport, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found.media is not None, found.problem
    facts = probe(path, distrust="untrusted-times" in found.media.hazards and not found.media.normalised)
    assert facts.frames == FRAMES
    assert facts.slots == found.media.frames
    in_order = list(range(FRAMES))
    jumps = [FRAMES - 1, 0, 31, 30, 29, 7, 31]
    for most in (0, reader.DECORD_PIXELS):  # PyAV reads a large file, decord a small one on which it is correct
        monkeypatch.setattr(reader, "DECORD_PIXELS", most)
        assert read_blocks(read_frames(path, in_order, facts=facts)[0]) == in_order
        assert read_blocks(read_frames(path, jumps, facts=probe(path))[0]) == jumps
    shown = read_blocks(read_frames(path, [facts.frame_at(slot) for slot in range(facts.slots)], facts=facts)[0])
    _on_display(crossing, shown, facts)
    # Without ingest, which decodes everything, a time that only the decoder knows to be wrong may
    # cost two frames their slots.
    frames = load_at(path, None, facts.slots, None)
    assert frames.total == facts.slots
    assert load_video(path, 8).total == facts.slots
    if crossing.times not in ONE_WRONG:
        assert read_blocks(frames.pixels) == [shown[slot] for slot in frames.indices]
        part = load_at(path, None, 20, (2, 3))
        assert part.total == facts.rate
        assert read_blocks(part.pixels)[0] == shown[int(2 * facts.rate)]


def _on_display(crossing: Crossing, shown: list[int], facts: Probe) -> None:
    if crossing.times == "dts" and crossing.container == "mpg":
        # Its muxer leaves most times out and writes some that are late: the file itself says that a
        # frame is shown for longer.
        assert shown == sorted(shown)
        assert set(shown) == set(range(FRAMES))
        return
    truth = [shown_at((slot + Fraction(1, 2)) / facts.rate, crossing.varies) for slot in range(facts.slots)]
    wrong = [slot for slot in range(facts.slots) if shown[slot] != truth[slot]]
    # One wrong time costs one frame its slot.
    assert len({truth[slot] for slot in wrong}) <= (crossing.times in ONE_WRONG), [
        (slot, shown[slot], truth[slot]) for slot in wrong
    ]
    assert all(abs(shown[slot] - truth[slot]) <= 1 for slot in wrong)
