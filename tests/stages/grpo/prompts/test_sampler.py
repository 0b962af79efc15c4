"""The sampler that keeps the ratio of live groups."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from stages.domain.core.records import TaskName
from stages.grpo.prompts.sampler import LiveEstimate, TaskSampler
from stages.lib.training.mixture import Example, Mixture, draw
from stages.params import LiveRatio
from tests.support.training.tiny import tinted

RULE = LiveRatio(live_decay=0.9, least_live=0.1)


def example(i: int) -> Example:
    return Example(f"s{i}", "caption" if i % 2 else "mcqa", "?", None, lambda: tinted(0, 0))


EXAMPLES = [example(i) for i in range(30)]


def sampler(**weights: float) -> TaskSampler:
    return TaskSampler(EXAMPLES, weights or {"mcqa": 1, "caption": 3}, "seed", RULE)


def task(key: str) -> TaskName:
    return "caption" if int(key[1:]) % 2 else "mcqa"


def test_shares_are_weights_over_live_shares() -> None:
    drawing = sampler()
    drawing.observe([("mcqa", n < 2) for n in range(8)] + [("caption", True)] * 4)
    drawing.take(1)
    assert drawing.live_shares() == {"mcqa": 3 / 9, "caption": 5 / 5}
    wanted = {"mcqa": 1 / (1 / 3), "caption": 3 / 1}
    assert drawing.shares() == pytest.approx({name: value / sum(wanted.values()) for name, value in wanted.items()})


def test_a_task_without_live_groups_does_not_take_all() -> None:
    drawing = sampler()
    for _ in range(40):
        drawing.observe([("mcqa", False)] * 8 + [("caption", True)] * 8)
    drawing.take(1)
    assert drawing.live_shares()["mcqa"] == pytest.approx(1 / (8 / 0.1 + 1), rel=0.02)
    assert drawing.shares()["mcqa"] == pytest.approx(10 / 13), "its weight times 1 / least_live"


def test_live_groups_follow_the_weights() -> None:
    """Three quarters of the groups of one task are dead, a tenth of the other's."""
    live_share = {"mcqa": 0.25, "caption": 0.9}
    for chosen, expected in ((sampler(), 0.25), (None, 0.25 * 0.25 / (0.25 * 0.25 + 0.75 * 0.9))):
        rng, alive = Random(1), {"mcqa": 0, "caption": 0}
        plain = Mixture(EXAMPLES, {"mcqa": 1, "caption": 3}, "seed")
        for generation in range(300):
            keys = chosen.take(16) if chosen else [EXAMPLES[plain.next()].sample_id for _ in range(16)]
            groups = [(task(key), rng.random() < live_share[task(key)]) for key in keys]
            if chosen:
                chosen.observe(groups)
            if generation >= 20:
                for name, live in groups:
                    alive[name] += live
        assert alive["mcqa"] / sum(alive.values()) == pytest.approx(expected, abs=0.02)


def test_the_first_prompts_are_the_mixture_s() -> None:
    order = draw(EXAMPLES, {"mcqa": 1, "caption": 3}, 12, "seed")
    assert sampler().take(12) == [EXAMPLES[index].sample_id for index in order]


def test_a_resumed_sampler_goes_on(tmp_path: Path) -> None:
    whole, first, second = sampler(), sampler(), sampler()

    def generation(drawing: TaskSampler, number: int) -> list[str]:
        keys = drawing.take(7)
        drawing.observe([(task(key), (number + int(key[1:])) % 3 > 0) for key in keys])
        return keys

    expected = [generation(whole, number) for number in range(12)]
    found = [generation(first, number) for number in range(5)]
    first.save(tmp_path / "state.json")
    second.load(tmp_path / "state.json")
    found += [generation(second, number) for number in range(5, 12)]
    assert found == expected
    assert second.drawn == whole.drawn
    assert second.live_shares() == whole.live_shares()


def test_an_estimate_forgets() -> None:
    estimate = LiveEstimate(0.5)
    assert estimate.share == 1.0
    estimate.add(1, 4)
    estimate.add(1, 2, decay=False)
    assert estimate.share == 3 / 7
    estimate.add(0, 2)
    assert estimate.share == (0.5 * 2 + 1) / (0.5 * 6 + 2 + 1)
