"""Intervals and p-values: by hand, against SciPy's own, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stages.domain.statistics.intervals import Compared, Design, Interval, compared, harmonic, holm, mean_interval


def one_each(count: int) -> Design:
    return Design.of([(str(n),) for n in range(count)])


def mean_of(values: list[float], design: Design | None = None, most: float = 1.0) -> Interval:
    return mean_interval(np.array(values), design or one_each(len(values)), 0.95, most)


def difference_of(values: list[float], design: Design | None = None) -> Compared:
    return compared(np.array(values), design or one_each(len(values)), 0.95)


@pytest.mark.parametrize(("right", "of"), [(0, 8), (7, 8), (10, 20), (240, 240), (1, 100)])
def test_right_and_wrong_about_a_video_each_is_clopper_and_pearsons(right: int, of: int) -> None:
    found = mean_of([1.0] * right + [0.0] * (of - right))
    exact = stats.binomtest(right, of).proportion_ci(0.95, "exact")
    assert (found.mean, found.low, found.high) == pytest.approx((right / of, exact.low, exact.high))


def test_all_right_is_not_certain() -> None:
    assert mean_of([1.0] * 240).low == pytest.approx(0.025 ** (1 / 240))
    assert mean_of([1.0] * 240).low < 0.9875, "the rule of three"
    half = mean_of([0.5] * 20)
    assert half.low < 0.45 < 0.55 < half.high, "equal scores leave open what others are"
    nearly = mean_of([1.0] * 7 + [0.99])
    assert nearly.low < 0.7, "and nearly equal ones do too"
    marks = mean_of([5.0] * 20, most=5.0)
    assert (marks.mean, marks.high) == (5.0, 5.0)
    assert marks.low == pytest.approx(5 * mean_of([1.0] * 20).low)


@pytest.mark.parametrize("clips", [2, 3, 4, 5, 8, 13])
def test_p_of_few_clips_that_were_all_won_is_that_of_the_sign_test(clips: int) -> None:
    found = difference_of([1.0] * clips)
    assert found.p_value == pytest.approx(2 * 0.5**clips)
    assert (found.low > 0) == (found.p_value <= 0.05)
    assert difference_of([0.02] * clips).p_value == pytest.approx(2 * 0.5**clips), "however little was won"


def test_p_of_many_clips_is_no_smaller_than_the_sign_tests() -> None:
    for clips in (17, 25, 40):
        assert 2 * 0.5**clips <= difference_of([1.0] * clips).p_value < 1e-4
    assert difference_of([1.0] * 5000).p_value == 1e-15, "never 0"


def test_samples_of_a_clip_are_one_observation_for_p() -> None:
    together = Design.of([(str(n // 10),) for n in range(40)])
    assert difference_of([1.0] * 40, together).p_value == pytest.approx(2 * 0.5**4)
    assert difference_of([1.0] * 40).p_value < 1e-6


def test_nothing_changed_and_nothing_known() -> None:
    same = difference_of([0.0] * 20)
    assert (same.mean, same.p_value) == (0, 1)
    assert same.low == -same.high < 0
    one = Design.of([("a",)] * 5)
    assert mean_of([1.0, 0.0, 1.0, 1.0, 1.0], one) == Interval(mean=0.8, low=0.0, high=1.0)
    alone = difference_of([1.0] * 5, one)
    assert (alone.low, alone.high, alone.p_value) == (-1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="empty"):
        Design.of([])
    with pytest.raises(ValueError, match="a sample has none"):
        Design.of([("a",), ()])


def test_a_rare_win_is_not_taken_for_a_certain_one() -> None:
    found = difference_of([1.0] + [0.0] * 99)
    assert found.high > 0.045, "up to one in twenty may be won, for all that 1 of 100 tells"
    assert found.low < 0


def test_a_unit_that_two_samples_share_makes_both_less_sure() -> None:
    rng = np.random.default_rng(3)
    values = rng.random(60).tolist()
    pairs = [(f"{n % 20}", f"{(n % 20 + 1 + n // 20) % 20}") for n in range(60)]
    apart, one_way, crossed = (
        mean_of(values, Design.of(units))
        for units in ([(str(n),) for n in range(60)], [pair[:1] for pair in pairs], pairs)
    )
    assert crossed.high - crossed.low > one_way.high - one_way.low
    assert crossed.high - crossed.low > 1.2 * (apart.high - apart.low)
    both = Design.of([("a", "b"), ("b", "a")])
    assert difference_of([1.0, 1.0], both).p_value == 1
    assert Design.of([("a", "a"), ("b", "b")]).crossed is False, "two names of one file are one unit"


def test_units_of_unequal_size_count_as_fewer() -> None:
    uneven = Design.of([("a",)] * 20 + [(str(n),) for n in range(7)])
    assert uneven.count == 8
    assert 1 < uneven.effective < 2


def test_strata_count_the_same() -> None:
    design = Design.of([(str(n),) for n in range(30)], ["few"] * 10 + ["many"] * 20)
    found = mean_interval(np.array([1.0, 0.0] * 5 + [1.0] * 19 + [0.0]), design, 0.95)
    assert found.mean == pytest.approx((0.5 + 0.95) / 2)
    assert 20 < design.effective < 30


def test_a_harmonic_mean_is_the_mean_of_what_samples_add() -> None:
    rng = np.random.default_rng(5)
    recall, precision = rng.random(40), rng.random(40)
    design = one_each(40)
    added = harmonic(recall, precision, design)
    f1 = stats.hmean([recall.mean(), precision.mean()])
    assert added.mean() == pytest.approx(f1)
    # The jackknife of F1 itself has the same spread.
    left = [stats.hmean([np.delete(recall, n).mean(), np.delete(precision, n).mean()]) for n in range(40)]
    by_hand = np.sqrt(39 / 40 * ((left - np.mean(left)) ** 2).sum())
    moved = design.moved(added)
    assert moved is not None
    assert np.sqrt(39 / 40 * (moved**2).sum()) == pytest.approx(by_hand, rel=0.02)
    assert harmonic(np.zeros(4), np.zeros(4), one_each(4)).tolist() == [0, 0, 0, 0]


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), st.integers(0, 9)), min_size=1, max_size=60))
def test_p_and_interval_agree_and_sides_are_alike(rows: list[tuple[float, int]]) -> None:
    design = Design.of([(str(clip),) for _, clip in rows])
    values = [value for value, _ in rows]
    found, mirrored = difference_of(values, design), difference_of([-value for value in values], design)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert (not found.low <= 0 <= found.high) == (found.p_value <= 1 - 0.95)
    assert (mirrored.low, mirrored.high, mirrored.p_value) == pytest.approx((-found.high, -found.low, found.p_value))
    assert found == difference_of(values, design), "the same bytes for the same scores"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=60))
def test_an_interval_of_shares_lies_in_0_and_1_around_the_mean(rows: list[tuple[float, int, int]]) -> None:
    design = Design.of([(str(clip),) for _, clip, _ in rows], [str(task) for _, _, task in rows])
    found = mean_interval(np.array([value for value, _, _ in rows]), design, 0.95)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    wider = mean_interval(np.array([value for value, _, _ in rows]), design, 0.99)
    assert wider.low <= found.low
    assert found.high <= wider.high
