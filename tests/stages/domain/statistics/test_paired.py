"""Paired comparison: by hand, against the summary's own intervals, and under no difference at
all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stages.domain.core.records import Score
from stages.domain.statistics.paired import SampleScore, compare, paired_difference


def rows(values: dict[str, float | None], per_clip: int = 1) -> list[SampleScore]:
    return [
        SampleScore(sample_id=name, clips=(str(place // per_clip),), task=name.split("/")[0], value=value)
        for place, (name, value) in enumerate(values.items())
    ]


def test_by_hand() -> None:
    after = rows({"caption/0": 1.0, "caption/1": 0.5, "mcqa/0": 1.0, "mcqa/1": 0.0, "mcqa/2": None})
    before = rows({"caption/0": 0.5, "caption/1": 0.5, "mcqa/0": 0.0, "mcqa/1": 1.0, "mcqa/2": 1.0})
    found = compare(after, before, confidence=0.95)
    caption, mcqa = found.tasks["caption"], found.tasks["mcqa"]
    assert (caption.before, caption.after, caption.mean, caption.won, caption.lost, caption.tied) == (
        0.5,
        0.75,
        0.25,
        1,
        0,
        1,
    )
    assert (mcqa.mean, mcqa.won, mcqa.lost, mcqa.tied) == (0.0, 1, 1, 0)
    assert found.mean.mean == pytest.approx((0.25 + 0.0) / 2), "tasks count alike"
    assert found.unpaired == 1, "one that a judge could not score counts for neither"
    assert (caption.p_value, mcqa.p_value, found.mean.p_value) == (1, 1, 1), "of two clips one was won"
    assert caption.low < 0 < 0.25 < caption.high


def test_the_mean_over_tasks_is_as_sure_as_leaving_out_one_clip_after_the_other_says() -> None:
    rng = np.random.default_rng(3)
    names = [f"{task}/{n}" for task in ("caption", "mcqa") for n in range(60)]
    values = {side: dict(zip(names, rng.random(len(names)).tolist(), strict=True)) for side in ("after", "before")}

    def scores(side: str) -> list[Score]:
        return [
            Score.model_validate(
                {"sample_id": name, "task": name.split("/")[0], "reply": "", "format_ok": True, "value": value}
            )
            for name, value in values[side].items()
        ]

    # Clips of both tasks: the same sixty, so that tasks are not independent.
    clips = {name: (name.split("/")[1],) for name in names}
    mean, tasks = paired_difference(scores("after"), scores("before"), clips, 0.95)
    gains = np.array(
        [
            [values["after"][f"{task}/{n}"] - values["before"][f"{task}/{n}"] for n in range(60)]
            for task in ("caption", "mcqa")
        ]
    )
    for found, apart in ((tasks["caption"], gains[0]), (tasks["mcqa"], gains[1]), (mean, gains.mean(axis=0))):
        assert found.mean == pytest.approx(apart.mean())
        # Without rare outcomes it is nearly Student's interval of the clips' differences.
        student = stats.t.interval(0.95, 59, apart.mean(), stats.sem(apart))
        assert (found.low, found.high) == pytest.approx(student, abs=0.015)
    assert tasks["caption"].p_holm is not None
    assert mean.p_holm is None


def test_without_a_difference_few_p_values_are_small_and_with_one_it_is() -> None:
    rng = np.random.default_rng(7)
    small = 0
    for _ in range(200):
        values = [dict(enumerate(rng.random(50))) for _ in range(2)]
        sides = [rows({f"mcqa/{n}": float(value) for n, value in side.items()}) for side in values]
        small += compare(*sides, confidence=0.95).mean.p_value < 0.05
    assert small <= 24, "one in twenty at most"
    better = compare(
        rows({f"mcqa/{n}": 1.0 for n in range(30)}), rows({f"mcqa/{n}": 0.5 for n in range(30)}), confidence=0.95
    )
    assert 0 < better.mean.p_value < 1e-6, "never 0"


def test_samples_of_one_clip_are_not_counted_as_independent() -> None:
    values = ({f"mcqa/{n}": float(n // 10 % 2) for n in range(80)}, {f"mcqa/{n}": 0.3 for n in range(80)})
    apart, together = (
        compare(*(rows(side, per_clip) for side in values), confidence=0.95).mean for per_clip in (1, 10)
    )
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="share no scored sample"):
        compare(rows({"mcqa/0": 1.0}), rows({"mcqa/1": 1.0}), confidence=0.95)
