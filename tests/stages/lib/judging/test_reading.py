"""Answers of real judges: the verdict read from each, or none, as in the golden file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.domain.core.records import Verdict
from stages.lib.judging.examining import EXAMINING
from stages.lib.judging.prompts import FORMS, ask_covers, fenced, read_answer
from stages.synthesize import writer_prompts
from stages.tools.suites import examiner
from stages.tools.suites.examiner import AskingExaminer, EndpointExaminer
from tests.support.builders import SAMPLES
from tests.support.judges.attacks import ATTEMPTS
from tests.support.judges.client import endpoint_judge
from tests.support.judges.server import Fault, JudgeServer


class Transcript(NamedTuple):
    name: str
    form: str
    reply: str
    said: str
    read: dict[str, Any] | None


TRANSCRIPTS = [
    Transcript(**json.loads(line))
    for line in (Path(__file__).parent / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
]
ALL_FORMS = {form.name: form for form in (*FORMS.values(), *EXAMINING, *examiner.FORMS, *writer_prompts.FORMS)}
DARK = SAMPLES["dark_event_infer"]
NO = '{"reason": "another event", "score": 0}'
YES = '{"reason": "covers the reference", "score": 2}'


def test_the_golden_file_has_each_kind_of_question() -> None:
    assert len({one.name for one in TRANSCRIPTS}) == len(TRANSCRIPTS) >= 80
    assert {one.form for one in TRANSCRIPTS} >= {
        *FORMS,
        *(form.name for form in (*EXAMINING, *examiner.FORMS)),
        "write_question",
    } - {"try_question"}


@pytest.mark.parametrize("one", TRANSCRIPTS, ids=lambda one: one.name)
def test_a_judge_is_read_as_the_golden_file_says(one: Transcript) -> None:
    form = ALL_FORMS[one.form]
    asked = fenced(form, {"reference": "the red bar rises"}, {"answer": one.reply}).text
    found = read_answer(form, one.said, asked)
    assert (None if found is None else found.model_dump(mode="json")) == one.read


@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.parametrize(
    "quote",
    [
        lambda attempt: f"<think>The answer is: {attempt}\nThat names no event.</think>\n{NO}",
        lambda attempt: f"The answer is: {attempt}\nThat names no event.\n</think>\n{NO}",
        lambda attempt: f"The answer is: {attempt}\nThat names no event.\n\n{NO}",
        lambda attempt: f"The answer is:\n{attempt}",
        lambda attempt: f"<think>The answer is:\n{attempt}",
        lambda attempt: f"<think>I read it.</think>The answer is:\n```json\n{attempt}\n```",
        lambda attempt: attempt,
        lambda attempt: f"{NO}\n{attempt}",
    ],
    ids=[
        "thinks",
        "thinks behind the template",
        "prose",
        "only quotes",
        "never ends",
        "quotes in a fence",
        "obeys",
        "quotes behind",
    ],
)
def test_a_quoted_attempt_is_never_the_verdict(name: str, quote: Callable[[str], str]) -> None:
    attempt = ATTEMPTS[name]
    found = read_answer(FORMS["covers"], quote(attempt), ask_covers(DARK, attempt).text)
    assert found is None or found.score == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_thinking_judge_that_quotes_has_its_own_verdict(name: str) -> None:
    said = f"<think>The answer is: {json.dumps(ATTEMPTS[name])}\nThat names no event.</think>\n\n{NO}<|im_end|>"
    found = read_answer(FORMS["covers"], said, ask_covers(DARK, ATTEMPTS[name]).text)
    assert found is not None
    assert found.score == 0  # type: ignore[attr-defined]


@given(before=st.text(max_size=40), after=st.text(max_size=40))
def test_any_text_around_a_verdict_is_read_or_not_and_never_another_verdict(before: str, after: str) -> None:
    found = read_answer(FORMS["covers"], before + NO + after, ask_covers(DARK, "x").text)
    assert found is None or found.score == 0  # type: ignore[attr-defined]


def test_a_judge_of_every_kind_may_think_and_fence(server: JudgeServer, tmp_path: Path) -> None:
    said: dict[str, dict[str, Any]] = {
        "objects": {"objects": ["a red bar"]}, "shows": {"reason": "", "seen": True}, "answer_from": {"answer": "red"},
        "agrees": {"reason": "", "right": True, "marks": 4.0},
    }  # fmt: skip

    def as_they_are(answer: dict[str, Any]) -> Fault:
        return Fault(
            content="<think>\nI"
            f" compare.\n</think>\n\n```json\n{json.dumps({**answer, 'confidence': 1})}\n```<|im_end|>"
        )

    def asked(kind: str, ask: Callable[[AskingExaminer], object]) -> object:
        server.always = as_they_are(said[kind])
        return endpoint_judge(server, tmp_path, kind=EndpointExaminer).score_many(ask)  # type: ignore[arg-type]

    assert asked("objects", lambda one: one.extract_objects("a")) == ("a red bar",)
    shown = asked("shows", lambda one: one.shows("a", "b"))
    assert isinstance(shown, Verdict)
    assert shown.score == 1.0
    assert asked("answer_from", lambda one: one.answer_from("a", "b")) == "red"
    assert asked("agrees", lambda one: one.agrees("a", "b", "c")) == (True, 4)


@pytest.mark.parametrize(
    "piece", ["{", '{"a":', "[", "```", "`", "<think>", "</think>", " ", '{"score": 1', "<|a|>", "<answer>", "\\"]
)
def test_hostile_repetition_ends(piece: str) -> None:
    """Asserts no time: a step that is cubic in the text's length would not end before the suite's
    own limit."""
    text = piece * (20000 // len(piece))
    assert read_answer(FORMS["covers"], text + "x", ask_covers(DARK, text).text) is None
