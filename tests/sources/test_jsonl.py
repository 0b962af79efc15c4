"""A row that breaks a rule is set aside with line, field and value; a folder that cannot be used is an error."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from stages.params import IngestParams
from stages.sources.annotation import Annotation, SourceError
from stages.sources.clips import Media, frame_boundary, to_clip, without_duplicates
from stages.sources.jsonl import read_annotations
from stages.sources.split import assign_splits, drawn_split

GOOD: dict[str, Any] = {"video": "a.mp4", "events": [{"start": 0, "end": 1.5, "caption": "it moves"}]}
PARAMS = IngestParams(
    source="x",
    format="jsonl",
    annotations=None,
    validation_share=0.2,
    test_share=0.1,
    min_frames=8,
    max_duration_s=600,
    timeout_s=60,
    normalise=False,
)
MEDIA = Media(
    sha256="0" * 64,
    codec="h264",
    width=64,
    height=64,
    rate=Fraction(25),
    frames=50,
    duration_s=Fraction(2),
    variable_rate=False,
    hazards=(),
)


def _folder(tmp_path: Path, *rows: Any, videos: tuple[str, ...] = ("a.mp4",)) -> Path:
    for video in videos:
        (tmp_path / video).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / video).touch()
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "annotations.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ('{"video": ', "not JSON: "),
        ("[1, 2]", "need one JSON object, found list"),
        ({"caption": "no video"}, "video: missing"),
        (GOOD | {"vidoe": 1}, "vidoe: unknown field (value 1); remove it or correct its spelling"),
        (GOOD | {"split": "dev"}, "split: Input should be 'train', 'validation' or 'test' (value 'dev')"),
        (GOOD | {"caption": 7}, "caption: Input should be a valid string (value 7)"),
        (GOOD | {"events": [{"start": "soon", "end": 1, "caption": "x"}]}, "events.0.start: no time in seconds"),
        (GOOD | {"events": [{"start": -1, "end": 1, "caption": "x"}]}, "events.0.start: no time in seconds"),
        (GOOD | {"events": [{"start": True, "end": 2, "caption": "x"}]}, "events.0.start: no time in seconds"),
        ('{"video": "a.mp4", "events": [{"start": 0, "end": NaN, "caption": "x"}]}', "events.0.end: no time in seconds"),
        (GOOD | {"events": [{"start": 0, "end": "1e999999999", "caption": "x"}]}, "events.0.end: no time in seconds"),
        (GOOD | {"events": [{"start": 0, "end": "1/0", "caption": "x"}]}, "events.0.end: no time in seconds"),
        (GOOD | {"events": [{"start": 2, "end": 2, "caption": "x"}]}, "events.0: start 2 s and end 2 s: need start < end"),
        (GOOD | {"events": [{"start": 0, "end": 1, "caption": ""}]}, "events.0.caption: "),
        (GOOD | {"qa": [{"question": "q", "options": ["x", "y"], "answer": "C"}]}, "qa.0: answer 'C' names no option"),
        (GOOD | {"qa": [{"question": "q", "options": ["x"], "answer": "A"}]}, "qa.0.options: "),
    ],
)
def test_a_bad_row_names_line_and_field(row: Any, detail: str, tmp_path: Path) -> None:
    rows, rejects = read_annotations(_folder(tmp_path, GOOD | {"video": "b.mp4"}, "", row, videos=("a.mp4", "b.mp4")))
    assert [r.video for r in rows] == ["b.mp4"]
    assert rejects[0].item == "annotations.jsonl:3"
    assert rejects[0].reason == "bad-annotation"
    assert detail in rejects[0].detail
    # The video of a broken row is not reported again, unless the row does not name it.
    assert len(rejects) == (1 if "a.mp4" in str(row) else 2)


@pytest.mark.parametrize("video", ["../out.mp4", "/etc/passwd", "sub/../../out.mp4", "..\\out.mp4", "link.mp4"])
def test_a_path_never_leaves_the_folder(video: str, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").touch()
    folder = _folder(tmp_path / "in", {"video": video}, videos=("a.mp4",))
    (folder / "link.mp4").symlink_to(tmp_path / "out.mp4")
    rows, rejects = read_annotations(folder)
    assert rows == []
    assert rejects[0].item == "annotations.jsonl:1"
    assert rejects[0].reason == "outside-folder"
    assert repr(video) in rejects[0].detail


def test_every_row_and_every_video_is_accounted_for(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "id": "one"},
        {"video": "gone.mp4"},
        {"video": "sub/b.MP4", "id": "one"},
        {"video": "a.mp4", "id": "two"},
    ]
    folder = _folder(tmp_path, *rows, videos=("a.mp4", "sub/b.MP4", "c.webm", "notes.txt", ".hidden/d.mp4"))
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    accepted, rejects = read_annotations(folder)
    assert [row.clip_id for row in accepted] == ["one"]
    assert [(r.item, r.reason) for r in rejects] == [
        ("annotations.jsonl:2", "missing-file"),
        ("annotations.jsonl:3", "duplicate-id"),
        ("annotations.jsonl:4", "duplicate-id"),
        ("c.webm", "no-annotation"),
        ("loop.mp4", "no-annotation"),
    ]
    assert rejects[1].detail == "id 'one' stands in annotations.jsonl:1 already; each row needs its own"


def test_names_are_made_from_the_video(tmp_path: Path) -> None:
    rows, _ = read_annotations(_folder(tmp_path, {"video": "kitchen/0001.mp4", "source": "tape 1"}, videos=("kitchen/0001.mp4",)))
    assert (rows[0].clip_id, rows[0].source_id) == ("kitchen/0001", "tape 1")


@pytest.mark.parametrize("missing", ["folder", "file"])
def test_a_folder_that_cannot_be_used(missing: str, tmp_path: Path) -> None:
    folder = tmp_path / "gone" if missing == "folder" else tmp_path
    message = (
        "is no folder; name one with videos" if missing == "folder" else "has no annotations.jsonl; write one JSON object a line"
    )
    with pytest.raises(SourceError, match=rf"ingest\.source: {re.escape(repr(str(folder)))} {message}"):
        read_annotations(folder)


def test_an_annotation_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").write_bytes('{"video": "ä"}'.encode("latin-1"))
    with pytest.raises(SourceError, match="not UTF-8 text"):
        read_annotations(tmp_path)


def test_seconds_are_exact() -> None:
    row = Annotation.model_validate(
        {"video": "a", "events": [{"start": 0.1, "end": "1001/30000", "caption": "x"}]} | {"events": []}
    )
    assert row.events == ()
    timed = Annotation.model_validate({"video": "a", "events": [{"start": "1001/30000", "end": 2.1, "caption": "x"}]}).events[0]
    assert (timed.start, timed.end) == (Fraction(1001, 30000), Fraction(21, 10))


@pytest.mark.parametrize(
    ("seconds", "frame"), [("0", 0), ("5.28", 132), ("0.019", 0), ("0.02", 1), ("0.021", 1), ("2.1", 53), ("1.5", 38)]
)
def test_times_become_the_nearest_frame_boundary(seconds: str, frame: int) -> None:
    assert frame_boundary(Fraction(seconds), Fraction(25)) == frame


def _row(*events: tuple[float, float]) -> Annotation:
    timed = [{"start": start, "end": end, "caption": f"from {start}"} for start, end in events]
    return Annotation.model_validate({"video": "a.mp4", "events": timed})


def test_events_become_spans_in_order() -> None:
    clip = to_clip(_row((1, 2), (0, 1)), "train", MEDIA, PARAMS)
    assert [(event.span.start, event.span.stop) for event in clip.events] == [(0, 25), (25, 50)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("events", "changes", "reason", "detail"),
    [
        ([(0, 2.03)], {}, "event-outside-clip", "a.mp4: event 'from 0' [0, 2.03) s reaches beyond the clip, which has 2 s"),
        ([(7, 8)], {}, "event-outside-clip", "[7, 8) s"),
        ([(1.0, 1.01)], {}, "event-without-frame", "is shorter than a frame (0.04 s)"),
        ([], {"frames": 7}, "too-short", "7 frames, ingest.min_frames is 8"),
        ([], {"duration_s": Fraction(601)}, "too-long", "601.00 s, ingest.max_duration_s is 600"),
    ],
)
def test_unfit_clips_say_why(events: list[tuple[float, float]], changes: dict[str, Any], reason: str, detail: str) -> None:
    media = MEDIA.model_copy(update=changes)
    reject = to_clip(_row(*events), "train", media, PARAMS)
    assert reject.reason == reason  # type: ignore[union-attr]
    assert detail in reject.detail  # type: ignore[union-attr]


def test_an_event_may_end_half_a_frame_late() -> None:
    clip = to_clip(_row((0, 2.019)), "train", MEDIA, PARAMS)
    assert clip.events[0].span.stop == 50  # type: ignore[union-attr]


def test_equal_files_are_kept_once() -> None:
    rows = [Annotation(video="b.mp4"), Annotation(video="a.mp4")]
    clips, rejects = without_duplicates(to_clip(row, "train", MEDIA, PARAMS) for row in rows)  # type: ignore[misc]
    assert [clip.clip_id for clip in clips] == ["a"]
    assert [(r.item, r.reason) for r in rejects] == [("b", "duplicate-video")]


def test_a_source_stands_in_one_split() -> None:
    rows = [Annotation(video=f"{n}.mp4", source=f"tape-{n % 40}") for n in range(200)]
    splits, rejects = assign_splits(rows, PARAMS, seed=7)
    assert rejects == []
    assert all(len({splits[row.clip_id] for row in rows if row.source_id == source}) == 1 for source in {r.source_id for r in rows})
    assert splits == assign_splits(rows[::-1], PARAMS, seed=7)[0]
    assert {split: splits[row.clip_id] for row in rows[:80] for split in [row.clip_id]}.items() <= splits.items()


def test_drawn_shares_are_as_asked() -> None:
    drawn = [drawn_split(f"tape-{n}", PARAMS, seed=7) for n in range(4000)]
    assert drawn.count("test") / 4000 == pytest.approx(0.1, abs=0.02)
    assert drawn.count("validation") / 4000 == pytest.approx(0.2, abs=0.02)


def test_an_annotated_split_holds_for_its_source() -> None:
    rows = [
        Annotation(video="1.mp4", source="tape", split="test"),
        Annotation(video="2.mp4", source="tape"),
        Annotation(video="3.mp4", source="tape", split="train"),
    ]
    splits, rejects = assign_splits(rows, PARAMS, seed=7)
    assert splits == {"1": "test", "2": "test"}
    assert [(r.item, r.reason) for r in rejects] == [("3", "split-conflict")]
    assert rejects[0].detail == "split: 'train', but source 'tape' is in 'test' (clip '1'); put one source into one split"
