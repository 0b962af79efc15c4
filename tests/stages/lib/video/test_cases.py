"""The small failing inputs of 0.1 (tests/data/cases, whose README lists the right results), and
others of their kinds."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stages.domain.core.records import Clip, Reject
from stages.domain.core.timeline import plain
from stages.ingest.examination import Asked, examine
from stages.ingest.examine import copy_normalised, examine_source
from stages.lib.video import probe as probing
from stages.lib.video.encoder import encode
from stages.lib.video.errors import VideoError
from stages.lib.video.loader import FrameLoader, load_video
from stages.lib.video.probe import probe
from stages.lib.video.reader import read_frames
from stages.params import load_params
from stages.tools.serving.decode import DecodeRequest, load_bounded
from stages.tools.suites.frames import load_at
from tests.support.checkout import ROOT
from tests.support.siblings import CASES

Make = Callable[..., Path]


def _ingested(
    names: list[str], events: dict[str, list[dict[str, object]]], tmp_path: Path, normalise: bool = False
) -> tuple[dict[str, Clip], dict[str, Reject], FrameLoader]:
    folder, journal = tmp_path / "videos", tmp_path / "journal.jsonl"
    folder.mkdir()
    for name in names:
        shutil.copy(CASES / name, folder)
    rows = [{"video": name, "id": name, "events": events.get(name, [])} for name in names]
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = load_params(ROOT / "params.yaml").ingest.model_copy(update={"source": str(folder), "normalise": normalise})
    clips, rejects, *_ = examine_source(params, 7, journal)
    copy_normalised(clips, journal, tmp_path)
    by_name = {clip.clip_id: clip for clip in clips}
    return (
        by_name,
        {reject.item: reject for reject in rejects},
        FrameLoader(by_name, folder, cache_bytes=0, manifest=tmp_path),
    )


def _greys(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], step: int) -> list[int]:
    return [round((grey - 20) / step) for grey in pixels.mean(axis=(1, 2, 3))]


@pytest.mark.parametrize("normalise", [False, True], ids=["as they are", "encoded again"])
def test_the_video_cases(normalise: bool, tmp_path: Path) -> None:
    late, doubled = "picture-starts-after-sound.mp4", "variable-rate-one-time-doubled.mkv"
    in_order = ["h264-b-frames.avi", "pts-equal-dts.mkv", late]
    events = {
        late: [{"start": 2.5, "end": 3.5, "caption": "it brightens"}, {"start": 0, "end": 4.5, "caption": "it lasts"}],
        doubled: [{"start": 5, "end": 6, "caption": "it holds"}],
    }
    clips, rejects, loader = _ingested(
        [*in_order, doubled, "starts-between-key-frames.ts"], events, tmp_path, normalise
    )
    assert rejects == {}
    shown = {
        name: loader.frames(plain(name, clip.frames, clip.rate), range(clip.frames)) for name, clip in clips.items()
    }
    for name in in_order:
        assert _greys(shown[name], 8) == list(range(24)), name
    assert _greys(shown["starts-between-key-frames.ts"], 5) == list(range(20, 40))
    assert [(event.span.start, event.span.stop) for event in clips[late].events] == [(0, 24), (8, 16)]
    (event,) = clips[doubled].events
    assert _greys(shown[doubled][event.span.start : event.span.stop], 8) == [12, 12]


def test_seconds_of_an_event_and_of_a_part_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    name = "picture-starts-after-sound.mp4"
    frames = load_at(CASES / name, None, 8, (2.5, 3.5))
    assert _greys(frames.pixels, 8) == list(range(8, 16))
    assert _greys(load_at(CASES / name, None, 8, (0, 2.5)).pixels, 8) == list(range(8))
    with pytest.raises(VideoError, match=r"no frame from 0 to 1 s; its picture lasts from 1\.5 to 4\.5 s"):
        load_at(CASES / name, None, 8, (0, 1))
    before = {name: [{"start": 0.5, "end": 1.5, "caption": "somebody speaks"}]}
    (tmp_path / "before").mkdir()
    _, rejects, _ = _ingested([name], before, tmp_path / "before")
    assert "is over, or half over, before the picture starts, at 1.5 s" in rejects[name].detail
    behind = {name: [{"start": 4, "end": 60, "caption": "it goes on"}]}
    (tmp_path / "behind").mkdir()
    _, rejects, _ = _ingested([name], behind, tmp_path / "behind")
    assert "which has 4.5 s" in rejects[name].detail


def test_a_file_without_sound_starts_with_its_picture(make: Make) -> None:
    path = make("late.mp4", "-c", "copy", "-output_ts_offset", "3")
    facts = probe(path)
    assert facts.starts_s == 0
    assert load_at(path, None, 10, (1, 2)).total == 10


@pytest.mark.parametrize(
    ("container", "codec"), [("ts", "libx264"), ("ts", "mpeg2video"), ("mkv", "libx264"), ("ts", "open")]
)
def test_a_recording_cut_anywhere_starts_at_its_first_whole_picture(
    container: str, codec: str, make: Make, tmp_path: Path
) -> None:
    from tests.support.video.numbered_frames import read_numbers

    options = (
        ("libx264", "-x264-params", "open-gop=1:keyint=15:min-keyint=15:bframes=3:b-adapt=0")
        if codec == "open"
        else (codec, "-bf", "2", "-g", "15")
    )
    whole = make(f"{codec}.{container}", "-c:v", *options, "-q:v", "2", "-crf", "12")
    cut = tmp_path / f"cut.{container}"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            if number >= 20:
                packet.stream = stream
                sink.mux(packet)
    facts = probe(cut)
    numbers = read_numbers(read_frames(cut, range(facts.frames))[0])
    assert numbers == list(range(60 - facts.frames, 60))
    assert 25 <= facts.frames <= 33
    assert facts.dropped
    found = examine(Asked(cut.name), tmp_path, None)
    assert found.media is not None, found.problem
    assert found.media.frames == facts.frames
    mended = examine(Asked(cut.name), tmp_path, tmp_path / "again")
    assert mended.media is not None, mended.problem
    assert mended.media.normalised is not None
    again = tmp_path / "again" / mended.media.normalised
    assert read_numbers(read_frames(again, range(facts.frames))[0]) == numbers


def test_a_joint_that_lost_a_packet_is_never_silently_wrong(make: Make, tmp_path: Path) -> None:
    from tests.support.video.numbered_frames import read_numbers

    part = make("part.ts", "-c:v", "libx264", "-g", "15", "-bf", "2", "-crf", "12").read_bytes()
    for lost in (188, 376):
        joined = tmp_path / f"joined-{lost}.ts"
        joined.write_bytes(part[:-lost] + part)
        found = examine(Asked(joined.name), tmp_path, None)
        if found.media is None:
            assert found.problem is not None
            assert found.problem.reason in ("damaged", "frame-count")
            continue
        numbers = read_numbers(read_frames(joined, range(found.media.frames), facts=probe(joined))[0])
        assert numbers == [*range(found.media.frames - 60), *range(60)]


def _paused(path: Path, frames: int, pause_s: int) -> None:
    """Frames that are shown so long each, as a muxer writes them."""
    plain_ = path.with_suffix(".mp4")
    encode(
        np.stack([np.full((16, 16, 3), 20 + number % 200, np.uint8) for number in range(frames)]),
        Fraction(10),
        plain_,
        crf=20,
    )
    with av.open(str(plain_)) as source, av.open(str(path), "w") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = number * pause_s * 1000 + (number == 1)
            sink.mux(packet)


@pytest.mark.parametrize(("frames", "pause_s"), [(2, 2_000_000), (8, 1_500_000), (300, 90_000)])
def test_pauses_of_days_cost_nothing(frames: int, pause_s: int, tmp_path: Path) -> None:
    path = tmp_path / "pause.mkv"
    _paused(path, frames, pause_s)
    started = time.process_time()
    found = examine(Asked(path.name), tmp_path, None)
    assert found.media is not None, found.problem
    assert found.media.duration_s > 1_000_000
    assert len(load_bounded(DecodeRequest(path, 8, 1 << 20)).pixels) == 8
    assert len(load_video(path, 8).pixels) == 8
    # Walking all slots took 50 s; this bound is not a measurement.
    assert time.process_time() - started < 20


def test_an_exception_about_one_file_is_a_reject_with_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    shutil.copy(CASES / "pts-equal-dts.mkv", tmp_path / "a.mkv")

    def bug(path: Path, **_: object) -> None:
        raise ZeroDivisionError("Fraction(1, 0)")

    monkeypatch.setattr(probing, "probe", bug)
    found = examine(Asked("a.mkv"), tmp_path, None)
    assert found.problem is not None
    assert found.problem.reason == "unexpected-error"
    assert found.problem.detail.startswith("a.mkv: ZeroDivisionError: Fraction(1, 0); ")
    missing = examine(Asked("gone.mkv"), tmp_path, None)
    assert missing.problem is not None
    assert "gone.mkv: FileNotFoundError" in missing.problem.detail
