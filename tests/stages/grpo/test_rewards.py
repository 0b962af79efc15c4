"""Rewards and gauges of a row, from the scores of real judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.domain.core.replies import render_reply
from stages.domain.rl.shaping import LengthReward
from stages.domain.tasks.rewards import Judge, Referee
from stages.domain.tasks.scoring import reward, score_reply
from stages.grpo.rewards import JudgedRewards
from stages.lib.judging.embedder import LexicalEmbedder
from stages.lib.judging.rule import RuleJudge
from stages.params import HeldOutJudgeParams, Params, load_params
from tests.support.builders import SAMPLES
from tests.support.checkout import ROOT
from tests.support.judges.client import endpoint_judge, judge_params
from tests.support.judges.server import JudgeServer

RULE = RuleJudge(full_share=0.8, partial_share=0.4)
DARK, TOLD, CHOICE = (SAMPLES[task] for task in ("dark_event_infer", "caption", "mcqa"))
RIGHT, HALF, WRONG = (
    render_reply("x", text) for text in (DARK.reference, "the red bar moves", "the blue circle falls")
)


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "infra/recipes/tiny.yaml")


def rewarding(
    params: Params, held_out: Judge | None = None, share: float = 1.0, judge: Judge = RULE, **changes: object
) -> JudgedRewards:
    row = params.grpo["general"].model_copy(update=changes)
    chosen = HeldOutJudgeParams(judge=judge_params(), share=share) if held_out is not None else None
    changed = params.model_copy(update={"grpo": {"general": row}, "held_out_judge": chosen})
    return JudgedRewards(
        changed,
        "general",
        [DARK, TOLD, CHOICE],
        Referee(judge, LexicalEmbedder()),
        None if held_out is None else Referee(held_out, LexicalEmbedder()),
    )


def test_the_whole_reward_or_its_parts(params: Params) -> None:
    ids, replies = [DARK.sample_id, TOLD.sample_id], [HALF, render_reply("x", TOLD.reference)]
    whole = rewarding(params)
    scored = whole.score(ids, replies)
    assert whole.weights == {"task": 1.0}
    assert scored.objectives == {"task": scored.total}
    assert scored.total == scored.shares == whole.shares(ids, replies) == [0.5, 1.0]
    assert scored.well_formed == [True, True]
    parts = rewarding(params, aggregation="normalise")
    assert parts.weights == {
        "format": 1.0, "answer": 1.0, "recall": 1.0, "precision": 0.5, "keywords": 0.4, "thinking": 1.0, "caption": 1.0,
    }  # fmt: skip
    found = parts.score(ids, replies)
    assert list(found.objectives) == list(parts.weights)
    assert found.total == scored.total
    assert found.objectives["answer"] == [0.5, None], "a caption has no part of that name"
    assert found.objectives["recall"] == [None, 1.0]
    assert parts.score(ids, [*replies[:1], "no format"]).objectives["format"] == [1.0, 0.0]
    assert found.paid()[0] == dict.fromkeys(parts.weights) | {"format": 1.0, "answer": 0.5}


def test_a_step_asks_its_judge_once(params: Params, server: JudgeServer, tmp_path: Path) -> None:
    judge = endpoint_judge(server, tmp_path)
    scored = rewarding(params, judge=judge, aggregation="normalise").score([DARK.sample_id] * 3, [RIGHT, HALF, WRONG])
    assert scored.total == scored.shares == scored.objectives["answer"] == [1.0, 0.0, 0.0]
    assert scored.well_formed == [True] * 3
    assert "zero_variance_groups" in scored.gauges
    assert (judge.usage["questions"], judge.usage["cache_hits"]) == (3, 0), "of none of it is it asked again"


def test_length_is_paid_beside_the_task(params: Params) -> None:
    rule = LengthReward(weight=0.25, min_words=5, max_words=9, min_share=1.0)
    for aggregation in ("sum", "normalise"):
        paying = rewarding(params, length=rule, aggregation=aggregation)
        assert paying.weights["length"] == 0.25
        scored = paying.score([DARK.sample_id] * 3, [RIGHT, HALF, render_reply("x", "rises")])
        assert scored.objectives["length"] == [1.0, 0.0, 0.0]
        assert list(scored.objectives) == list(paying.weights)


def test_an_alarm_is_said_once_while_it_lasts(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    watched = rewarding(params)
    thoughtless = [render_reply("", DARK.reference)] * 4
    for _ in range(2):
        assert watched.score([DARK.sample_id] * 4, thoughtless).gauges["empty_thinking"] == 1.0
    assert capsys.readouterr().err.count("look at empty_thinking") == 1
    assert watched.control_gauges(0.5, 0.4, None) == {"blank_video": 0.8}
    assert "look at blank_video 0.80" in capsys.readouterr().err
    thoughtful = [render_reply("the red bar", DARK.reference)] * 4
    watched.score([DARK.sample_id] * 4, thoughtful)
    watched.score([DARK.sample_id] * 4, thoughtless)
    said = capsys.readouterr().err
    assert said.count("look at empty_thinking") == 1, "it was gone, and is back"
    assert "blank_video" not in said


def test_the_gap_to_a_judge_held_out(params: Params, server: JudgeServer, tmp_path: Path) -> None:
    # The endpoint takes equal words for right, and a part of the reference for half right.
    ids, replies = [DARK.sample_id] * 3 + [CHOICE.sample_id], [RIGHT, HALF, WRONG, render_reply("x", "B")]
    watched = rewarding(params, endpoint_judge(server, tmp_path))
    assert watched.score(ids, replies).gauges["judge_gap"] == pytest.approx(0.5 / 3)
    assert server.requests == 3, "no judge is needed for a letter"
    none = rewarding(params, endpoint_judge(server, tmp_path / "none"), share=1e-9)
    assert "judge_gap" not in none.score(ids, replies).gauges
    assert server.requests == 3
    some = rewarding(params, endpoint_judge(server, tmp_path / "some"), share=0.5)
    many = [render_reply("x", f"the red bar {'very ' * n}moves") for n in range(40)]
    some.score([DARK.sample_id] * 40, many)
    assert 8 <= server.requests - 3 <= 32, "about half of them"


def test_rewards_are_those_of_evaluation(params: Params) -> None:
    score = score_reply(DARK, HALF, Referee(RULE, LexicalEmbedder()), params.rewards)
    assert rewarding(params).score([DARK.sample_id], [HALF]).total == [reward(score, params.rewards, ())]


def test_written_replies_are_paid_and_in_no_gauge(params: Params) -> None:
    """A teacher's reply says nothing about the policy."""
    ids, replies = [DARK.sample_id] * 3, [RIGHT, WRONG, "no form"]
    rewards = rewarding(params)
    scored = rewards.score(ids, replies, written=[0])
    assert scored.total == [1.0, 0.0, 0.0]
    assert scored.objectives["task"] == scored.total
    assert scored.gauges == rewards.score(ids[1:], replies[1:]).gauges
    assert scored.gauges != rewards.score(ids, replies).gauges
