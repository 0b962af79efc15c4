"""Questions of a row: multiple choice, open, conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import reject, short
from stages.lib.annotations.choices import AnswerForm, answer_letter, listed_options, unlettered
from stages.lib.annotations.mapping.columns import ColumnProblem, Entry, holds, value_of
from stages.lib.annotations.mapping.entries import entries_of, plain_text, text_of
from stages.lib.annotations.mapping.schema import Choice, Conversation, Mapping, Open

#: Reason of rejects of questions.
BAD = "bad-question"


@dataclass
class Asked:
    """Questions and captions of a row, and the rejects of others."""

    qa: list[dict[str, Any]] = field(default_factory=list)
    open_qa: list[dict[str, Any]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def asked(mapping: Mapping, entry: Entry, where: str) -> Asked:
    """Read all questions of a row.

    Raises:
        ColumnProblem: a column of the mapping is missing.
    """
    result = Asked()
    for kind, specs in (("qa", mapping.qa), ("open_qa", mapping.open_qa)):
        for spec in specs:
            for place, one in enumerate(entries_of(entry, spec.each, kind)):
                if not holds(one, spec.when):
                    continue
                try:
                    if isinstance(spec, Choice):
                        result.qa.append(_choice(spec, one, mapping.placeholders))
                    else:
                        result.open_qa.append(_open(spec, one, mapping.placeholders))
                except ColumnProblem as error:
                    if error.missing and spec.each is None:
                        raise
                    result.rejects.append(reject(where, BAD, f"{kind}.{place}.{error}"))
                except ValueError as error:
                    result.rejects.append(reject(where, BAD, f"{kind}.{place}: {error}"))
    if mapping.conversation is not None and holds(entry, mapping.conversation.when):
        _converse(mapping.conversation, entry, mapping.placeholders, where, result)
    return result


def _choice(spec: Choice, entry: Entry, placeholders: Sequence[str]) -> dict[str, Any]:
    """Read one multiple-choice question.

    Raises:
        ValueError: it is none.
    """
    question = _without(placeholders, text_of(entry, spec.question))
    if spec.options == "in_question":
        question, options = listed_options(question)
    else:
        options = unlettered(_options(spec.options, entry))
    raw = {
        "question": question,
        "options": options,
        "answer": _letter(text_of(entry, spec.answer), options, spec.answer_form, question),
    }
    if spec.rationale is not None and (rationale := _rationale(entry, spec)) is not None:
        raw["rationale"] = rationale
    return raw


def _rationale(entry: Entry, spec: Choice) -> str | None:
    assert spec.rationale is not None
    if spec.rationale.of is not None and not value_of(entry, spec.rationale.of):
        return None
    return text_of(entry, spec.rationale) or None


def _letter(answer: str, options: Sequence[str], form: AnswerForm, question: str) -> str:
    if len(options) < 2:
        raise ValueError(f"{len(options)} option; need two or more (of {short(question)})")
    try:
        return answer_letter(answer, options, form)
    except ValueError as error:
        raise ValueError(f"answer: {error} (of {short(question)})") from error


def _options(spec: str | tuple[str, ...], entry: Entry) -> tuple[str, ...]:
    if isinstance(spec, tuple):
        found: Any = [value_of(entry, path) for path in spec]
        # A table of questions with different numbers of options leaves the last cells empty.
        while found and found[-1] is None:
            found.pop()
    else:
        found = value_of(entry, spec)
    if isinstance(found, dict):
        found = list(found.values())
    if not isinstance(found, list | tuple) or not all(isinstance(one, str | int | float) for one in found):
        raise ValueError(f"options: need a list of texts (value {short(found)})")
    return tuple(str(one) for one in found)


def _open(spec: Open, entry: Entry, placeholders: Sequence[str]) -> dict[str, Any]:
    """Read one open question.

    Raises:
        ValueError: it is none.
    """
    question, answer = _without(placeholders, text_of(entry, spec.question)), text_of(entry, spec.answer)
    return _asked_openly(question, answer)


def _asked_openly(question: str, answer: str) -> dict[str, Any]:
    if not question or not answer:
        raise ValueError(f"need a question and an answer (question {short(question)}, answer {short(answer)})")
    return {"question": question, "answer": answer}


def _without(placeholders: Sequence[str], text: str) -> str:
    for placeholder in placeholders:
        text = text.replace(placeholder, " ")
    return re.sub(r"[^\S\n]+", " ", text).strip() if placeholders else text


def _converse(spec: Conversation, entry: Entry, placeholders: Sequence[str], where: str, result: Asked) -> None:
    """Read the turns of a conversation, each answer with the question before it."""
    asks: str | None = None
    for place, (role, text) in enumerate(_turns(spec, entry)):
        at = f"{spec.turns}.{place}"
        if role in spec.user:
            if asks is not None:
                result.rejects.append(reject(where, BAD, f"{at}: two turns of {role!r} follow each other"))
            asks = _without(placeholders, text)
        elif role in spec.assistant:
            if not asks:
                detail = f"{at}: {role!r} answers, and nobody has asked (value {short(text)})"
                result.rejects.append(reject(where, BAD, detail))
            else:
                _answered(spec, asks, text, at, where, result)
            asks = None
        elif role not in spec.system:
            known = ", ".join((*spec.user, *spec.assistant, *spec.system))
            result.rejects.append(reject(where, BAD, f"{at}: role {role!r} is none of {known}"))
    if asks is not None:
        result.rejects.append(reject(where, BAD, f"{spec.turns}: the last turn has no answer ({short(asks)})"))


def _answered(spec: Conversation, asks: str, reply: str, at: str, where: str, result: Asked) -> None:
    if re.fullmatch(spec.description, asks) is not None:
        if reply:
            result.captions.append(reply)
        else:
            result.rejects.append(reject(where, "bad-caption", f"{at}: the description is empty"))
        return
    try:
        question, options = listed_options(asks)
    except ValueError:
        # It lists no options, so it is open.
        options = ()
    try:
        if options:
            letter = _letter(reply, options, "stated", question)
            result.qa.append({"question": question, "options": options, "answer": letter})
        else:
            result.open_qa.append(_asked_openly(asks, reply))
    except ValueError as error:
        result.rejects.append(reject(where, BAD, f"{at}: {error}"))


def _turns(spec: Conversation, entry: Entry) -> Iterator[tuple[str, str]]:
    for turn in entries_of(entry, spec.turns, "conversation"):
        yield plain_text(value_of(turn, spec.role), spec.role), _spoken(value_of(turn, spec.text), spec.text)


def _spoken(content: Any, column: str) -> str:
    """The text of a turn; its content may be a list of parts, of which those with a ``text``
    count."""
    if not isinstance(content, list | tuple):
        return plain_text(content, column)
    parts = [part for part in content if isinstance(part, dict) and part.get("type", "text") == "text"]
    return "\n".join(plain_text(part.get("text"), f"{column}.text") for part in parts)
