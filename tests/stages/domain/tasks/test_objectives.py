"""Parts of a reward and their weights, and the thinking that the format gate requires."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.domain.core.records import Score
from stages.domain.core.replies import render_reply
from stages.domain.tasks import TASK_NAMES
from stages.domain.tasks.rewards import own_words
from stages.domain.tasks.scoring import objective_weights, objectives, reward, score_reply
from stages.params import load_params
from tests.support.builders import REFEREE, SAMPLES, rules, truth
from tests.support.checkout import ROOT


@pytest.mark.parametrize("task", TASK_NAMES)
def test_objectives_are_the_parts_of_a_reward(task: str) -> None:
    sample = SAMPLES[task]
    weights = objective_weights([sample.task], rules(), ())
    right = objectives(score_reply(sample, truth(sample), REFEREE, rules()))
    assert right.keys() == weights.keys()
    assert [name for name in weights if not right[name] > 0] == []
    refused = objectives(score_reply(sample, "no format", REFEREE, rules()))
    assert refused == dict.fromkeys(weights, 0.0)
    unjudged = score_reply(sample, truth(sample), REFEREE, rules()).model_copy(update={"value": None})
    assert objectives(unjudged) == {}


def test_objectives_of_a_mixture_and_of_stuffed_keywords() -> None:
    assert objective_weights(TASK_NAMES, rules(), ()) == {
        "format": 1.0, "answer": 1.0, "recall": 1.0, "precision": 0.5, "keywords": 0.4, "thinking": 1.0, "caption": 1.0,
    }  # fmt: skip
    assert "precision" not in objective_weights(["caption"], rules(precision_weight=0.0), ())
    sample = SAMPLES["caption"]
    stuffed = render_reply("x", "first the red bar rises then the red bar grows finally")
    for scoring, paid in (("hardened", 0.2), ("paper", 0.4)):
        which = rules(scoring=scoring)
        assert objectives(score_reply(sample, stuffed, REFEREE, which))["keywords"] == pytest.approx(paid)


def test_a_part_that_is_left_out_is_not_paid_and_the_others_keep_their_weight() -> None:
    right = Score(
        sample_id="s", task="structured_caption", reply="x", format_ok=True, value=0.75,
        parts={"thinking": 0.5, "caption": 1.0, "native": 1.5},
    )  # fmt: skip
    assert reward(right, rules(), ()) == 0.75
    assert reward(right, rules(), ("thinking",)) == 0.5
    assert reward(right, rules(), ("caption",)) == 0.25
    assert reward(right, rules(scale="native"), ("caption",)) == 0.5
    broken = right.model_copy(update={"format_ok": False, "value": 0.0, "parts": {"native": 0.0}})
    assert reward(broken, rules(), ("caption",)) == 0.0
    assert set(objective_weights(["structured_caption"], rules(), ("thinking",))) == {"format", "caption"}


QUESTION = "What does the man do in the dark part of the video?"


THOUGHT = "He lifts the lid and pours water"


@pytest.mark.parametrize(
    ("thinking", "count"),
    [
        ("", 0),
        (" \n", 0),
        (QUESTION, 0),
        ("the man, the man in the dark part", 0),
        ("so so so so so", 1),
        (THOUGHT, 6),
        ("他打开盖子", 5),
        ('{"subjects":[]}', 0),
        ('{"subjects":[{"name":"man","attributes":["tall"],"actions":["lifts the lid"]}]}', 3),
    ],
)
def test_words_of_its_own(thinking: str, count: int) -> None:
    assert own_words(thinking, QUESTION) == count


@pytest.mark.parametrize("task", TASK_NAMES)
def test_empty_thinking_closes_the_gate_where_thinking_is_asked_for(task: str) -> None:
    sample, asking = SAMPLES[task], rules(min_thinking_words=4)
    assert sample.trace is not None
    empty = '{"subjects":[]}' if task == "structured_caption" else ""
    for thinking in (empty, f" {empty}\n", *([] if empty else [sample.question, "so so so so so so"])):
        reply = render_reply(thinking, sample.trace.answer)
        refused = score_reply(sample, reply, REFEREE, asking)
        assert (refused.format_ok, refused.value) == (False, 0.0)
        assert refused.reason == "the thinking has fewer than 4 words that are not the question's"
        assert objectives(refused)["format"] == 0.0
        for lenient in (rules(), rules(min_thinking_words=4, scoring="paper")):
            assert score_reply(sample, reply, REFEREE, lenient).format_ok
    assert score_reply(sample, truth(sample), REFEREE, asking).value == 1.0


def test_no_more_thinking_is_asked_for_than_the_truth_has() -> None:
    sample = SAMPLES["mcqa"]
    assert sample.trace is not None
    brief = sample.model_copy(
        update={"trace": sample.trace.model_copy(update={"thinking": "it grows"}), "reference": "B"}
    )
    asking = rules(min_thinking_words=4)
    assert score_reply(brief, render_reply("it grows", "B"), REFEREE, asking).value == 1.0
    assert score_reply(brief, render_reply("it", "B"), REFEREE, asking).value == 0.0
    unknown = brief.model_copy(update={"trace": None})
    assert score_reply(unknown, render_reply("it grows", "B"), REFEREE, asking).value == 0.0


@pytest.mark.parametrize("recipe", sorted((ROOT / "infra/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_pretrained_models_ask_for_thinking(recipe: Path) -> None:
    params = load_params(recipe)
    assert (params.rewards.min_thinking_words > 0) == (params.model.kind != "tiny")
