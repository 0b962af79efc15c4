"""The experiment on `videocap-r1`: what its arms train, and how its figures are made. Training
itself is `make bench-videocap`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import videocap
from benchmarks.learning.arms import over_seeds
from stages.domain.core.records import Clip, Event, Sample, Score, Span, Subject
from stages.domain.core.replies import render_reply
from stages.domain.tasks import structured_caption
from stages.domain.tasks.partners import ring_of
from stages.domain.tasks.rewards import Referee
from stages.domain.tasks.scoring import score_reply
from stages.domain.tasks.task import Context
from stages.lib.judging.embedder import LexicalEmbedder
from stages.params import load_params, parse_params
from tests.support.builders import JUDGE
from tests.support.checkout import ROOT

REFEREE = Referee(judge=JUDGE, embedder=LexicalEmbedder())
#: Of the recipe, but that a tiny model may think in few words.
RULES = load_params(ROOT / "infra/recipes/videocap-r1.yaml").rewards.model_copy(update={"min_thinking_words": 0})


def arm(name: str) -> dict[str, Any]:
    return videocap.arm_params(ROOT, name, seed=31, more_steps=400)


def samples(count: int) -> list[Sample]:
    made = []
    for number in range(count):
        clip = Clip(
            clip_id=f"c{number}",
            source_id=f"c{number}",
            path="c.mp4",
            sha256="0" * 64,
            split="test",
            frames=16,
            rate="8",
            width=64,
            height=64,
            codec="h264",
            caption="the red bar rises then grows",
            events=(
                Event(span=Span(start=2, stop=6), caption="the red bar rises"),
                Event(span=Span(start=10, stop=14), caption="the red bar grows"),
            ),
            subjects=(Subject(name="bar", attributes=("red",), actions=("rises", "grows")),),
        )
        made += structured_caption.make(clip, structured_caption.Settings(per_clip=1), Context(8, 0, ring_of(())))[0]
    return made


def replied(sample: Sample, answer: str, thinking: str | None = None) -> Score:
    assert sample.trace is not None
    return score_reply(sample, render_reply(thinking or sample.trace.thinking, answer), REFEREE, RULES)


@pytest.mark.parametrize("name", list(videocap.CARELESS))
def test_an_arm_is_the_recipe_in_tiny_form(name: str) -> None:
    recipe, tiny = (load_params(ROOT / f"infra/recipes/{file}.yaml") for file in ("videocap-r1", "tiny"))
    params = parse_params(arm(name))
    assert params.synthesize.tasks.named == ("structured_caption",)
    assert (params.corpus, params.model, params.prompt) == (tiny.corpus, tiny.model, tiny.prompt)
    assert params.sft["cold-start"].careless_share == (0.0 if name.startswith("clean") else 0.5)
    for row in params.grpo.values():
        theirs = recipe.grpo["caption"]
        assert all(getattr(row, field) == getattr(theirs, field) for field in videocap.OWN)
        assert row.learning_rate == tiny.grpo["general"].learning_rate
        assert row.steps * row.prompts_per_step == params.corpus.train_clips
    assert params.rewards == RULES


@pytest.mark.parametrize("name", ["careless-more", "clean-more"])
def test_more_sft_differs_from_its_start_in_its_steps_only(name: str) -> None:
    rows = parse_params(arm(name)).sft
    changed = {"init": "cold-start", "steps": 400, "save_steps": 400}
    assert rows["continued"] == rows["cold-start"].model_copy(update=changed)


def test_every_policy_is_evaluated_in_its_arm() -> None:
    for name, row in videocap.POLICIES.values():
        assert row in parse_params(arm(name)).evaluation.of
    assert {policy for pair in videocap.COMPARED for policy in pair} == set(videocap.POLICIES)


def test_columns_of_replies() -> None:
    asked = samples(4)
    replies = [
        replied(asked[0], "the red bar rises then grows"),
        replied(asked[1], "the red bar rises"),
        replied(
            asked[2],
            "the red bar rises then falls",
            '{"subjects":[{"name":"bar","attributes":["blue"],"actions":["rises"]}]}',
        ),
        replied(asked[3], "the red bar rises then grows", "no JSON"),
    ]
    found = videocap.columns(asked, replies, JUDGE)
    np.testing.assert_allclose(
        found,
        [[1, 1, 1, 1, 1, 1], [0.5, 1, 1, 1, 1, 1], [0.5, 0.5, 0, 2 / 3, 1 / 3, 1], [0] * 6],
    )
    with pytest.raises(ValueError, match="another split"):
        videocap.columns(asked, replies[::-1], JUDGE)


def test_event_f1_is_that_of_the_corpus() -> None:
    rows = np.array([[1.0, 0.0, 0, 0, 0, 1], [0.0, 1.0, 0, 0, 0, 1]])
    assert videocap.corpus_value(rows.mean(axis=0), "event F1") == 0.5
    assert videocap.corpus_value(rows, "event F1").tolist() == [0, 0]
    assert videocap.corpus_value(np.zeros(6), "event F1") == 0
    assert videocap.corpus_value(rows.mean(axis=0), "format") == 1


def test_gain_pairs_clips_and_keeps_seeds_apart() -> None:
    rng = np.random.default_rng(1)
    before = [rng.uniform(size=(240, 6)) * 0.5 for _ in range(3)]
    shift = [0.1, 0.2, 0.3]
    after = [rows + by for rows, by in zip(before, shift, strict=True)]
    found = videocap.gain(after, before, "T-score")
    # Each clip is compared with itself, so an equal shift of every clip has hardly any spread,
    # however much clips differ.
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.2, 0.2, 0.2), abs=0.01)
    assert found["seeds"] == pytest.approx(shift)
    assert found["over_seeds"] == pytest.approx([0.2 - 0.2484, 0.2 + 0.2484], abs=1e-4)
    other = videocap.gain([rng.uniform(size=(240, 6)) for _ in before], before, "event F1")
    assert other["low"] < other["mean"] < other["high"]


def test_one_seed_has_no_interval_over_seeds() -> None:
    assert over_seeds([0.1], 0.95) is None
    assert over_seeds([0.1, 0.1], 0.95) is None, "two that agree to the last digit are no proof that a third does"
