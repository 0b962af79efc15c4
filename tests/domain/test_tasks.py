"""What the tasks make of clips: validity rules, seeds for each item, what is set aside and why."""

from __future__ import annotations

import pytest
from builders import SETTINGS, clip

from stages.domain.lexicon import COLOURS, SHAPES, VERBS
from stages.domain.records import TASK_NAMES, Clip, Event, Sample, Span
from stages.domain.synthesis import TaskSettings, synthesise
from stages.domain.tasks import dark_event_infer, mix_vid_qa
from stages.domain.timeline import resolve, sample_indices, segment_counts


def world(count: int) -> list[Clip]:
    verbs = list(VERBS)
    return [
        clip(i, COLOURS[i % 4], SHAPES[i % 3], (verbs[i % 6], verbs[(i + 1 + i % 4) % 6]), split="test" if i % 5 == 4 else "train")
        for i in range(count)
    ]


def made(clips: list[Clip], task: str, settings: TaskSettings = SETTINGS) -> list[Sample]:
    return [s for _, samples, _ in synthesise(clips, task, settings, 8, seed=7) for s in samples]  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_task_makes_samples_with_unique_ids_and_traces(task: str) -> None:
    samples = made(world(40), task)
    assert len(samples) >= 40
    assert len({sample.sample_id for sample in samples}) == len(samples)
    assert all(sample.trace is not None and sample.task == task for sample in samples)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_samples_do_not_depend_on_the_order_of_the_clips(task: str) -> None:
    clips = world(30)
    by_id = {s.sample_id: s for s in made(clips, task)}
    assert {s.sample_id: s for s in made(clips[::-1], task)} == by_id


@pytest.mark.parametrize("task", [task for task in TASK_NAMES if task != "mix_vid_qa"])
def test_a_new_clip_changes_no_other_sample(task: str) -> None:
    before, after = made(world(30), task), made(world(31), task)
    assert {s.sample_id: s for s in before}.items() <= {s.sample_id: s for s in after}.items()


def test_a_new_clip_changes_the_partners_of_few_others() -> None:
    before, after = {s.sample_id for s in made(world(200), "mix_vid_qa")}, {s.sample_id for s in made(world(201), "mix_vid_qa")}
    assert len(before - after) <= 12  # a pair a clip is expected, out of 400


def test_dark_samples_show_the_dark_and_both_sides_of_it() -> None:
    for sample in made(world(40), "dark_event_infer"):
        shown = resolve(sample.timeline, sample_indices(sample.timeline.frames, sample.sampled_frames))
        dark = [i for i, source in enumerate(shown) if source.dark]
        assert len(dark) >= 2
        assert dark[0] >= 1
        assert dark[-1] <= len(shown) - 2
        assert sample.reference in sample.events


@pytest.mark.parametrize(
    ("span", "why"),
    [
        (Span(start=2, stop=4), "1 of 8 sampled frames are dark"),
        (Span(start=2, stop=14), "more than max_dark_share"),
        (Span(start=9, stop=15), None),
        (Span(start=10, stop=16), None),
    ],
)
def test_dark_validity(span: Span, why: str | None) -> None:
    settings = SETTINGS.dark_event_infer
    assert settings is not None
    refusal = dark_event_infer.refusal(clip(), Event(span=span, caption="x"), settings, 8)
    assert (refusal is None) == (why is None)
    assert why is None or (refusal is not None and why in refusal)


def test_mixed_samples_show_every_piece_of_two_unlike_clips() -> None:
    clips = world(60)
    by_id = {c.clip_id: c for c in clips}
    samples = made(clips, "mix_vid_qa")
    assert len(samples) == 120
    for sample in samples:
        first, second = (by_id[name] for name in sample.timeline.clip_ids)
        assert first.split == second.split == sample.split
        assert first.source_id != second.source_id
        assert first.label != second.label
        assert first.subjects[0].attributes != second.subjects[0].attributes
        assert min(segment_counts(sample.timeline, sample_indices(sample.timeline.frames, 8))) >= 2
        asked = by_id[sample.clip_id].called
        other = next(by_id[n] for n in sample.timeline.clip_ids if n != sample.clip_id).called
        assert asked is not None
        assert asked in sample.question
        assert other not in sample.question


def test_clips_of_one_source_or_one_rate_apart_are_not_mixed() -> None:
    assert mix_vid_qa.unsuitable(clip(0), clip(1, source_id="s0", colour="blue")) == "same source video"
    assert mix_vid_qa.unsuitable(clip(0), clip(1)) == "same class 'red bar'"
    assert mix_vid_qa.unsuitable(clip(0), clip(1, shape="circle")) == "both show 'red'"
    assert mix_vid_qa.unsuitable(clip(0), clip(1, colour="blue", rate="30000/1001")) == "frame rates 8 and 30000/1001 differ"


def test_what_cannot_be_made_is_set_aside_with_a_reason() -> None:
    bare = clip(0, events=(), caption=None, subjects=(), questions=(), label=None)
    reasons = {
        task: [reject.reason for _, _, rejects in synthesise([bare], task, SETTINGS, 8, 7) for reject in rejects]
        for task in TASK_NAMES
    }
    assert reasons == {
        "dark_event_infer": ["no-events"],
        "mix_vid_qa": ["nothing-to-ask"],
        "mcqa": ["no-questions"],
        "caption": ["no-caption"],
        "structured_caption": ["no-analysis"],
    }
    assert [r.reason for _, _, rejects in synthesise([clip()], "mix_vid_qa", SETTINGS, 8, 7) for r in rejects] == ["no-partner"]


def test_a_task_without_settings_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"synthesize\.tasks\.mcqa: not set"):
        list(synthesise([clip()], "mcqa", TaskSettings(), 8, 7))
