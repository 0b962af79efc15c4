"""The two kinds of judge in ``params.yaml``, and the messages about an invalid one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from flows.params_file.recipes import smoke_version
from stages.lib.judging.build import judge_of
from stages.lib.judging.endpoint import EndpointJudge
from stages.lib.judging.rule import RuleJudge
from stages.params import Params, ParamsError, load_params, parse_params
from stages.runtime.endpoint.settings import JudgeError
from tests.support.checkout import ROOT
from tests.support.judges.server import KEY
from tests.support.judges.writer import RULE

RECIPE = ROOT / "infra/recipes/tiny.yaml"
OPENAI = {
    "kind": "openai",
    "model": "Qwen2.5-72B-Instruct",
    "revision": "main",
    "temperature": 0.0,
    "max_tokens": 200,
    "seed": 7,
    "max_unavailable": 0.1,
}


def parsed(judge: dict[str, Any]) -> Params:
    return parse_params({**yaml.safe_load(RECIPE.read_text(encoding="utf-8")), "judge": judge})


def test_each_kind_is_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(judge_of(parsed({"kind": "rule", "full_share": 0.8, "partial_share": 0.4}).judge), RuleJudge)
    monkeypatch.delenv("VIDBRIDGE_JUDGE_URL", raising=False)
    with pytest.raises(JudgeError, match="VIDBRIDGE_JUDGE_URL: not set"):
        judge_of(parsed(OPENAI).judge)
    monkeypatch.setenv("VIDBRIDGE_JUDGE_URL", "http://127.0.0.1:8000/v1")
    monkeypatch.setenv("VIDBRIDGE_JUDGE_KEY", KEY)
    judge = judge_of(parsed(OPENAI).judge)
    assert isinstance(judge, EndpointJudge)
    assert judge.name == "Qwen2.5-72B-Instruct@main"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "oracle"}, "params: judge: "),
        ({"model": ""}, "params: judge.model: "),
        ({"max_unavailable": 1.0}, "params: judge.max_unavailable: "),
        ({"url": "http://127.0.0.1"}, "params: judge.url: unknown key"),
        ({"full_share": 0.8}, "params: judge.full_share: unknown key"),
    ],
)
def test_the_field_is_named_as_it_stands_in_the_file(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as raised:
        parsed({**OPENAI, **changes})
    assert str(raised.value).startswith(message)


def test_a_row_may_be_called_like_a_kind() -> None:
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    raw["sft"] = {"rule": {**next(iter(raw["sft"].values())), "steps": 0}}
    with pytest.raises(ParamsError) as raised:
        parse_params(raw)
    assert "params: sft.rule.steps: " in str(raised.value)


def test_only_keys_of_the_file_are_named() -> None:
    """Not the members of a union, nor the marks of Pydantic."""
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    name, row = next(iter(raw["grpo"].items()))
    raw["grpo"] = {name: {**row, "scale_rewards": {"task_decay": 2}}, "Bad Key": row}
    with pytest.raises(ParamsError) as raised:
        parse_params(raw)
    fields = [line.removeprefix("params: ").partition(": ")[0] for line in str(raised.value).splitlines()]
    assert fields == [f"grpo.{name}.scale_rewards", f"grpo.{name}.scale_rewards.task_decay", "grpo.Bad Key"]


PRETRAINED = ("vidbridge-r1", "vidbridge-r1-staged", "videocap-r1")


def elsewhere(source: str = "videos", tasks: Sequence[str] = ("dark_event_infer", "mcqa"), **changes: Any) -> Params:
    """Recipe tiny, cut down to a cold start on some tasks, with videos of a folder."""
    raw = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    raw["ingest"]["source"] = source
    raw["synthesize"]["tasks"] = {task: raw["synthesize"]["tasks"][task] for task in tasks}
    raw["sft"]["cold-start"]["tasks"] = dict.fromkeys(tasks, 1)
    raw["sft"]["cold-start"]["careless_share"] = 0.0
    raw |= {"grpo": {}, "ablation": None, **changes}
    raw["evaluation"]["of"] = ["base", "cold-start"]
    return parse_params(raw)


@pytest.mark.parametrize("task", ["dark_event_infer", "mix_vid_qa", "caption", "structured_caption"])
def test_open_answers_about_real_videos_need_a_judge_that_reads_or_a_word_that_none_is_wanted(task: str) -> None:
    with pytest.raises(ParamsError) as raised:
        elsewhere(tasks=(task,), judge=RULE)
    said = str(raised.value)
    assert said.startswith(
        "params: judge.kind: 'rule' reads the sentences of data/corpus only, and ingest.source is 'videos'"
    )
    for word in (task, "kind: openai", "VIDBRIDGE_JUDGE_URL", "judge.kind: rule_on_real_text"):
        assert word in said
    assert elsewhere(tasks=(task,), judge=OPENAI).judge.kind == "openai"
    accepted = elsewhere(tasks=(task,), judge=RULE | {"kind": "rule_on_real_text"})
    assert isinstance(judge_of(accepted.judge), RuleJudge)


@pytest.mark.parametrize("source", ["data/corpus", "data/corpus/", "./data/corpus"])
def test_the_generated_world_needs_none(source: str) -> None:
    assert elsewhere(source, judge=RULE).judge.kind == "rule"


def test_multiple_choice_needs_none() -> None:
    assert elsewhere(tasks=("mcqa",), judge=RULE).judge.kind == "rule"


def test_a_held_out_judge_must_read_too() -> None:
    with pytest.raises(
        ParamsError, match=r"params: held_out_judge\.judge\.kind: 'rule' reads the sentences of data/corpus only"
    ):
        elsewhere(judge=OPENAI, held_out_judge={"judge": RULE, "share": 0.1})


@pytest.mark.parametrize("name", PRETRAINED)
def test_recipes_of_pretrained_models_name_a_model_for_all_tasks_and_their_small_version_the_rule_judge(
    name: str,
) -> None:
    judge = load_params(RECIPE.parent / f"{name}.yaml").judge
    assert (judge.kind, getattr(judge, "model", None)) == ("openai", "Qwen/Qwen2.5-72B-Instruct")
    small = parse_params(yaml.safe_load(smoke_version(RECIPE.parent.parent.parent, name)))
    assert (small.judge.kind, small.ingest.source) == ("rule", "data/corpus")


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_other_judge_that_a_recipe_names_can_be_used(name: str) -> None:
    raw = yaml.safe_load((RECIPE.parent / f"{name}.yaml").read_text(encoding="utf-8"))
    text = (RECIPE.parent / f"{name}.yaml").read_text(encoding="utf-8")
    (line,) = [line.removeprefix("# judge: ") for line in text.splitlines() if line.startswith("# judge: ")]
    assert parse_params({**raw, "judge": yaml.safe_load(line)}).judge.kind == "rule_on_real_text"
