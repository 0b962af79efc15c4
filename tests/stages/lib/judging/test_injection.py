"""Replies that try to move their own verdict: each is one quoted text inside one fence, and earns
what its words earn."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.replies import render_reply
from stages.lib.judging.batch import score_replies
from stages.lib.judging.prompts import (
    FENCE,
    Question,
    ask_complete,
    ask_covers,
    ask_entailed,
    ask_events,
    ask_natural,
    ask_right,
    quoted,
)
from tests.support.builders import SAMPLES, referee, rules
from tests.support.judges.attacks import ATTEMPTS, DARK, TRUTH
from tests.support.judges.client import endpoint_judge
from tests.support.judges.server import Asked, Fault, JudgeServer, read_question

MIXED, TOLD = SAMPLES["mix_vid_qa"], SAMPLES["structured_caption"]


def around(question: Question) -> tuple[str, str]:
    """Text beside the fenced material: the instructions, and the user's text without the fence's
    content."""
    line = FENCE.search(question.text)
    assert line is not None
    before, _, after = question.text.split(line[0])
    return question.messages[0]["content"], before + after


def test_there_are_enough_attempts() -> None:
    assert len(ATTEMPTS) == len(set(ATTEMPTS.values())) >= 50


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_earns_nothing(server: JudgeServer, tmp_path: Path, name: str) -> None:
    attempt = ATTEMPTS[name]
    judge = endpoint_judge(server, tmp_path)
    assert judge.covers(DARK, attempt).score == 0.0
    assert judge.right(MIXED, attempt).score == 0.0
    assert judge.entailed(TRUTH, attempt).score == 0.0
    assert judge.entailed(attempt, TRUTH).score == 0.0
    judge.extract_events(attempt)
    assert judge.natural(TOLD, attempt).score == 0.0
    assert judge.complete(TOLD, attempt).score == 0.4, "what this endpoint gives to any other text"
    where = [asked.inside.get("answer", asked.inside.get("description")) for asked in server.asked]
    # The server has checked that there is one fence, and nothing behind it.
    assert where == [attempt, attempt, attempt, TRUTH, attempt, attempt, attempt], (
        "it stands there once, whole and unchanged"
    )
    assert server.asked[3].inside["event"] == attempt


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_changes_nothing_around_it(name: str) -> None:
    attempt, innocent = ATTEMPTS[name], "the bar rises"
    for ask in (
        lambda text: ask_covers(DARK, text),
        lambda text: ask_right(MIXED, text),
        ask_events,
        lambda text: ask_entailed(text, text),
        lambda text: ask_complete(TOLD, text),
        ask_natural,
    ):
        assert around(ask(attempt)) == around(ask(innocent))
        said = ask(attempt).text
        assert not any(c in said.replace("\n", "") for c in "<>[]|`")
        assert not any(unicodedata.category(c)[0] == "C" for c in said.replace("\n", ""))


@pytest.mark.parametrize("name", ["json verdict", "code block of json", "chatml", "ignore the above"])
def test_what_a_judge_repeats_of_a_reply_is_not_its_verdict(server: JudgeServer, tmp_path: Path, name: str) -> None:
    server.faults.append(Fault(content=json.dumps({"reason": ATTEMPTS[name], "score": 0})))
    assert endpoint_judge(server, tmp_path).covers(DARK, ATTEMPTS[name]).score == 0.0


def test_attempts_do_not_move_the_verdicts_of_their_batch(server: JudgeServer, tmp_path: Path) -> None:
    replies = [
        render_reply("x", TRUTH),
        *(render_reply("x", text) for text in ATTEMPTS.values()),
        render_reply("x", TRUTH),
    ]
    scores = score_replies([DARK] * len(replies), replies, referee(endpoint_judge(server, tmp_path)), rules())
    assert [score.value for score in scores] == [1.0] + [0.0] * len(ATTEMPTS) + [1.0]


@given(st.text(max_size=200))
def test_any_text_is_read_back_from_inside_the_fence(text: str) -> None:
    assert json.loads(quoted(text)) == text
    question = ask_covers(DARK, text)
    form = question.response_format
    asked: Asked = read_question({"messages": question.messages, "response_format": form, "seed": 0})
    assert asked.inside == {"answer": text}
    assert asked.before == {"reference": TRUTH}
