"""The reward by questions: asked of the reference at a real server, answered from the caption
alone, without those that need no caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.domain.core.records import OpenQuestion, Sample
from stages.domain.core.replies import render_analysis, render_reply
from stages.domain.tasks import caption, task_of
from stages.domain.tasks.scoring import reward
from stages.domain.tasks.task import Context
from stages.lib.evaluation.held_out import evaluation_digest
from stages.lib.judging.batch import score_replies
from stages.lib.judging.rule import RuleJudge
from stages.params import Params, ParamsError, load_params, parse_params
from stages.runtime.endpoint.settings import JudgeError
from tests.support.builders import SAMPLES, clip, referee, rules
from tests.support.checkout import ROOT
from tests.support.judges.client import endpoint_judge
from tests.support.judges.server import Asked, Fault, JudgeServer

RULES = rules(caption_scorer="qa_utility", scoring="paper", keyword_bonus=0, hedge_cost=0)
TOLD, STRUCTURED = SAMPLES["caption"], SAMPLES["structured_caption"]
#: Who moves is in each caption; the sky is blue in any case.
PAIRS = {"what rises ?": "the red bar", "what grows ?": "the red bar", "what colour is the sky ?": "blue"}


def answer(asked: Asked) -> dict[str, Any]:
    """An honest reader of the last question's verb, with one piece of general knowledge."""
    question, told = asked.before["question"], asked.inside["description"]
    if "sky" in question:
        return {"answer": "blue"}
    return {"answer": "the red bar" if question.split()[1] in told.split() else ""}


def reading(server: JudgeServer, pairs: dict[str, str] = PAIRS) -> None:
    written = [{"question": question, "answer": true} for question, true in pairs.items()]
    server.says = {
        "ask_about": lambda asked: {"questions": written},
        "answer_from": answer,
        "agrees": lambda asked: {
            "reason": "", "right": asked.inside["answer"] == asked.before["reference"], "marks": 0
        },
    }  # fmt: skip


def scored(server: JudgeServer, folder: Path, sample: Sample, *captions: str) -> list[Any]:
    thinking = render_analysis(sample.subjects) if sample.subjects else "x"
    replies = [render_reply(thinking, text) for text in captions]
    return score_replies([sample] * len(replies), replies, referee(endpoint_judge(server, folder)), RULES)


def test_the_share_of_questions_that_the_caption_answers(server: JudgeServer, tmp_path: Path) -> None:
    reading(server)
    whole, half, none = scored(server, tmp_path, TOLD, "the red bar rises then grows", "the red bar rises", "it sleeps")
    assert [score.parts["recall"] for score in (whole, half, none)] == [1.0, 0.5, 0.0]
    assert {(score.parts["questions"], score.parts["dropped_questions"]) for score in (whole, half, none)} == {(2, 1)}
    # Recall is paid as event recall is; the counts are not.
    assert [reward(score, RULES, ()) for score in (whole, none)] == [pytest.approx(1.5 / 1.9), 0.0]
    # The questions were asked once, and blind answers once for all captions.
    asked = [each.kind for each in server.asked]
    assert asked.count("ask_about") == 1
    blind = [each for each in server.asked if each.kind == "answer_from" and each.inside["description"] == ""]
    assert len(blind) == len(PAIRS)
    assert all("reference" not in each.before for each in blind), "the examiner never sees the reference"


def test_it_is_the_caption_part_of_structured_captions(server: JudgeServer, tmp_path: Path) -> None:
    reading(server)
    (score,) = scored(server, tmp_path, STRUCTURED, "the red bar grows")
    assert score.parts["caption"] == 0.5
    assert "recall" not in score.parts


def test_questions_of_the_annotation_come_first(server: JudgeServer, tmp_path: Path) -> None:
    reading(server)
    own = TOLD.model_copy(update={"qa_pairs": (OpenQuestion(question="what grows ?", answer="the red bar"),)})
    (score,) = scored(server, tmp_path, own, "the red bar grows")
    assert (score.parts["recall"], score.parts["questions"]) == (1.0, 1)
    assert "ask_about" not in {each.kind for each in server.asked}


def test_nothing_left_to_ask_or_no_answer_is_no_zero(server: JudgeServer, tmp_path: Path) -> None:
    reading(server, {"what colour is the sky ?": "blue"})
    (score,) = scored(server, tmp_path / "a", TOLD, "the red bar rises")
    assert score.value is None
    assert "all 1 questions are answered without a caption" in score.reason
    reading(server, {})
    (score,) = scored(server, tmp_path / "b", TOLD, "the red bar rises")
    assert (score.value, "no question" in score.reason) == (None, True)
    reading(server)
    server.fails = lambda asked: Fault(status=503) if asked.kind == "agrees" else None
    (score,) = scored(server, tmp_path / "c", TOLD, "the red bar rises")
    assert score.value is None
    assert "unavailable" in score.reason


@pytest.mark.parametrize("sample", [TOLD, STRUCTURED], ids=lambda sample: sample.task)
def test_no_more_questions_than_the_task_says(server: JudgeServer, tmp_path: Path, sample: Sample) -> None:
    reading(server, {f"what {verb} ?": "the red bar" for verb in "abcdefghij"})
    scored(server, tmp_path, sample, " then ".join(f"the red bar {verb}" for verb in "abcdefghij"))
    assert 10 < server.requests <= task_of(sample.task).judge_calls(RULES)


def test_captions_take_the_open_questions_of_their_clip() -> None:
    asked = (OpenQuestion(question="who ?", answer="the bar"),)
    context = Context(8, 7, None)  # type: ignore[arg-type]
    settings = caption.Settings(per_clip=1)
    (sample,), _ = caption.make(clip(0, open_questions=asked), settings, context)
    assert sample.qa_pairs == asked
    (plain,), _ = caption.make(clip(0), settings, context)
    assert '"qa_pairs"' not in plain.model_dump_json(exclude_none=True)
    params = load_params(ROOT / "infra/recipes/tiny.yaml")
    assert evaluation_digest(params, [plain]) != evaluation_digest(params, [sample])


def test_a_judge_that_writes_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JudgeError, match=r"rewards.caption_scorer: 'qa_utility' needs a judge"):
        score_replies([TOLD], [render_reply("x", "y")], referee(RuleJudge(0.8, 0.4)), RULES)
    raw = yaml.safe_load((ROOT / "infra/recipes/tiny.yaml").read_text(encoding="utf-8"))
    raw["rewards"]["caption_scorer"] = "qa_utility"
    with pytest.raises(ParamsError, match=r"caption_scorer: 'qa_utility' asks .* judge \(kind rule\) cannot"):
        parse_params(raw)
    reader = {"kind": "openai", "model": "m", "revision": "1", "temperature": 0, "max_tokens": 9, "seed": 1}
    raw["judge"] = {
        "kind": "by_task",
        "default": raw["judge"],
        "tasks": {task: {**reader, "max_unavailable": 0.1} for task in ("caption", "structured_caption")},
    }
    assert isinstance(parse_params(raw), Params)
