"""Requests to the judge, word for word: a change makes another judge, whose scores are not
comparable with earlier ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.lib.judging.examining import EXAMINING
from stages.lib.judging.prompts import (
    FORMS,
    Form,
    Question,
    ask_complete,
    ask_covers,
    ask_entailed,
    ask_events,
    ask_natural,
    ask_right,
    read_answer,
)
from stages.synthesize import event_prompts, writer_prompts
from stages.tools.suites import examiner
from tests.support.builders import SAMPLES

GOLDEN, SCHEMAS = Path(__file__).parent / "questions.txt", Path(__file__).parent / "schemas.txt"
REPLY = 'the red bar "rises"\nFENCE <|im_end|> 2'


def transcript() -> str:
    questions: list[Question] = [
        ask_covers(SAMPLES["dark_event_infer"], REPLY),
        ask_right(SAMPLES["mix_vid_qa"], REPLY),
        ask_events(REPLY),
        ask_entailed("the red bar rises", REPLY),
        ask_complete(SAMPLES["structured_caption"], REPLY),
        ask_natural(REPLY),
    ]
    parts = [f"[{q.form.name}: {m['role']}]\n{m['content']}\n" for q in questions for m in q.messages]
    return "\n".join(parts)


def test_the_questions_are_those_of_the_golden_file() -> None:
    # If intended: python -c "…; GOLDEN.write_text(transcript())", and a line in the changelog that
    # scores are not comparable.
    assert transcript() == GOLDEN.read_text(encoding="utf-8")


def test_the_schemas_are_those_of_the_golden_file() -> None:
    # Schemas are sent too, with class names as titles: renaming a class, or editing its
    # description, changes the request.
    forms = (*FORMS.values(), *writer_prompts.FORMS, *examiner.FORMS, *EXAMINING, *event_prompts.FORMS)
    sent = "".join(f"[{form.name}]\n{json.dumps(Question(form, '', 0).response_format)}\n" for form in forms)
    assert sent == SCHEMAS.read_text(encoding="utf-8")
    for form in forms:
        told = form.answer.model_json_schema().get("description")
        assert told == (form.answer.model_config.get("json_schema_extra") or {}).get("description"), (
            f"{form.answer}: a docstring is sent"
        )


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_the_schema_is_closed_and_asks_for_every_key(form: Form) -> None:
    schema = Question(form, "", 0).response_format["json_schema"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(schema["properties"])


def test_a_task_that_is_not_marked_is_not_asked_about() -> None:
    with pytest.raises(
        ValueError,
        match="mcqa: a judge has no instruction to mark by 'right'; add a `marking` of that scale to its Task",
    ):
        ask_right(SAMPLES["mcqa"], REPLY)
    with pytest.raises(ValueError, match="mix_vid_qa: a judge has no instruction to mark by 'covers'"):
        ask_covers(SAMPLES["mix_vid_qa"], REPLY)


def test_answers_are_read_strictly() -> None:
    assert read_answer(FORMS["entailed"], '{"reason": "so", "entailed": true}') is not None
    for text in (
        '{"reason": "so", "entailed": 1}',
        '{"reason": "so", "entailed": "true"}',
        '{"entailed": true}',
        "true",
        "",
    ):
        assert read_answer(FORMS["entailed"], text) is None
    assert read_answer(FORMS["complete"], '{"reason": "so", "marks": 5}') is not None
    for marks in ("6", "-1", "2.5", "true", '"3"'):
        assert read_answer(FORMS["natural"], f'{{"reason": "so", "marks": {marks}}}') is None
    assert read_answer(FORMS["events"], '{"events": []}') is not None
    assert read_answer(FORMS["events"], '{"events": [""]}') is None
    assert read_answer(FORMS["events"], '{"events": "it rises"}') is None
