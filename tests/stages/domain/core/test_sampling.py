"""Numbers of frames by rate, with bounds."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stages.domain.core.records import Clip, Event, Sample, Segment, Span
from stages.domain.core.timeline import (
    SampledFrames,
    SamplingRate,
    counts,
    frame_count,
    in_words,
    sample_indices,
    segment_counts,
)
from stages.domain.tasks.caption import Settings as CaptionSettings
from stages.domain.tasks.caption import make as make_captions
from stages.domain.tasks.dark_event_infer import dark_frames
from stages.domain.tasks.partners import ring_of
from stages.domain.tasks.synthesis import TaskSettings, synthesise
from stages.domain.tasks.task import Context

READ: TypeAdapter[Any] = TypeAdapter(SampledFrames)
QWEN = SamplingRate(per_second=Fraction(2), at_least=4, at_most=64)


@pytest.mark.parametrize(
    ("frames", "rate", "shown"),
    [
        (16, Fraction(8), 4),  # 2 s
        (90, Fraction(30), 6),  # 3 s
        (299, Fraction(30), 18),  # 9.97 s: 19.9 is rounded down to an even number
        (300, Fraction(30), 20),
        (300, Fraction(30000, 1001), 20),
        (30 * 3600, Fraction(30), 64),  # an hour
        (5, Fraction(30), 4),  # a sixth of a second
        (21, Fraction(1), 20),  # fewer frames than two a second
        (1, Fraction(1), 4),
    ],
)
def test_two_a_second_within_bounds(frames: int, rate: Fraction, shown: int) -> None:
    assert frame_count(QWEN, frames, rate) == shown


@given(
    frames=st.integers(1, 10**6),
    rate=st.fractions(Fraction(1, 10), 240),
    per_second=st.fractions(Fraction(1, 10), 60),
    least=st.integers(1, 20),
    more=st.integers(0, 100),
)
def test_the_number_is_even_and_within_bounds(
    frames: int, rate: Fraction, per_second: Fraction, least: int, more: int
) -> None:
    sampled = SamplingRate(per_second=per_second, at_least=2 * least, at_most=2 * (least + more))
    count = frame_count(sampled, frames, rate)
    assert count in counts(sampled)
    assert len(sample_indices(frames, count)) == count
    longer = frame_count(sampled, 2 * frames, rate)
    assert longer >= count


def test_a_count_is_a_count_for_every_length() -> None:
    assert {frame_count(READ.validate_python(8), frames, Fraction(30)) for frames in (1, 30, 10**5)} == {8}


def test_it_is_read_from_yaml_and_written_as_it_was() -> None:
    table = {"per_second": 2, "at_least": 4, "at_most": 64}
    assert READ.validate_python(table) == QWEN
    assert READ.validate_json(json.dumps(READ.dump_python(QWEN, mode="json"))) == QWEN
    assert READ.dump_python(READ.validate_python(8), mode="json") == 8
    assert (in_words(8), in_words(QWEN)) == ("8 frames", "2 frames a second, 4 to 64")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (7, "multiple of 2"),
        (0, "greater than or equal to 2"),
        ({"per_second": 0, "at_least": 4, "at_most": 8}, "greater than 0"),
        ({"per_second": 2, "at_least": 3, "at_most": 8}, "multiple of 2"),
        ({"per_second": 2, "at_least": 8, "at_most": 4}, "at_least is 8 and at_most 4"),
        ({"per_second": 2, "at_least": 4}, "at_most"),
    ],
)
def test_wrong_values_are_refused_by_name(value: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        READ.validate_python(value)


def _clip(name: str, seconds: int, label: str) -> Clip:
    return Clip(
        clip_id=name, source_id=name, path=f"{name}.mp4", sha256="0" * 64, split="train", frames=30 * seconds,
        rate=Fraction(30), width=64, height=64, codec="h264", label=label, caption="He cooks.",
        events=(Event(span=Span(start=30, stop=90), caption="he peels an onion"),),
    )  # fmt: skip


def test_each_sample_stores_its_own_number() -> None:
    clips = [_clip("short", 4, "cook"), _clip("long", 60, "swim")]
    settings = TaskSettings.model_validate(
        {
            "caption": {"per_clip": 1},
            "dark_event_infer": {
                "question": "what happens in the {which}dark part ?",
                "per_clip": 1, "masks": 1, "min_dark_frames": 2, "min_context_frames": 1, "max_dark_share": 0.9,
                "events": {"min_s": 0, "max_s": 60, "places": ["middle"], "min_words": 1, "max_words": 40,
                           "forbidden": [], "unique": True},
            },
            "mix_vid_qa": {"per_clip": 1, "max_clip_s": 10, "min_piece_s": 1, "max_piece_s": 5, "min_piece_frames": 1,
                           "one_shot": False, "one_recording": False},
        }
    )  # fmt: skip

    def made(task: str) -> dict[str, Sample]:
        return {clip.clip_id: s for clip, samples, _ in synthesise(clips, task, settings, QWEN, 7) for s in samples}

    assert {name: sample.sampled_frames for name, sample in made("caption").items()} == {"short": 8, "long": 64}
    dark = made("dark_event_infer")
    # 2 of 4 s are dark; of 60 s one frame of about a second each.
    assert dark_frames(dark["short"]) == 4
    assert {name: sample.sampled_frames for name, sample in dark.items()} == {"short": 8, "long": 64}
    for sample in made("mix_vid_qa").values():
        timeline = sample.timeline
        assert sample.sampled_frames == frame_count(QWEN, timeline.frames, timeline.rate)
        assert min(segment_counts(timeline, sample_indices(timeline.frames, sample.sampled_frames))) >= 1
    fixed = make_captions(clips[1], CaptionSettings(per_clip=1), Context(8, 7, ring_of(())))[0][0]
    assert fixed.sampled_frames == 8
    assert Segment(clip_id="long", span=Span(start=0, stop=1800)) in fixed.timeline.segments
