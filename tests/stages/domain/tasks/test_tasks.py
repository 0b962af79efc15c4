"""Samples that tasks make of clips: validity rules, a seed for each item, rejects and their
reasons."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from pydantic import ValidationError

from stages.domain.core.records import Clip, Event, Sample, Span
from stages.domain.core.timeline import conformed_frame, conformed_frames, resolve, sample_indices, segment_counts
from stages.domain.tasks import TASK_NAMES, dark_event_infer, mix_vid_qa
from stages.domain.tasks.lexicon import COLOURS, SHAPES, VERBS
from stages.domain.tasks.synthesis import TaskSettings, synthesise
from tests.support.builders import SETTINGS, clip


def world(count: int) -> list[Clip]:
    verbs = list(VERBS)
    return [
        clip(
            i,
            COLOURS[i % 4],
            SHAPES[i % 3],
            (verbs[i % 6], verbs[(i + 1 + i % 4) % 6]),
            split="test" if i % 5 == 4 else "train",
        )
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
    before, after = (
        {s.sample_id for s in made(world(200), "mix_vid_qa")},
        {s.sample_id for s in made(world(201), "mix_vid_qa")},
    )
    assert len(before - after) <= 12  # about one pair per clip is expected, out of 400


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
    assert why is None or (refusal is not None and refusal[0] == "dark-part-not-inferable" and why in refusal[1])


def _dark(**changes: object) -> TaskSettings:
    plain = SETTINGS.model_dump()
    plain["dark_event_infer"] |= {key: value for key, value in changes.items() if key in plain["dark_event_infer"]}
    plain["dark_event_infer"]["events"] |= {
        key: value for key, value in changes.items() if key in plain["dark_event_infer"]["events"]
    }
    return TaskSettings.model_validate(plain)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"min_s": "0.75"}, "takes 0.5 s, events.min_s is 3/4"),
        ({"max_s": "0.25"}, "events.max_s 1/4"),
        ({"places": ["start", "end"]}, "stands at the clip's middle, events.places: end, start"),
        ({"min_words": 5}, "its caption has 4 words"),
        ({"max_words": 3}, "its caption has 4 words"),
        ({"forbidden": ["^THE red"]}, "its caption matches '^THE red' of events.forbidden"),
        ({}, None),
    ],
)
def test_events_are_filtered_by_length_place_and_caption(rule: dict[str, object], why: str | None) -> None:
    settings = _dark(**rule).dark_event_infer
    assert settings is not None
    refusal = dark_event_infer.refusal(clip(), clip().events[0], settings, 8)
    assert (refusal is None) == (why is None)
    assert why is None or (refusal is not None and refusal[0] == "event-filtered" and why in refusal[1])


def test_an_event_that_another_one_gives_away_is_filtered() -> None:
    twice = clip(verbs=("rises", "rises"))
    ((_, samples, rejects),) = synthesise([twice], "dark_event_infer", SETTINGS, 8, 7)
    assert samples == []
    assert {reject.reason for reject in rejects} == {"event-filtered"}
    assert len(made([twice], "dark_event_infer", _dark(unique=False))) == 2


def test_filter_rules_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="need 0 <= min_s <= max_s"):
        _dark(min_s=5, max_s=2)
    with pytest.raises(ValidationError, match="'\\(' is not a regular expression"):
        _dark(forbidden=["("])


def test_several_dark_parts_leave_context_between_them_and_the_question_says_which() -> None:
    spans = [Span(start=start, stop=start + 6) for start in (4, 14, 24, 34)]
    long = clip(frames=48, events=tuple(Event(span=span, caption=f"event {n}") for n, span in enumerate(spans)))
    settings = _dark(masks=2, per_clip=4)
    samples = [s for _, samples, _ in synthesise([long], "dark_event_infer", settings, 24, 7) for s in samples]
    assert len(samples) == 4
    for sample in samples:
        first, second = sample.timeline.dark
        assert first.stop < second.start
        which = {"first": first, "second": second}[sample.question.removeprefix("what happens in the ").split()[0]]
        assert sample.reference == next(e.caption for e in long.events if e.span == which)
        shown = resolve(sample.timeline, sample_indices(48, 24))
        assert sum(not s.dark and first.stop <= s.frame < second.start for s in shown) >= 1
    # A third part would exceed max_dark_share.
    assert [s for s in made([long], "dark_event_infer", _dark(masks=4)) if len(s.timeline.dark) > 3] == []


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
        asked = by_id[sample.clip_id].display_name
        other = next(by_id[n] for n in sample.timeline.clip_ids if n != sample.clip_id).display_name
        assert asked is not None
        assert asked in sample.question
        assert other not in sample.question


def _unsuitable(first: Clip, second: Clip, **changes: bool) -> str | None:
    chosen = SETTINGS.of(mix_vid_qa.TASK)
    assert chosen is not None
    partners = mix_vid_qa.as_partner(first), mix_vid_qa.as_partner(second)
    return mix_vid_qa.unsuitable(*partners, chosen.model_copy(update=changes))


def test_clips_of_one_source_or_of_one_look_are_not_mixed() -> None:
    assert _unsuitable(clip(0), clip(1, source_id="s0", colour="blue")) == "same source video"
    assert _unsuitable(clip(0), clip(1)) == "same class 'red bar'"
    assert _unsuitable(clip(0), clip(1, shape="circle")) == "both show 'red'"
    assert _unsuitable(clip(0), clip(1, colour="blue", rate="30000/1001")) is None


def _part(number: int, first: int, colour: str) -> Clip:
    """Part of one recording."""
    excerpt = {"first": first, "file_frames": 100}
    return clip(number, colour=colour, source_id="s", path="videos/long.mp4", excerpt=excerpt)


def test_parts_of_one_recording_are_mixed_where_the_settings_say_so_and_never_with_themselves() -> None:
    assert _unsuitable(_part(0, 0, "red"), _part(1, 16, "blue")) == "same source video"
    assert _unsuitable(_part(0, 0, "red"), _part(1, 16, "blue"), one_recording=True) is None
    assert _unsuitable(_part(0, 0, "red"), _part(1, 15, "blue"), one_recording=True) == "same part of one file"
    assert _unsuitable(_part(0, 30, "red"), _part(1, 15, "blue"), one_recording=True) == "same part of one file"


def test_only_clips_of_one_shot_are_mixed_where_the_settings_say_so() -> None:
    one, several, unknown = clip(0, shots=()), clip(1, colour="blue", shots=(7,)), clip(2, colour="green")
    assert _unsuitable(one, several, one_shot=True) == _unsuitable(one, unknown, one_shot=True) == "several shots"
    assert _unsuitable(one, clip(3, colour="blue", shots=()), one_shot=True) is None
    mixing = {"per_clip": 1, "max_clip_s": 10, "min_piece_s": 1, "max_piece_s": 1, "min_piece_frames": 2}
    settings = TaskSettings.model_validate({"mix_vid_qa": {**mixing, "one_shot": True, "one_recording": False}})
    made = {
        c.clip_id: (samples, rejects)
        for c, samples, rejects in synthesise(
            [one, several, unknown, clip(3, colour="blue", shots=())], "mix_vid_qa", settings, 8, 7
        )
    }
    assert {name: len(samples) for name, (samples, _) in made.items()} == {"c0": 1, "c1": 0, "c2": 0, "c3": 1}
    assert [made[name][1][0].detail for name in ("c1", "c2")] == [
        "it has 2 shots (mix_vid_qa.one_shot)",
        "nobody looked for its shots (mix_vid_qa.one_shot)",
    ]
    assert {made[name][1][0].reason for name in ("c1", "c2")} == {"not-one-shot"}


def _long(number: int, rate: str, seconds: int, **changes: object) -> Clip:
    """An event of two seconds every three, from 0 s on."""
    frames = int(Fraction(rate) * seconds)
    spans = [(Fraction(rate) * start, Fraction(rate) * (start + 2)) for start in range(0, seconds - 2, 3)]
    events = tuple(
        Event(span=Span(start=int(a), stop=int(b)), caption=f"c{number} does {n}") for n, (a, b) in enumerate(spans)
    )
    return clip(number, frames=frames, rate=rate, events=events, subjects=(), label=f"Class{number}Name", **changes)


MIX_SECONDS = TaskSettings.model_validate(
    {
        "mix_vid_qa": {
            "per_clip": 1,
            "max_clip_s": 10,
            "min_piece_s": 1.5,
            "max_piece_s": 2,
            "min_piece_frames": 1,
            "one_shot": False,
            "one_recording": False,
        }
    }
)


@pytest.mark.parametrize(("rate", "other"), [("25", "30000/1001"), ("30", "24"), ("24000/1001", "50")])
def test_clips_of_two_rates_are_conformed_and_excerpts_of_ten_seconds_shown(rate: str, other: str) -> None:
    clips = [_long(0, rate, 60), _long(1, other, 37)]
    samples = [s for _, made, _ in synthesise(clips, "mix_vid_qa", MIX_SECONDS, 16, 7) for s in made]
    assert len(samples) == 2
    for asked, sample in zip(clips, samples, strict=True):
        rates = {c.clip_id: c.rate for c in clips}
        assert sample.timeline.rate == min(rates.values())
        ids = [segment.clip_id for segment in sample.timeline.segments]
        assert [(a, b) for a, b in pairwise(ids[: 2 * min(map(ids.count, rates))]) if a == b] == []
        for c in clips:
            pieces = [segment.span for segment in sample.timeline.segments if segment.clip_id == c.clip_id]
            assert [(a, b) for a, b in pairwise(pieces) if a.stop != b.start] == []
            seconds = sum(piece.frames for piece in pieces) / sample.timeline.rate
            assert Fraction(3, 2) <= seconds <= 10
            assert [
                piece for piece in pieces if not Fraction(149, 100) <= piece.frames / sample.timeline.rate <= 2
            ] == []
            assert pieces[-1].stop <= conformed_frames(c.frames, c.rate, sample.timeline.rate)
            if c is asked:
                shown = Span(start=pieces[0].start, stop=pieces[-1].stop)
        # The event in question is visible as a whole, and no event before a "first" or behind a
        # "last" is visible in part.
        to_timeline = sample.timeline.rate / asked.rate
        whole = [
            e
            for e in asked.events
            if shown.start <= e.span.start * to_timeline and e.span.stop * to_timeline <= shown.stop
        ]
        assert sample.reference in {whole[0].caption, whole[-1].caption}
        name = f"class{asked.clip_id[1:]}name"
        assert sample.question.replace(" ", "") in {
            f'Whathappens{when}inthevideothatshows"{name}"?' for when in ("first", "last", "")
        }


def test_a_frame_of_a_conformed_clip_is_the_one_on_display() -> None:
    assert [conformed_frame(n, 100, Fraction(25), Fraction(25)) for n in range(5)] == [0, 1, 2, 3, 4]
    assert [conformed_frame(n, 100, Fraction(30), Fraction(10)) for n in range(4)] == [1, 4, 7, 10]
    assert [conformed_frame(n, 100, Fraction(10), Fraction(20)) for n in range(4)] == [0, 0, 1, 1]
    assert conformed_frame(99, 100, Fraction(30), Fraction(24)) == 99
    assert conformed_frames(100, Fraction(30), Fraction(24)) == 80


def test_questions_from_the_order_of_events() -> None:
    captions = ("she peels it", "she cuts it", "she fries it")
    events = tuple(Event(span=Span(start=4 * n, stop=4 * n + 4), caption=caption) for n, caption in enumerate(captions))
    settings = TaskSettings.model_validate({"mcqa": {"per_clip": 9, "from_events": True}})
    asked = {s.question: s for s in made([clip(events=events, questions=())], "mcqa", settings)}
    right = {question: s.options[ord(s.reference) - ord("A")] for question, s in asked.items()}
    assert right == {
        "Which of these happens first?": "she peels it",
        "Which of these happens last?": "she fries it",
        'Which of these happens right after "she peels it"?': "she cuts it",
        'Which of these happens right after "she cuts it"?': "she fries it",
    }
    assert set(asked["Which of these happens first?"].options) == set(captions)
    assert set(asked['Which of these happens right after "she cuts it"?'].options) == {"she peels it", "she fries it"}
    # Its own questions come first; equal captions allow no question about order.
    assert [s.question for s in made([clip()], "mcqa", settings)] == [clip().questions[0].question]
    same = tuple(event.model_copy(update={"caption": "again"}) for event in events)
    assert made([clip(events=same, questions=())], "mcqa", settings) == []


def test_a_clip_whose_events_are_not_in_order_is_refused() -> None:
    with pytest.raises(ValidationError, match="sort events by their start"):
        clip(events=clip().events[::-1])


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
        "qa": ["no-questions"],
        "caption": ["no-caption"],
        "structured_caption": ["no-analysis"],
    }
    assert [r.reason for _, _, rejects in synthesise([clip()], "mix_vid_qa", SETTINGS, 8, 7) for r in rejects] == [
        "no-partner"
    ]


def test_a_task_without_settings_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"synthesize\.tasks\.mcqa: not set"):
        list(synthesise([clip()], "mcqa", TaskSettings(), 8, 7))
