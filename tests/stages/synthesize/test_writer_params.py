"""Valid and invalid settings of a writer in a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from stages.params import ParamsError, WriterParams, parse_params
from tests.support.checkout import ROOT
from tests.support.judges.writer import settings


def recipe(**writer: Any) -> dict[str, Any]:
    raw = yaml.safe_load((ROOT / "infra/recipes/tiny.yaml").read_text(encoding="utf-8"))
    traces = {"tasks": ["caption"], "least": 1.0, "judge": raw["judge"], "rewards": raw["rewards"]}
    raw["synthesize"]["writer"] = {**settings().model_dump(), "traces": traces, **writer}
    return raw


def test_the_reward_of_traces_is_the_one_that_is_trained_on() -> None:
    raw = recipe()
    assert parse_params(raw).synthesize.writer is not None
    raw["judge"] = {**raw["judge"], "full_share": 0.9}
    with pytest.raises(ParamsError, match=r"synthesize\.writer\.traces\.judge: differs from `judge`"):
        parse_params(raw)


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        ({"questions": False, "traces": None}, "nothing is written; set `writer: null`"),
        ({"tries": 0}, "params: synthesize.writer.tries: "),
        ({"url": "x"}, "params: synthesize.writer.url: unknown key"),
        ({"traces": {"tasks": ["caption"]}}, "params: synthesize.writer.traces.judge: missing"),
        (
            {"traces": {"judge": {"kind": "rule", "full_share": 2}}},
            "params: synthesize.writer.traces.judge.full_share: ",
        ),
    ],
)
def test_a_writer_that_cannot_be_is_an_error_at_load(writer: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError) as raised:
        parse_params(recipe(**writer))
    assert message in str(raised.value)


def test_traces_of_a_task_that_is_not_made_are_an_error_at_load() -> None:
    raw = recipe()
    raw["synthesize"]["tasks"].pop("mix_vid_qa")
    with pytest.raises(ParamsError, match=r"writer\.questions: mix_vid_qa is not synthesised"):
        parse_params(raw)


def test_the_writer_that_a_recipe_suggests_can_be_used() -> None:
    lines = (ROOT / "infra/recipes/vidbridge-r1.yaml").read_text(encoding="utf-8").splitlines()
    (start,) = [n for n, line in enumerate(lines) if line.startswith("  # writer: ")]
    suggested = yaml.safe_load("\n".join(line.replace("  # ", "", 1) for line in lines[start : start + 2]))["writer"]
    assert WriterParams.model_validate(suggested).questions
