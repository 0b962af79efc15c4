"""Equality of rewards: a rounding error is not a difference, and all callers get the same
answer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import Score
from stages.domain.core.replies import render_reply
from stages.domain.rl.difficulty import DropRules, judged
from stages.domain.rl.gauges import alarms, measure
from stages.domain.rl.groups import exceeds, paid_alike
from stages.domain.rl.shaping import LengthReward, TemporalContrast, contrast_paid, length_paid
from stages.domain.tasks import caption
from stages.domain.tasks.partners import ring_of
from stages.domain.tasks.task import Context
from tests.support.builders import clip, rules

NAN = math.nan


@pytest.mark.parametrize(
    ("rewards", "alike"),
    [
        ([0.7] * 8, True),
        ([0.1 + 0.2, 0.3], True),
        ([0.1 + 0.2 + 0.7, 0.7 + 0.2 + 0.1, 1.0], True),
        ([1.3, 1.0 + 0.3, 0.65 * 2], True),
        ([0.7, 0.7000001], True),  # a neighbour in single precision
        ([0.7, 0.70001], False),
        ([0.0, 1.0], False),
        ([0.7, None, 0.7, NAN], True),
        ([0.7, None, 0.8], False),
        ([0.7, None], True),  # nothing to compare with
        ([NAN, 0.7], True),
        ([None, NAN], True),
        ([], True),
        ([-0.2, 0.2], False),
        ([1000.0, 1000.0001], True),
        ([1000.0, 1000.1], False),
    ],
)
def test_paid_alike(rewards: list[float | None], alike: bool) -> None:
    assert paid_alike(rewards) is alike
    assert paid_alike(rewards[::-1]) is alike


@given(st.lists(st.floats(0, 2), min_size=1, max_size=6), st.randoms())
def test_the_order_of_a_sum_is_no_difference(parts: list[float], shuffle: object) -> None:
    sums = []
    for _ in range(4):
        shuffle.shuffle(parts)  # type: ignore[attr-defined]
        sums.append(sum(parts))
    assert paid_alike(sums)


def test_exceeds_by_more_than_rounding() -> None:
    assert not exceeds(0.1 + 0.2, 0.3)
    assert exceeds(0.31, 0.3)
    assert not exceeds(0.3, 0.31)


def _sample():
    (made,), _ = caption.make(clip(), caption.Settings(per_clip=1), Context(8, 0, ring_of(())))
    return made


@pytest.mark.parametrize("hundredths", range(1, 101))
@pytest.mark.parametrize("size", [2, 6, 8, 12])
def test_gauge_and_filter_agree(hundredths: int, size: int) -> None:
    value = hundredths / 100
    # Equal by definition, summed in two orders.
    scores = [value if n % 2 else (value + 0.1) - 0.1 for n in range(size)]
    replies = [render_reply("it looks so", " ".join(["word"] * (n + 1))) for n in range(size)]
    gauges = measure([_sample()] * size, replies, scores, rules())
    assert gauges["zero_variance_groups"] == 1.0
    assert gauges["length_reward_correlation"] == 0.0, "rounding is correlated with nothing"
    assert judged(_sample(), scores, DropRules(drop_always_right=False, min_spread=1e-9)).verdict == "never-moves"
    scores[0] += 0.01
    assert measure([_sample()] * size, replies, scores, rules())["zero_variance_groups"] == 0.0
    assert judged(_sample(), scores, DropRules(drop_always_right=False, min_spread=1e-9)).verdict == "kept"


def test_the_gauge_looks_at_what_is_known_of_a_group() -> None:
    replies = [render_reply("it looks so", "word")] * 4
    of = lambda rewards: measure([_sample()] * 4, replies, rewards, rules()).get("zero_variance_groups")  # noqa: E731
    assert of([0.7, None, 0.7, 0.7]) == 1.0
    assert of([0.7, None, 0.8, 0.7]) == 0.0
    assert of([None, 0.7, None, None]) == 1.0
    assert of([None] * 4) is None, "nothing was measured"


def test_a_spread_that_is_the_least_but_for_rounding_is_kept() -> None:
    # (.1, .3) has a population deviation of .1, computed as .09999999999999999.
    assert judged(_sample(), [0.1, 0.3], DropRules(drop_always_right=False, min_spread=0.1)).verdict == "kept"
    assert judged(_sample(), [0.1, 0.29], DropRules(drop_always_right=False, min_spread=0.1)).verdict == "never-moves"


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_equal_means_pay_no_contrast(hundredths: int) -> None:
    value = hundredths / 100
    rule = TemporalContrast(weight=0.3, ratio=1.0, rollouts=2, min_share=value)
    for ordered, shuffled in ((8, 2), (12, 4), (6, 6), (3, 7)):
        assert contrast_paid([value] * ordered, [value] * shuffled, rule) == [0.0] * ordered
    assert contrast_paid([value] * 8, [value - 0.01] * 2, rule) == [1.0] * 8
    # A share that equals the minimum up to rounding is right.
    assert contrast_paid([(value + 0.1) - 0.1, value], [0.0], rule) == [1.0, 1.0]
    length = LengthReward(weight=0.3, min_words=0, max_words=9, min_share=value)
    score = Score(
        sample_id="s",
        task="caption",
        reply=render_reply("so", "it is"),
        format_ok=True,
        value=min(1.0, (value + 0.1) - 0.1),
    )
    assert length_paid(score, length) == 1.0


def test_an_alarm_needs_more_than_rounding() -> None:
    assert alarms({"empty_thinking": 0.1 + 0.1 + 1e-12}) == {}
    assert alarms({"empty_thinking": 0.21}).keys() == {"empty_thinking"}
