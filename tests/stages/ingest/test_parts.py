"""Parts of a file are clips: their frames, their events, their split, their duplicates; and parts
of recordings that are too long."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.domain.core.records import Clip, Excerpt, Span
from stages.ingest.card import data_card, summarise
from stages.ingest.clips import Media, to_clip, without_duplicates
from stages.ingest.parts import equal_spans, to_clips
from stages.ingest.split import assign_splits, recordings
from stages.lib.annotations.annotation import PART_REASONS, Annotation, rows_rejected
from stages.params import IngestParams, load_params
from tests.support.builders import media
from tests.support.checkout import ROOT

PARAMS = load_params(ROOT / "params.yaml").ingest
FILE = media(seconds=10)


def _row(start: float | str | None, end: float | str | None, *events: tuple[float, float], **about: Any) -> Annotation:
    timed = [{"start": s, "end": e, "caption": f"from {s}"} for s, e in events]
    whole = {"video": "a.mp4", "start": start, "end": end, "events": timed, "where": "annotations.jsonl:3"}
    return Annotation.model_validate({k: v for k, v in whole.items() if v is not None} | about)


def _clip(row: Annotation, media: Media = FILE, params: IngestParams = PARAMS) -> Clip:
    clip, rejects = to_clip(row, "train", media, params)
    assert clip is not None, rejects
    return clip


@pytest.mark.parametrize(
    ("start", "end", "first", "frames"),
    [
        (2, 4, 50, 50),
        ("2.019", "4.02", 50, 51),
        (None, 4, 0, 100),
        (4, None, 100, 150),
        # Within the tolerance of a tenth of the part: cut at the file's edge.
        (8, "10.19", 200, 50),
        ("-0.3", 4, 0, 100),
    ],
)
def test_a_part_has_the_frames_between_the_nearest_boundaries(start: Any, end: Any, first: int, frames: int) -> None:
    clip = _clip(_row(start, end))
    assert (clip.excerpt, clip.frames) == (Excerpt(first=first, file_frames=250), frames)
    assert (clip.first_frame, clip.file_frames, clip.part_s) == (first, 250, (first / 25, (first + frames) / 25))


@pytest.mark.parametrize(("start", "end"), [(None, None), (0, 10), (0, None), ("-0.5", "10.5"), ("0.01", "9.99")])
def test_a_part_that_is_the_whole_file_is_the_file(start: Any, end: Any) -> None:
    clip = _clip(_row(start, end))
    assert (clip.excerpt, clip.frames, clip.first_frame, clip.file_frames) == (None, 250, 0, 250)
    assert "excerpt" not in clip.model_dump_json(exclude_none=True)


@pytest.mark.parametrize(
    ("start", "end", "reason", "detail"),
    [
        (8, 11, "part-outside-file", "the row is about [8, 11) s, and the file has 10 s; correct start and end"),
        (12, 14, "part-outside-file", "the row is about [12, 14) s, and the file has 10 s"),
        (12, None, "part-outside-file", "the row is about [12, 10) s, and the file has 10 s"),
        (-1, 3, "part-outside-file", "[-1, 3) s"),
        ("9.9", "10.1", "part-outside-file", "ingest.tolerance is 1 s and 0.1 of the clip) (annotations.jsonl:3)"),
        (2, "2.2", "too-short", "5 frames, ingest.min_frames is 8"),
        (2, "2.001", "too-short", "less than a frame of 0.04 s"),
        (0, 8, "too-long", "8.00 s, ingest.max_duration_s is 7"),
    ],
)
def test_a_part_that_cannot_be_used_says_why(start: Any, end: Any, reason: str, detail: str) -> None:
    params = PARAMS.model_copy(update={"max_duration_s": 7})
    clip, (reject,) = to_clip(_row(start, end, rows=3), "train", FILE, params)
    assert clip is None
    assert (reject.reason, reject.rows, reject.item) == (reason, 3, _row(start, end).clip_id)
    assert detail in reject.detail


def test_events_of_a_part_are_told_in_seconds_of_the_file() -> None:
    clip, rejects = to_clip(
        _row(2, 4, (2, 3), ("2.5", "4.1"), (1, 2.5), (5, 6), (3, 9)), "train", FILE, PARAMS.model_copy()
    )
    assert clip is not None
    assert [(e.span.start, e.span.stop, e.cut_s) for e in clip.events] == [(0, 25, None), (13, 50, Fraction(1, 10))]
    assert [reject.reason for reject in rejects] == ["event-outside-clip"] * 3
    assert "reaches beyond the clip, which is [2, 4) s of the file, by 1 s" in rejects[0].detail


def test_times_count_from_the_sound_where_that_starts_first() -> None:
    late = FILE.model_copy(update={"starts_s": Fraction(1, 2)})
    clip = _clip(_row(2, 4, (2, 3)), late)
    assert (clip.first_frame, clip.frames, clip.events[0].span) == (38, 50, Span(start=0, stop=25))
    # The picture starts within the part; nothing of it is missing.
    assert (_clip(_row(0, 4), late).first_frame, _clip(_row(0, 4), late).frames) == (0, 88)


@settings(max_examples=25)
@given(
    st.fractions(0, 10, max_denominator=1000),
    st.fractions(Fraction(1, 2), 8, max_denominator=1000),
    st.sampled_from([Fraction(25), Fraction(30000, 1001), Fraction(8), Fraction(60)]),
)
def test_neighbouring_parts_share_no_frame_and_miss_none(start: Fraction, length: Fraction, rate: Fraction) -> None:
    media = FILE.model_copy(update={"rate": rate, "frames": int(rate * 30), "duration_s": Fraction(30)})
    here, there = (
        _clip(_row(str(at), str(at + length)), media, PARAMS.model_copy(update={"min_frames": 2}))
        for at in (start, start + length)
    )
    assert here.first_frame + here.frames == there.first_frame
    assert abs(here.frames - length * rate) <= 1
    assert abs(here.first_frame - start * rate) <= Fraction(1, 2)


def test_a_clip_lies_in_its_file() -> None:
    with pytest.raises(ValueError, match=r"excerpt: frames 240 to 260 of a file of 250"):
        Clip.model_validate(
            _clip(_row(8, 9)).model_dump() | {"excerpt": {"first": 240, "file_frames": 250}, "frames": 20}
        )


# Splits, duplicates, counts.


def test_parts_of_one_recording_are_in_one_split_whatever_their_rows_call_it() -> None:
    parts = [Annotation(video=f"{n % 9}.mp4", start=Fraction(n), end=Fraction(n + 1)) for n in range(90)]
    named = [
        Annotation(video="0.mp4", id="whole"),
        Annotation(video="./1.mp4", start=Fraction(200), source="tape"),
        Annotation(video="2.mp4", start=Fraction(200), source="tape"),
    ]
    rows = [*parts, *named]
    sources = recordings(rows)
    assert sources["whole"] == sources["0@0-1"] == "0"
    assert sources["1@1-2"] == sources["2@2-3"] == sources[named[1].clip_id] == "1"
    splits, rejects = assign_splits(rows, PARAMS, seed=7)
    assert rejects == []
    assert len(set(splits.values())) > 1
    of_source: dict[str, set[str]] = {}
    for row in rows:
        of_source.setdefault(sources[row.clip_id], set()).add(splits[row.clip_id])
    assert [source for source, found in of_source.items() if len(found) > 1] == []
    assert assign_splits(rows[::-1], PARAMS, seed=7)[0] == splits


def test_a_part_in_another_split_than_its_recording_is_set_aside() -> None:
    rows = [_row(0, 1, split="test"), _row(1, 2, split="train", rows=4), _row(2, 3)]
    splits, (reject,) = assign_splits(rows, PARAMS, seed=7)
    assert splits == {"a@0-1": "test", "a@2-3": "test"}
    assert (reject.item, reject.reason, reject.rows) == ("a@1-2", "split-conflict", 4)


def test_duplicates_are_equal_parts_of_equal_files() -> None:
    made = [
        _clip(_row(start, end, video=video))
        for video, start, end in (
            ("a.mp4", 0, 4),
            ("b.mp4", 0, 4),
            ("b.mp4", 4, 8),
            ("b.mp4", 2, 6),
            ("c.mp4", "0.01", 4),
        )
    ]
    clips, rejects = without_duplicates(made)
    assert [clip.clip_id for clip in clips] == ["a@0-4", "b@2-6", "b@4-8"]
    assert [(reject.item, reject.reason) for reject in rejects] == [
        ("b@0-4", "duplicate-video"),
        ("c@0.01-4", "duplicate-video"),
    ]
    assert "'b.mp4' holds the same part of the same bytes as 'a.mp4' (clip 'a@0-4')" in rejects[0].detail


def test_equal_files_of_two_names_never_give_parts_to_two_splits() -> None:
    here, there = _clip(_row(0, 4)), _clip(_row(4, 8, video="b.mp4")).model_copy(update={"split": "test"})
    clips, (reject,) = without_duplicates([there, here])
    assert clips == [here]
    assert (reject.item, reject.reason) == ("b@4-8", "split-conflict")
    assert "'b.mp4' holds the same bytes as 'a.mp4', which is in 'train' (clip 'a@0-4')" in reject.detail


# Recordings that are too long.

LONG = FILE.model_copy(update={"frames": 250 * 10, "duration_s": Fraction(100)})
PARTS = PARAMS.model_copy(update={"longer": "parts", "max_duration_s": 30})


@settings(max_examples=25)
@given(st.integers(1, 5000), st.integers(1, 600))
def test_equal_spans_cover_all_frames_in_the_fewest_pieces(frames: int, most: int) -> None:
    spans = equal_spans(frames, most)
    assert (spans[0].start, spans[-1].stop) == (0, frames)
    assert all(before.stop == after.start for before, after in zip(spans, spans[1:], strict=False))
    lengths = {span.frames for span in spans}
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1
    assert len(spans) == -(-frames // most)


def test_a_recording_that_is_too_long_is_taken_in_parts() -> None:
    events = [(1, 5), ("24.8", 30), (20, "25.3"), (20, 30), (70, 90), (90, 101), (90, 120)]
    about = {
        "caption": "All of it.",
        "captions": ["Again."],
        "qa": [{"question": "Which?", "options": ["x", "y"], "answer": "A"}],
        "open_qa": [{"question": "What?", "answer": "that"}],
        "subjects": [{"name": "bar"}],
        "answers": {"count": ({"n": 1}, {"n": 2})},
        "label": "cooking",
    }
    clips, rejects = to_clips(_row(None, None, *events, **about), "train", LONG, PARTS)  # type: ignore[arg-type]
    assert [clip.clip_id for clip in clips] == ["a@0-25", "a@25-50", "a@50-75", "a@75-100"]
    assert [(clip.first_frame, clip.frames, clip.file_frames) for clip in clips] == [
        (625 * n, 625, 2500) for n in range(4)
    ]
    assert [[event.caption for event in clip.events] for clip in clips] == [
        ["from 1", "from 20"],
        ["from 24.8"],
        [],
        ["from 90"],
    ]
    assert [event.cut_s for clip in clips for event in clip.events] == [None, Fraction(3, 10), Fraction(1, 5), 1]
    assert {(clip.source_id, clip.label, clip.caption, clip.captions, clip.open_questions) for clip in clips} == {
        ("a", "cooking", None, None, None)
    }
    assert not any(clip.questions or clip.subjects or clip.answers for clip in clips)
    assert sorted(reject.reason for reject in rejects) == [
        *["about-whole-recording"] * 7,
        *["event-across-parts"] * 2,
        "event-outside-clip",
    ]
    assert {reject.reason for reject in rejects} <= PART_REASONS
    assert rows_rejected(rejects) == 0
    card = data_card(summarise(clips, rejects, {}), "x")
    assert "\n4 clips are parts of 1 files; no file's parts are in two splits.\n" in card
    assert "\n0 rows were rejected" in card


def test_an_event_over_the_edge_of_two_parts_is_in_one() -> None:
    clips, rejects = to_clips(_row(None, None, ("24.4", "25.6")), "train", LONG, PARTS)
    assert ([len(clip.events) for clip in clips], rejects) == ([1, 0, 0, 0], ())


def test_only_a_whole_recording_that_is_too_long_is_divided() -> None:
    segment, rejects = to_clips(_row(0, 31), "train", LONG, PARTS)
    assert (segment, [reject.reason for reject in rejects]) == ([], ["too-long"])
    assert [clip.excerpt for clip in to_clips(_row(None, None), "train", FILE, PARTS)[0]] == [None]
    refused, (reject,) = to_clips(
        _row(None, None, rows=2), "train", LONG, PARAMS.model_copy(update={"max_duration_s": 30})
    )
    assert (refused, reject.reason, reject.rows) == ([], "too-long", 2)
    short = PARTS.model_copy(update={"max_duration_s": 0.2})
    refused, (reject,) = to_clips(_row(None, None), "train", LONG, short)
    assert (refused, reject.reason) == ([], "too-short")
    assert "a part of 0.2 s (ingest.max_duration_s) has fewer frames than ingest.min_frames, 8" in reject.detail


def test_parts_at_a_broken_rate_are_no_longer_than_allowed() -> None:
    media = LONG.model_copy(update={"rate": Fraction(30000, 1001), "frames": 2998, "duration_s": Fraction("100.0333")})
    clips, _ = to_clips(_row(None, None), "train", media, PARTS)
    assert sum(clip.frames for clip in clips) == 2998
    assert all(clip.frames / clip.rate <= 30 for clip in clips)
