"""Clips made of annotations: events as spans of frames, duplicates, splits."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from stages.ingest.card import data_card, summarise
from stages.ingest.clips import Media, frame_boundary, to_clip, without_duplicates
from stages.ingest.split import assign_splits, drawn_split
from stages.lib.annotations.annotation import Annotation
from stages.params import IngestParams, Tolerance, Validation
from tests.support.builders import media

PARAMS = IngestParams(
    source="x",
    videos=None,
    names=None,
    format="jsonl",
    annotations=None,
    validation_share=0.2,
    test_share=0.1,
    min_frames=8,
    max_duration_s=600,
    longer="reject",
    tolerance=Tolerance(seconds=1, share=0.1),
    timeout_s=60,
    validation=Validation(mode="whole", whole_up_to=0),
    frame_rate=None,
    normalise=False,
    exclude=(),
    source_pattern=None,
    curate=False,
    near_duplicates=None,
)


MEDIA = media(seconds=2)


@pytest.mark.parametrize(
    ("seconds", "frame"), [("0", 0), ("5.28", 132), ("0.019", 0), ("0.02", 1), ("0.021", 1), ("2.1", 53), ("1.5", 38)]
)
def test_times_become_the_nearest_frame_boundary(seconds: str, frame: int) -> None:
    assert frame_boundary(Fraction(seconds), Fraction(25)) == frame


def _row(*events: tuple[float, float], **about: Any) -> Annotation:
    timed = [{"start": start, "end": end, "caption": f"from {start}"} for start, end in events]
    return Annotation.model_validate({"video": "a.mp4", "events": timed, "where": "annotations.jsonl:3"} | about)


def _spans(
    row: Annotation, media: Media = MEDIA, params: IngestParams = PARAMS
) -> tuple[list[tuple[int, int]], list[str]]:
    clip, rejects = to_clip(row, "train", media, params)
    assert clip is not None
    return [(event.span.start, event.span.stop) for event in clip.events], [reject.reason for reject in rejects]


def test_events_become_spans_in_order() -> None:
    assert _spans(_row((1, 2), (0, 1))) == ([(0, 25), (25, 50)], [])


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"frames": 7}, "too-short", "7 frames, ingest.min_frames is 8"),
        ({"duration_s": Fraction(601)}, "too-long", "601.00 s, ingest.max_duration_s is 600"),
    ],
)
def test_unfit_clips_say_why(changes: dict[str, Any], reason: str, detail: str) -> None:
    clip, (reject,) = to_clip(_row((0, 9)), "train", MEDIA.model_copy(update=changes), PARAMS)
    assert clip is None
    assert reject.reason == reason
    assert detail in reject.detail


@pytest.mark.parametrize(
    ("event", "reason", "detail"),
    [
        (
            (0, 2.21),
            "event-outside-clip",
            "a.mp4: event 'from 0' [0, 2.21) s reaches beyond the clip, which has 2 s, by 0.21 s; correct its times"
            " (ingest.tolerance is 1 s and 0.1 of the clip) (annotations.jsonl:3, events)",
        ),
        ((7, 8), "event-outside-clip", "[7, 8) s"),
        ((2, 2.1), "event-outside-clip", "[2, 2.1) s"),
        # Within the tolerance, but most of the event lies outside the clip.
        ((1.95, 2.15), "event-outside-clip", "[1.95, 2.15) s"),
        ((-0.3, 1), "event-outside-clip", "[-0.3, 1) s reaches beyond the clip, which has 2 s, by 0.3 s"),
        ((1.0, 1.01), "event-without-frame", "is shorter than a frame (0.04 s)"),
    ],
)
def test_an_event_that_cannot_be_placed_is_set_aside_and_its_clip_stays(
    event: tuple[float, float], reason: str, detail: str
) -> None:
    clip, (reject,) = to_clip(_row((0.5, 1), event, caption="It moves."), "train", MEDIA, PARAMS)
    assert clip is not None
    assert ([(e.span.start, e.span.stop) for e in clip.events], clip.caption) == ([(13, 25)], "It moves.")
    assert (reject.item, reject.reason) == ("a", reason)
    assert detail in reject.detail


def test_an_event_may_reach_half_a_frame_beyond_and_is_not_cut() -> None:
    clip, rejects = to_clip(_row((-0.019, 2.019)), "train", MEDIA, PARAMS)
    assert clip is not None
    assert [(e.span.start, e.span.stop, e.cut_s) for e in clip.events] == [(0, 50, None)]
    assert rejects == ()


def test_an_event_is_cut_at_the_edge_of_its_clip_within_both_tolerances_and_counted() -> None:
    row = _row((0, 2.2), (-0.2, 1))
    clip, rejects = to_clip(row, "train", MEDIA, PARAMS)
    assert clip is not None
    assert [(e.span.start, e.span.stop, e.cut_s) for e in clip.events] == [
        (0, 25, Fraction(1, 5)),
        (0, 50, Fraction(1, 5)),
    ]
    assert rejects == ()
    summary = summarise([clip], rejects, {})
    assert summary["events_cut"] == 2
    assert "\n2 events reached beyond their clip within `ingest.tolerance` and were cut at its edge.\n" in data_card(
        summary, "x"
    )
    # For a long clip the seconds decide, for a short one the share.
    long = MEDIA.model_copy(update={"frames": 2500, "duration_s": Fraction(100)})
    assert _spans(_row((0, 101), (50, 101.1)), long) == ([(0, 2500)], ["event-outside-clip"])
    exact = PARAMS.model_copy(update={"tolerance": Tolerance(seconds=0, share=0)})
    assert _spans(row, MEDIA, exact) == ([], ["event-outside-clip"] * 2)


def test_a_file_of_another_length_than_was_annotated_is_another_recording() -> None:
    annotated = _row((0, 1), caption="It moves.", length_s=Fraction("1.7"))
    clip, (reject,) = to_clip(annotated, "train", MEDIA, PARAMS)
    assert clip is None
    assert reject.reason == "other-recording"
    assert "the file has 2 s, the annotation is of 1.7 s" in reject.detail
    # Containers round, and a clip may be cut short: then a caption of the whole clip is no longer
    # valid.
    for length_s, kept, reasons in (
        ("1.9", "It moves.", []),
        ("2.2", "It moves.", []),
        ("2.3", None, ["caption-beyond-clip"]),
    ):
        clip, rejects = to_clip(annotated.model_copy(update={"length_s": Fraction(length_s)}), "train", MEDIA, PARAMS)
        assert clip is not None
        assert (clip.caption, len(clip.events), [r.reason for r in rejects]) == (kept, 1, reasons)


def test_equal_files_are_kept_once() -> None:
    rows = [Annotation(video="b.mp4"), Annotation(video="a.mp4")]
    made = [to_clip(row, "train", MEDIA, PARAMS)[0] for row in rows]
    clips, rejects = without_duplicates(clip for clip in made if clip is not None)
    assert [clip.clip_id for clip in clips] == ["a"]
    assert [(r.item, r.reason) for r in rejects] == [("b", "duplicate-video")]


def test_a_source_stands_in_one_split() -> None:
    rows = [Annotation(video=f"{n}.mp4", source=f"tape-{n % 40}") for n in range(200)]
    splits, rejects = assign_splits(rows, PARAMS, seed=7)
    assert rejects == []
    assert [
        source
        for source in {r.source_id for r in rows}
        if len({splits[row.clip_id] for row in rows if row.source_id == source}) != 1
    ] == []
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
    assert (
        rejects[0].detail == "split: 'train', but source 'tape' is in 'test' (clip '1'); put one source into one split"
    )
