"""Clips that are parts of a file: their frames are those of a file cut from it, read from the file
itself."""

from __future__ import annotations

import json
import os
import subprocess
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stages.domain.core.frames import Fit
from stages.domain.core.records import Clip, Excerpt, Segment, Span, Timeline
from stages.domain.core.timeline import interleave, mask, plain
from stages.ingest.examination import Asked, examine
from stages.ingest.examine import examine_source
from stages.lib.video import loader as edits
from stages.lib.video.encoder import encode, ffmpeg_binary
from stages.lib.video.loader import FrameLoader
from stages.lib.video.reader import read_frames
from stages.params import load_params
from stages.runtime.frame_cache import FrameStore
from stages.tools.dataset import browse, export
from tests.support.builders import sample_about
from tests.support.checkout import ROOT
from tests.support.video.numbered_frames import draw_numbers, read_numbers

FRAMES, RATE = 120, Fraction(10)
PARAMS = load_params(ROOT / "params.yaml").ingest


def _ffmpeg(*arguments: str) -> bytes:
    command = [ffmpeg_binary(), "-v", "error", "-y", *arguments]
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout


def _cpu_s() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    spent = os.times()
    return sum(spent[:4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    encode(draw_numbers(list(range(FRAMES))), RATE, folder / "long.mp4", crf=10)
    encode(draw_numbers(list(range(1000, 1060))), RATE, folder / "other.mp4", crf=10)
    _ffmpeg("-i", str(folder / "long.mp4"), "-c", "copy", str(folder / "long.mkv"))
    # Every third frame is shown for three tenths of a second, the others for one.
    _ffmpeg(
        *("-i", str(folder / "long.mp4"), "-vf", "setpts='(N+2*floor(N/3))/10/TB'", "-fps_mode", "vfr"),
        *("-enc_time_base", "1/1000", "-c:v", "libx264", "-qp", "10", str(folder / "uneven.mkv")),
    )
    return folder


def _clip(path: str, first: int, frames: int, name: str = "", **changes: object) -> Clip:
    values = {
        "clip_id": name or f"{path}@{first}",
        "source_id": path,
        "path": path,
        "sha256": f"{len(path):064x}",
        "split": "train",
        "frames": frames,
        "rate": RATE,
        "width": 64,
        "height": 64,
        "codec": "h264",
        "excerpt": Excerpt(first=first, file_frames=FRAMES),
    }
    return Clip.model_validate(values | changes)


_sample = partial(sample_about, shown=8)


@pytest.fixture(params=["whole clips", "samples only"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "samples only":
        monkeypatch.setattr(edits, "WHOLE_CLIP_BYTES", 0)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("path", ["long.mp4", "long.mkv"])
def test_a_part_shows_its_own_frames_of_the_file(path: str, folder: Path) -> None:
    hazards = () if path.endswith("mp4") else ("container",)
    clips = [_clip(path, first, 30, hazards=hazards) for first in (0, 40, 90)]
    loader = FrameLoader({clip.clip_id: clip for clip in clips}, folder, cache_bytes=10_000_000)
    for clip in clips:
        whole = plain(clip.clip_id, clip.frames, clip.rate)
        assert read_numbers(loader.frames(whole, range(30))) == list(range(clip.first_frame, clip.first_frame + 30))
        shown = loader.load(_sample(mask(whole, Span(start=10, stop=20)), clip.clip_id))
        dark = [10 <= index < 20 for index in shown.indices]
        expected = [clip.first_frame + index for index in shown.indices]
        assert shown.total == 30
        assert read_numbers(shown.pixels[np.logical_not(dark)]) == [
            number for number, is_dark in zip(expected, dark, strict=True) if not is_dark
        ]
        assert not shown.pixels[dark].any()


@pytest.mark.usefixtures("memory")
def test_a_part_is_mixed_with_another_clip_and_with_another_rate(folder: Path) -> None:
    part = _clip("long.mp4", 60, 40)
    other = _clip("other.mp4", 0, 60, excerpt=None)
    loader = FrameLoader({clip.clip_id: clip for clip in (part, other)}, folder, cache_bytes=10_000_000)
    spans = [Span(start=0, stop=20), Span(start=20, stop=40)]
    mixed = interleave(*([Segment(clip_id=clip.clip_id, span=span) for span in spans] for clip in (part, other)), RATE)
    pieces = [range(60, 80), range(1000, 1020), range(80, 100), range(1020, 1040)]
    assert read_numbers(loader.frames(mixed, range(80))) == [number for piece in pieces for number in piece]
    slower = Timeline(rate=Fraction(5), segments=(Segment(clip_id=part.clip_id, span=Span(start=0, stop=20)),))
    numbers = read_numbers(loader.frames(slower, range(20)))
    assert all(0 <= number - (60 + 2 * n) <= 1 for n, number in enumerate(numbers)), numbers


def test_parts_of_a_file_of_uneven_times_follow_its_even_clock(folder: Path) -> None:
    report = examine(Asked("uneven.mkv"), folder, None)
    assert report.media is not None
    assert report.media.variable_rate
    about = {"rate": report.media.rate, "hazards": report.media.hazards, "variable_rate": True}
    total = report.media.frames
    whole = _clip("uneven.mkv", 0, total, excerpt=None, **about)
    parts = [
        _clip("uneven.mkv", first, 20, excerpt=Excerpt(first=first, file_frames=total), **about)
        for first in (0, 37, total - 20)
    ]
    loader = FrameLoader({clip.clip_id: clip for clip in (*parts, whole)} | {"whole": whole}, folder, 0)
    shown = read_numbers(loader.frames(plain("whole", total, whole.rate), range(total)))
    assert len(set(shown)) > 50
    for part in parts:
        found = read_numbers(loader.frames(plain(part.clip_id, 20, part.rate), range(20)))
        assert found == shown[part.first_frame : part.first_frame + 20]


def test_parts_with_the_same_frames_share_an_entry_on_disk(folder: Path, tmp_path: Path) -> None:
    same = [_clip("long.mp4", 40, 30, "x"), _clip("long.mp4", 40, 30, "y"), _clip("long.mp4", 20, 50, "longer")]
    apart = [_clip("long.mp4", 41, 30, "later"), _clip("long.mp4", 0, FRAMES, "file", excerpt=None)]
    store, fit = FrameStore(tmp_path / "frames", 10**9), Fit("test", lambda pixels: pixels)
    clips = {clip.clip_id: clip for clip in (*same, *apart)}
    loader = FrameLoader(clips, folder, 10_000_000, store=store, fit=lambda: fit)

    def key(name: str, first: int) -> str:
        timeline = plain(name, clips[name].frames, RATE)
        return loader._key(timeline, range(first, first + 10), fit)

    assert key("x", 0) == key("y", 0) == key("longer", 20) == key("file", 40)
    assert key("x", 1) == key("later", 0) != key("x", 0)


def test_a_small_part_of_a_large_file_is_kept_on_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edits, "WHOLE_CLIP_BYTES", 50 * 64 * 64 * 3)
    store, fit = FrameStore(tmp_path / "frames", 10**9), Fit("test", lambda pixels: pixels)
    clip = _clip("long.mp4", 40, 30)
    for _ in range(2):
        loader = FrameLoader({clip.clip_id: clip}, folder, 10_000_000, store=store, fit=lambda: fit)
        shown = loader.load(_sample(plain(clip.clip_id, 30, RATE)))
        assert read_numbers(shown.pixels) == [40 + index for index in shown.indices]
    assert (store.stats.hits, store.stats.misses) == (1, 1)


def test_an_exported_clip_is_the_part(folder: Path, tmp_path: Path) -> None:
    clip = _clip("long.mp4", 37, 43)
    loader = FrameLoader({clip.clip_id: clip}, folder, 0)
    export.render(_sample(plain(clip.clip_id, 43, RATE)), loader, tmp_path / "part.mp4")
    pixels, _ = read_frames(tmp_path / "part.mp4", range(43))
    assert read_numbers(pixels) == list(range(37, 80))


def test_the_page_says_which_part_a_clip_is() -> None:
    about = browse._provenance(_clip("long.mp4", 40, 30), "")["about"]
    assert "long.mp4 · its part from 4 to 7 s, from frame 40 · 30 frames at 10/s" in about


# The recording of twenty minutes.


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty minutes at 10 frames a second, each frame with its own number; closed and open groups
    of pictures, B-frames, as ffmpeg makes them."""
    folder = tmp_path_factory.mktemp("twenty-minutes")
    numbers = draw_numbers(list(range(12_000)), size=32)
    encode(numbers, Fraction(10), folder / "recording.mp4", crf=18)
    return folder


@pytest.mark.slow
def test_forty_segments_of_a_recording_are_forty_clips_with_the_frames_of_files_cut_by_ffmpeg(
    recording: Path, tmp_path: Path
) -> None:
    starts = [Fraction(n * 30) + Fraction(n * n % 97, 100) for n in range(40)]
    ends = [min(start + 5 + Fraction(n * 7 % 23, 10), Fraction(1200)) for n, start in enumerate(starts)]
    rows = [
        {"video": "recording.mp4", "start": float(s), "end": float(e), "caption": f"part {n}"}
        | {"events": [{"start": float(s), "end": float(s) + 2, "caption": f"begins {n}"}]}
        for n, (s, e) in enumerate(zip(starts, ends, strict=True))
    ]
    (recording / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    began = _cpu_s()
    clips, rejects, _, counts, _ = examine_source(PARAMS.model_copy(update={"source": str(recording)}), 7)
    megabytes = (recording / "recording.mp4").stat().st_size / 1e6
    print(f"ingest: {_cpu_s() - began:.1f} s of CPU for 20 minutes of {megabytes:.1f} MB")
    assert (len(clips), rejects, counts) == (40, [], (40, 40))
    assert len({clip.split for clip in clips}) == 1
    assert {clip.source_id for clip in clips} == {"recording"}
    assert all(clip.events[0].span == Span(start=0, stop=20) for clip in clips)

    loader = FrameLoader({clip.clip_id: clip for clip in clips}, recording, 0)
    of_caption, read_s = {clip.caption: clip for clip in clips}, 0.0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        clip = of_caption[f"part {number}"]
        cut = tmp_path / f"{number}.mkv"
        # ffmpeg's own cut, lossless, in the same pixel format: frames whose middle is in the part.
        # A middle that is the part's start is before it.
        between = f"trim=start={float(start)}:end={float(end)}"
        shifted = f"setpts=PTS+1/(2*10*TB)-1,{between},setpts=PTS-STARTPTS"
        _ffmpeg("-i", str(recording / "recording.mp4"), "-vf", shifted, "-c:v", "ffv1", str(cut))
        # Decoded by ffmpeg, too.
        raw = _ffmpeg("-i", str(cut), "-f", "rawvideo", "-pix_fmt", "rgb24", "-sws_flags", "bilinear", "-")
        expected = np.frombuffer(raw, np.uint8).reshape(-1, clip.height, clip.width, 3)
        began = _cpu_s()
        found = loader.frames(plain(clip.clip_id, clip.frames, clip.rate), range(clip.frames))
        read_s += _cpu_s() - began
        assert np.array_equal(found, expected), clip.clip_id
    print(f"{sum(clip.frames for clip in clips):,} frames read: {read_s:.1f} s of CPU")


@pytest.mark.slow
def test_a_recording_over_the_bound_is_taken_in_parts_that_cover_it(recording: Path) -> None:
    events = [{"start": n * 100 + 10, "end": n * 100 + 12, "caption": f"event {n}"} for n in range(12)]
    row = {"video": "recording.mp4", "events": events, "caption": "twenty minutes"}
    (recording / "annotations.jsonl").write_text(json.dumps(row))
    params = PARAMS.model_copy(update={"source": str(recording), "max_duration_s": 290.0, "longer": "parts"})
    clips, rejects, _, counts, _ = examine_source(params, 7)
    assert [clip.frames for clip in clips] == [2400] * 5
    assert ([reject.reason for reject in rejects], counts) == (["about-whole-recording"], (1, 1))
    assert sum(len(clip.events) for clip in clips) == 12
    loader = FrameLoader({clip.clip_id: clip for clip in clips}, recording, 0)
    for clip in clips:
        edges = loader.frames(plain(clip.clip_id, 2400, RATE), [0, *(e.span.start for e in clip.events), 2399])
        first = clip.first_frame
        told = [int(event.caption.split()[1]) * 1000 + 100 for event in clip.events]
        assert read_numbers(edges) == [first, *told, first + 2399]
