"""Paired comparison: by hand, against the summary's own intervals, and under no difference at all."""

from __future__ import annotations

import numpy as np
import pytest

from stages.domain.comparing import SampleScore, compare, paired_difference
from stages.domain.records import Score


def rows(values: dict[str, float | None], per_clip: int = 1) -> list[SampleScore]:
    return [
        SampleScore(sample_id=name, clip_id=str(place // per_clip), task=name.split("/")[0], value=value)
        for place, (name, value) in enumerate(values.items())
    ]


def test_by_hand() -> None:
    after = rows({"caption/0": 1.0, "caption/1": 0.5, "mcqa/0": 1.0, "mcqa/1": 0.0, "mcqa/2": None})
    before = rows({"caption/0": 0.5, "caption/1": 0.5, "mcqa/0": 0.0, "mcqa/1": 1.0, "mcqa/2": 1.0})
    found = compare(after, before, draws=200, confidence=0.95, seed=1)
    caption, mcqa = found.tasks["caption"], found.tasks["mcqa"]
    assert (caption.before, caption.after, caption.mean, caption.won, caption.lost, caption.tied) == (0.5, 0.75, 0.25, 1, 0, 1)
    assert (mcqa.mean, mcqa.won, mcqa.lost, mcqa.tied) == (0.0, 1, 1, 0)
    assert found.mean.mean == pytest.approx((0.25 + 0.0) / 2), "tasks count alike"
    assert found.unpaired == 1, "one that a judge could not score counts for neither"
    assert (caption.low, caption.high) == (0.0, 0.5)


def test_the_interval_is_that_of_drawing_clips_one_by_one() -> None:
    rng = np.random.default_rng(3)
    names = [f"{task}/{n}" for task in ("caption", "mcqa") for n in range(60)]
    values = {side: dict(zip(names, rng.random(len(names)).tolist(), strict=True)) for side in ("after", "before")}

    def scores(side: str) -> list[Score]:
        return [
            Score.model_validate({"sample_id": name, "task": name.split("/")[0], "reply": "", "format_ok": True, "value": value})
            for name, value in values[side].items()
        ]

    clips = {row.sample_id: row.clip_id for row in rows(values["after"], 3)}
    mean, tasks = paired_difference(scores("after"), scores("before"), clips, 300, 0.9, 5)

    members = {clip: [name for name in names if clips[name] == clip] for clip in dict.fromkeys(clips.values())}
    order, drawn = list(members), []
    for picks in np.random.default_rng(5).integers(0, len(order), size=(300, len(order))):
        gains: dict[str, list[float]] = {"caption": [], "mcqa": []}
        for name in (name for pick in picks for name in members[order[pick]]):
            gains[name.split("/")[0]].append(values["after"][name] - values["before"][name])
        drawn.append([np.mean(gains["caption"]), np.mean(gains["mcqa"])])
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    for place, task in enumerate(("caption", "mcqa")):
        assert (tasks[task].low, tasks[task].high) == pytest.approx((low[place], high[place]))
    assert (mean.low, mean.high) == pytest.approx(tuple(np.quantile(np.mean(drawn, axis=1), [0.05, 0.95])))


def test_without_a_difference_few_p_values_are_small_and_with_one_it_is() -> None:
    rng = np.random.default_rng(7)
    small = 0
    for seed in range(200):
        values = [dict(enumerate(rng.random(50))) for _ in range(2)]
        sides = [rows({f"mcqa/{n}": float(value) for n, value in side.items()}) for side in values]
        small += compare(*sides, draws=200, confidence=0.95, seed=seed).mean.p_value < 0.05
    assert 2 <= small <= 24, "about one in twenty"
    better = compare(
        rows({f"mcqa/{n}": 1.0 for n in range(30)}), rows({f"mcqa/{n}": 0.5 for n in range(30)}), draws=200, confidence=0.95, seed=1
    )
    assert better.mean.p_value == pytest.approx(2 / 201), "never 0: no more can be said with so many draws"


def test_samples_of_one_clip_are_not_counted_as_independent() -> None:
    values = ({f"mcqa/{n}": float(n // 10 % 2) for n in range(80)}, {f"mcqa/{n}": 0.3 for n in range(80)})
    apart, together = (
        compare(*(rows(side, per_clip) for side in values), draws=400, confidence=0.95, seed=2).mean for per_clip in (1, 10)
    )
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="share no scored sample"):
        compare(rows({"mcqa/0": 1.0}), rows({"mcqa/1": 1.0}), draws=200, confidence=0.95, seed=1)
