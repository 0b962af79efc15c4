"""The two kinds of judge in ``params.yaml``, and what is said of one that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import KEY

from stages.judging.choose import judge_of
from stages.judging.endpoint import EndpointJudge
from stages.judging.place import JudgeError
from stages.judging.rule import RuleJudge
from stages.params import Params, ParamsError, parse_params

RECIPE = Path(__file__).parent.parent.parent / "infra/recipes/tiny.yaml"
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


def test_the_judge_that_a_recipe_suggests_can_be_used() -> None:
    text = (RECIPE.parent / "vidbridge-r1.yaml").read_text(encoding="utf-8")
    (line,) = [line.removeprefix("# judge: ") for line in text.splitlines() if line.startswith("# judge: ")]
    assert parsed(yaml.safe_load(line)).judge.kind == "openai"
