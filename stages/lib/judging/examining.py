"""Questions about a caption: asked of its reference, answered from the caption alone, and the
answers compared."""

from __future__ import annotations

from pydantic import Field

from stages.domain.core.records import Record
from stages.domain.tasks.qa_utility import MOST_QUESTIONS
from stages.lib.judging.prompts import AS_JSON, FENCED, MOST_MARKS, Form, Question, fenced


# Not the record of rows: its description would be sent, and editing it would change the request.
class Written(Record):
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Asked(Record):
    questions: tuple[Written, ...] = Field(max_length=MOST_QUESTIONS)


class ShortAnswer(Record):
    answer: str


class Matched(Record):
    reason: str
    right: bool
    marks: int = Field(ge=0, le=MOST_MARKS)


_ASK = Form(
    "ask_about",
    f"You write questions for a test of descriptions of a video: at most {MOST_QUESTIONS}, on what `reference`, which"
    " is a true description, tells: who or what is seen, what each does, in which order, where, and what changes. Each"
    " question asks for one thing, is understood without the description, can be answered from it in a phrase, and"
    " cannot be answered by guessing what is usual; no question gives the answer to another. Do not ask whether"
    " something is so: ask who, what, where, how many or in which order."
    + FENCED
    + AS_JSON
    + '{"questions": a list of {"question": a string, "answer": a string}}.',
    Asked,
    placeholder=Asked(questions=()),
)
_ANSWER = Form(
    "answer_from",
    "You answer a question about a video that you cannot see, from a description of it and from nothing else. Answer"
    " in a phrase or one short sentence; where the description does not tell, leave the answer empty."
    + FENCED
    + AS_JSON
    + '{"answer": a string}.',
    ShortAnswer,
    placeholder=ShortAnswer(answer=""),
)
_AGREES = Form(
    "agrees",
    "You mark answers to questions about a video. `reference` is the true answer to `question`."
    + FENCED
    + " The answer is right when it means what the reference means, in whatever words. Give marks too:"
    + f" {MOST_MARKS} when it says the same, fewer the less it agrees, 0 when it says something else or nothing."
    + AS_JSON
    + f'{{"reason": one short sentence, "right": true or false, "marks": 0 to {MOST_MARKS}}}.',
    Matched,
    placeholder=Matched(reason="", right=False, marks=0),
)
#: All forms of these questions.
EXAMINING: tuple[Form, ...] = (_ANSWER, _AGREES, _ASK)


def ask_about(reference: str) -> Question:
    return fenced(_ASK, {}, {"reference": reference})


def ask_answer(question: str, caption: str) -> Question:
    return fenced(_ANSWER, {"question": question}, {"description": caption})


def ask_agrees(question: str, reference: str, answer: str) -> Question:
    return fenced(_AGREES, {"question": question, "reference": reference}, {"answer": answer})
