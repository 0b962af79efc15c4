"""The generated corpus as its own teacher: the parts of a trace that are taught."""

from __future__ import annotations

from fractions import Fraction

from stages.domain.core.records import Sample, Segment, Span, Timeline, Trace
from stages.domain.core.replies import Reply, parse_reply
from stages.sft.teacher import teach
from tests.support.training.tiny import sft_row

FULL = Trace(
    thinking="the red bar rises then grows",
    answer="the red bar rises",
    brief_thinking="the red bar",
    careless_answer="the red bar moves",
)


def sample(number: int = 0, trace: Trace | None = FULL) -> Sample:
    return Sample(
        sample_id=f"dark_event_infer/a/{number}",
        task="dark_event_infer",
        split="train",
        clip_id="a",
        timeline=Timeline(rate=Fraction(8), segments=(Segment(clip_id="a", span=Span(start=0, stop=16)),)),
        sampled_frames=8,
        question="what happens in the dark part ?",
        reference="the red bar rises",
        trace=trace,
    )


def taught(number: int = 0, trace: Trace | None = FULL, *, careless: float = 0.0, brief: float = 0.0) -> Reply:
    reply = parse_reply(
        teach(
            sample(number, trace),
            sft_row(
                tasks={"dark_event_infer": 1, "mcqa": 1},
                careless_share=careless,
                brief_share={"dark_event_infer": brief, "mcqa": 1},
            ),
            seed=7,
        )
        or ""
    )
    assert reply is not None
    return reply


def test_each_share_changes_its_own_half_of_the_reply() -> None:
    assert taught() == Reply(FULL.thinking, FULL.answer)
    assert taught(brief=1) == Reply("the red bar", FULL.answer)
    assert taught(careless=1) == Reply(FULL.thinking, "the red bar moves")


def test_a_trace_that_knows_no_shorter_way_is_taught_as_it_is() -> None:
    plain = Trace(thinking="the dog runs", answer="A")
    assert taught(trace=plain, careless=1, brief=1) == Reply("the dog runs", "A")
    assert teach(sample(trace=None), sft_row(), seed=7) is None


def test_brief_and_careless_are_drawn_apart_for_each_sample() -> None:
    replies = [taught(number, careless=0.5, brief=0.5) for number in range(800)]
    brief = [reply.thinking == FULL.brief_thinking for reply in replies]
    careless = [reply.answer == FULL.careless_answer for reply in replies]
    for count in (sum(brief), sum(careless), 2 * sum(a and b for a, b in zip(brief, careless, strict=True))):
        assert 340 < count < 460
    # Others draw the same for the sample they share.
    assert taught(3, careless=0.5, brief=0.5) == replies[3]
