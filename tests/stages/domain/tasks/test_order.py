"""First, last and right after: defined only if overlaps leave one answer."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import UNSURE_S, Clip, Event, Span
from stages.domain.tasks import mcqa
from stages.domain.tasks.order import first, last, right_after
from stages.domain.tasks.synthesis import TaskSettings, synthesise
from stages.synthesize.question_rules import describe_clip
from tests.support.builders import SETTINGS, clip

RATE = Fraction(10)


def _events(*times: tuple[float, float]) -> tuple[Event, ...]:
    """Events named a, b, c … in order of their start; times in seconds."""
    spans = [Span(start=round(start * 10), stop=round(stop * 10)) for start, stop in times]
    return tuple(
        Event(span=span, caption="abcdefgh"[number]) for number, span in enumerate(sorted(spans, key=lambda s: s.start))
    )


def _asked(*times: tuple[float, float]) -> dict[str, str]:
    events = _events(*times)
    found = {"first": first(events, RATE), "last": last(events, RATE)}
    found |= {f"after {event.caption}": right_after(events, event, RATE) for event in events}
    return {which: event.caption for which, event in found.items() if event is not None}


@pytest.mark.parametrize(
    ("times", "answers"),
    [
        # One after the other.
        (((0, 2), (2, 4), (4, 6)), {"first": "a", "last": "c", "after a": "b", "after b": "c"}),
        # The man talks, the dog barks, the door opens: no event is certainly first, and the one
        # that starts last does not end last.
        (((0, 3), (0, 1), (1, 2)), {"after b": "c"}),
        # The first event lasts longer than all others.
        (((0, 9), (2, 4), (5, 8)), {"after b": "c"}),
        # It starts first and ends before the others: the overlap leaves it first.
        (((0, 5), (3, 8)), {"first": "a", "last": "b"}),
        # Starts, or ends, within half a second: the order is undecidable.
        (((0, 2), (0.4, 4), (5, 8)), {"last": "c", "after b": "c"}),
        (((0, 2), (3, 7.7), (6, 8)), {"first": "a", "after a": "b"}),
        # b starts before a ends and goes on: whether b or c comes right after a is a matter of
        # taste.
        (((0, 4), (3, 6), (6, 8)), {"first": "a", "last": "c", "after b": "c"}),
        # An overlap of a few frames is within an annotator's precision.
        (((0, 4), (3.6, 6), (6, 8)), {"first": "a", "last": "c", "after a": "b", "after b": "c"}),
        # Two start right after it.
        (((0, 2), (2, 4), (2.3, 6)), {"first": "a", "last": "c"}),
        # An event of a third of a second has no middle that another could start in.
        (((0, 0.3), (0.2, 0.4), (0.4, 3)), {"last": "c", "after b": "c"}),
        (((0, 2),), {}),
        ((), {}),
    ],
)
def test_what_can_be_asked(times: tuple[tuple[float, float], ...], answers: dict[str, str]) -> None:
    assert _asked(*times) == answers


def _clip(events: tuple[Event, ...], **changes: object) -> Clip:
    return clip(frames=200, rate=RATE, events=events, questions=(), **changes)


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(1, 49)), min_size=2, max_size=6))
def test_an_option_of_an_order_question_is_right_or_wrong(times: list[tuple[int, int]]) -> None:
    spans = sorted((Span(start=start, stop=start + length) for start, length in times), key=lambda span: span.start)
    of = {f"event {number}": span for number, span in enumerate(spans)}
    sure = UNSURE_S * RATE
    made = mcqa.event_questions(_clip(tuple(Event(span=span, caption=name) for name, span in of.items())), Random(1))
    for question in made:
        options = [of[option] for option in question.options]
        answer = options.pop(ord(question.answer) - ord("A"))
        if question.question.endswith("first?"):
            assert [
                other for other in options if not (answer.start + sure <= other.start and answer.stop <= other.stop)
            ] == []
        elif question.question.endswith("last?"):
            assert [
                other for other in options if not (other.stop + sure <= answer.stop and other.start <= answer.start)
            ] == []
        else:
            asked = of[question.question.split('"')[1]]
            assert answer.start >= asked.stop - sure
            assert [
                other
                for other in options
                if other.start > asked.start + sure and asked.stop - sure <= other.start < answer.start + sure
            ] == []


def test_twins_up_to_case_and_spacing_are_not_asked_about() -> None:
    events = _events((0, 2), (3, 5), (6, 8))
    twin = events[2].model_copy(update={"caption": " A. "})
    assert mcqa.event_questions(_clip((*events[:2], twin)), Random(1)) == ()
    assert len(mcqa.event_questions(_clip(events), Random(1))) == 4


def test_mixtures_ask_for_first_and_last_only_where_one_is() -> None:
    """Of two events that start together neither is first; without the overlap the same clip gives
    both questions."""
    settings = TaskSettings.model_validate({"mix_vid_qa": SETTINGS.mix_vid_qa.model_dump() | {"per_clip": 40}})  # type: ignore[union-attr]
    partners = [clip(n, "blue", "circle", label=f"class {n}", frames=40, rate=RATE, events=()) for n in range(1, 41)]

    def asked(*times: tuple[float, float]) -> set[tuple[str, str]]:
        about = clip(0, frames=40, rate=RATE, events=_events(*times))
        samples = [
            s
            for c, made, _ in synthesise([about, *partners], "mix_vid_qa", settings, 16, 7)
            for s in made
            if c is about
        ]
        return {(sample.sample_id.rpartition("/")[2], sample.reference) for sample in samples}

    assert asked((0, 1), (2, 3)) == {("first", "a"), ("last", "b")}
    assert asked((0, 3), (0, 1), (1, 2)) == set()
    assert asked((0, 1), (0.2, 3), (3, 4)) == {("last", "c")}


def test_then_is_said_only_of_what_starts_when_the_rest_is_over() -> None:
    captions = {"a": "a man talks", "b": "a dog barks", "c": "a door opens"}

    def told(*times: tuple[float, float]) -> str:
        return _clip(
            tuple(e.model_copy(update={"caption": captions[e.caption]}) for e in _events(*times))
        ).event_summary

    assert told((0, 1), (1, 2), (3, 4)) == "a man talks then a dog barks then a door opens"
    assert told((0, 3), (0, 1), (1, 2)) == "a man talks and a dog barks and a door opens"
    assert told((0, 2), (1, 3), (3, 4)) == "a man talks and a dog barks then a door opens"
    assert told() == ""
    for before, after in pairwise(((0, 1), (0.6, 2))):
        assert told(before, after) == "a man talks then a dog barks"


def test_a_writer_is_told_which_events_overlap() -> None:
    assert describe_clip(
        _clip(_events((0, 3), (0, 1), (3, 5)), label=None, caption=None, subjects=())
    ).splitlines() == [
        "Event 1: a",
        "Event 2 (starts while others go on): b",
        "Event 3: c",
    ]
