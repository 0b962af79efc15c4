"""Several replies to a sample: pass@k, and intervals that count the chance of clips and of
replies."""

from __future__ import annotations

from itertools import combinations
from math import comb, prod
from statistics import fmean

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import Score
from stages.domain.statistics.metrics import pass_at_k, pass_sizes, sampled_results


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.data())
def test_the_best_of_k_is_the_mean_over_all_subsets(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    expected = fmean(max(subset) for subset in combinations(values, k))
    assert pass_at_k(values, k) == pytest.approx(expected, abs=1e-12)
    assert pass_at_k(values, 1) == pytest.approx(fmean(values), abs=1e-12)


@given(st.integers(1, 200), st.data())
def test_of_right_and_wrong_it_is_the_published_estimator(n: int, data: st.DataObject) -> None:
    """Chen et al. (arXiv 2107.03374): equation 1, and their numerically stable product."""
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    found = pass_at_k([1.0] * right + [0.0] * (n - right), k)
    assert found == pytest.approx(1 - comb(n - right, k) / comb(n, k), abs=1e-12)
    stable = 1.0 if n - right < k else 1 - prod(1 - k / i for i in range(n - right + 1, n + 1))
    assert found == pytest.approx(stable, abs=1e-9)


def test_the_estimator_is_unbiased_where_the_plug_in_is_not() -> None:
    rng, p, n, k = np.random.default_rng(1), 0.2, 8, 4
    draws = rng.binomial(n, p, 20_000)
    by_count = [pass_at_k([1.0] * c + [0.0] * (n - c), k) for c in range(n + 1)]
    estimates = np.array([by_count[c] for c in draws])
    true, error = 1 - (1 - p) ** k, 4 * estimates.std() / len(draws) ** 0.5
    assert abs(estimates.mean() - true) < error
    assert abs((1 - (1 - draws / n) ** k).mean() - true) > error


def test_sizes_and_what_is_too_few() -> None:
    assert [pass_sizes(n) for n in (2, 3, 8, 10)] == [(2,), (2, 3), (2, 4, 8), (2, 4, 8, 10)]
    with pytest.raises(ValueError, match="k: 3 of 2 replies"):
        pass_at_k([0.0, 1.0], 3)


def scores(values_SG: npt.NDArray[np.float64], task: str = "mcqa") -> list[Score]:
    """Scores of the replies to each sample; NaN: not judged."""
    return [
        Score(sample_id=f"s{i}", task=task, reply="", format_ok=True, value=None if np.isnan(value) else float(value))
        for i, row in enumerate(values_SG)
        for value in row
    ]


def test_replies_without_a_verdict_are_no_zeros() -> None:
    values = np.array([[1.0, np.nan, 1.0], [0.0, 1.0, 0.5], [np.nan] * 3])
    result = sampled_results(scores(values), 3, {f"s{i}": [f"c{i}"] for i in range(3)}, 0.95)["mcqa"]
    assert (result.samples, result.replies, result.unjudged) == (2, 9, 4)
    assert result.mean == pytest.approx((1 + 0.5) / 2)
    assert result.pass_at[2].mean == pytest.approx((1 + (1 + 1 + 0.5) / 3) / 2)
    assert result.pass_at[3].mean == 1.0, "the second alone has three"
    few = sampled_results(scores(values[[0]]), 3, {"s0": ["c0"]}, 0.95)["mcqa"]
    assert set(few.pass_at) == {2}


def world(rng: np.random.Generator, clips: int, per_clip: int, replies: int) -> npt.NDArray[np.float64]:
    """Right and wrong replies: clips differ, samples of a clip do, and so do replies."""
    clip_C = rng.beta(2, 2, clips)
    rates_S = np.clip(np.repeat(clip_C, per_clip) + rng.normal(0, 0.1, clips * per_clip), 0, 1)
    return (rng.random((clips * per_clip, replies)) < rates_S[:, None]).astype(np.float64)


def test_the_interval_is_as_wide_as_a_bootstrap_of_clips() -> None:
    """Clips are drawn again, with all their samples and replies: Davison and Hinkley, Bootstrap
    Methods and their Application, section 3.8."""
    rng, clips, per_clip, replies = np.random.default_rng(2), 60, 3, 8
    values = world(rng, clips, per_clip, replies)
    shown = {f"s{i}": [f"c{i // per_clip}"] for i in range(len(values))}
    result = sampled_results(scores(values), replies, shown, 0.95)["mcqa"]
    for k, found in ((1, result), (4, result.pass_at[4])):
        by_clip = np.array([pass_at_k(list(row), k) for row in values]).reshape(clips, per_clip).mean(axis=1)
        means = by_clip[rng.integers(0, clips, (4000, clips))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        assert found.mean == pytest.approx(by_clip.mean())
        assert found.high - found.low == pytest.approx(high - low, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 4])
def test_the_interval_covers_the_truth_over_clips_and_replies(k: int) -> None:
    rng, clips, per_clip, replies = np.random.default_rng(3), 30, 2, 4
    truth = fmean(pass_at_k(list(row), k) for row in world(np.random.default_rng(4), 20_000, 1, replies))
    shown = {f"s{i}": [f"c{i // per_clip}"] for i in range(clips * per_clip)}
    covered = 0
    for _ in range(1000):
        result = sampled_results(scores(world(rng, clips, per_clip, replies)), replies, shown, 0.95)["mcqa"]
        found = result if k == 1 else result.pass_at[k]
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 1000 <= 0.99
