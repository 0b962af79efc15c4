"""Questions of captioning benchmarks to a judge: each text is quoted inside one fence, and the rule
judge counts words."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.domain.core.records import Verdict
from stages.domain.tasks.rewards import Agreement
from stages.tools.suites.examiner import AskingExaminer, EndpointExaminer, RuleExaminer
from tests.support.judges.attacks import ATTEMPTS
from tests.support.judges.client import endpoint_judge
from tests.support.judges.server import Asked, Fault, JudgeServer

RULE = RuleExaminer(full_share=0.8, partial_share=0.4)


def test_the_rule_judge_counts_content_words() -> None:
    assert RULE.extract_objects("the red bar rises then the blue circle falls") == ("red bar", "blue circle")
    assert RULE.extract_objects("A man sits. A dog sleeps.") == ("A man sits", "A dog sleeps")
    assert RULE.shows("a red bar", "there the red bar stands").score == 1
    assert RULE.shows("a red bar", "a blue bar").score == 0
    assert RULE.agrees("?", "a red bar", "the bar is red") == Agreement(True, 5)
    assert RULE.agrees("?", "a red bar", "the bar is blue") == Agreement(False, 2)
    assert RULE.agrees("?", "of the", "anything") == Agreement(False, 0)


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_no_caption_leaves_its_fence(server: JudgeServer, tmp_path: Path, attempt: str) -> None:
    server.says = {
        "objects": lambda asked: {"objects": [asked.inside["description"]]},
        "shows": lambda asked: {"reason": "", "seen": asked.inside == {"description": attempt, "object": attempt}},
        "answer_from": lambda asked: {"answer": asked.inside["description"]},
        "agrees": _same,
    }
    judge = endpoint_judge(server, tmp_path, kind=EndpointExaminer)
    assert judge.extract_objects(attempt) == (attempt,)
    assert judge.shows(attempt, attempt).score == 1
    assert judge.answer_from("what?", attempt) == attempt.strip()
    assert judge.agrees("what?", "this", attempt) == Agreement(False, 0)
    assert server.wrong == []


def _same(asked: Asked) -> dict[str, object]:
    right = asked.before["reference"] == asked.inside["answer"]
    return {"reason": "", "right": right, "marks": 5 if right else 0}


def test_what_a_judge_cannot_say_is_no_zero(server: JudgeServer, tmp_path: Path) -> None:
    server.always = Fault(content='{"objects": "many"}')
    judge = endpoint_judge(server, tmp_path, kind=EndpointExaminer)

    def asked(examiner: object) -> list[object]:
        assert isinstance(examiner, AskingExaminer)
        return [
            examiner.extract_objects("a"),
            examiner.shows("a", "b"),
            examiner.answer_from("a", "b"),
            examiner.agrees("a", "b", "c"),
        ]

    found = judge.score_many(asked)
    assert all(isinstance(one, Verdict) and one.outcome == "invalid" for one in found)
    assert server.requests == 4, "all of them side by side, each once"
