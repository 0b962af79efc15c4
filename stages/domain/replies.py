"""The one parser of ``<think>…</think><answer>…</answer>`` that rewards, evaluation and prediction share.

Example record: ``<think>the red bar rises then grows</think><answer>the red bar rises</answer>``
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from pydantic import ValidationError

from stages.domain.records import Record, Subject

_REPLY = re.compile(r"\s*<think>(?P<thinking>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class Reply(NamedTuple):
    thinking: str
    answer: str


def parse_reply(text: str) -> Reply | None:
    """The parts of a well-formed reply, stripped; None when the format gate closes.

    Well-formed: exactly one think block, then exactly one answer block, nothing but white space around them, an answer
    that is not empty.
    """
    match = _REPLY.fullmatch(text)
    if match is None or any(text.count(tag) != 1 for tag in _TAGS):
        return None
    reply = Reply(match["thinking"].strip(), match["answer"].strip())
    return reply if reply.answer else None


_THOUGHT = re.compile(r"\s*<think>.*?</think>(?P<rest>.*)", re.DOTALL)


def final_answer(text: str) -> str | None:
    """What a reply answers once its reasoning is taken away; None when that cannot be told, or nothing is left.

    Read are the reply that :func:`parse_reply` knows, a think block with the bare answer behind it, and a text without any tag.
    A block that never ends, or any other use of the tags, cannot be told.
    """
    reply = parse_reply(text)
    if reply is not None:
        return reply.answer
    match = _THOUGHT.fullmatch(text)
    rest = (match["rest"] if match else text).strip()
    return None if not rest or any(tag in rest for tag in _TAGS) else rest


def render_reply(thinking: str, answer: str) -> str:
    """The text that :func:`parse_reply` reads back."""
    return f"<think>{thinking}</think><answer>{answer}</answer>"


class Analysis(Record):
    """The structured thinking of VideoCap-R1: ``{"subjects": [{"name", "attributes", "actions"}]}``."""

    subjects: tuple[Subject, ...]


def parse_analysis(thinking: str) -> Analysis | None:
    """The structured thinking; None when it is not JSON of that shape (which closes the format gate of the task)."""
    try:
        return Analysis.model_validate_json(thinking)
    except ValidationError:
        return None


def render_analysis(subjects: tuple[Subject, ...]) -> str:
    """Compact JSON that :func:`parse_analysis` reads back."""
    return json.dumps({"subjects": [subject.model_dump(mode="json") for subject in subjects]}, separators=(",", ":"))


#: Runs of punctuation and keys in :func:`render_analysis` that a small tokenizer had better see as one token each.
ANALYSIS_SCAFFOLDING: tuple[str, ...] = (
    '{"subjects":[{"name":"',
    '","attributes":["',
    '"],"actions":["',
    '","',
    '"]},{"name":"',
    '"]}]}',
)


def choice_letter(answer: str, options: int) -> str | None:
    """The letter that an answer chooses: ``B``, ``(b)``, ``B.``, ``B: it grows``; None when there is none, or more than one.

    A letter counts only as a word of its own at the start of the answer, so "A" is not found in "Apple" and no letter is
    taken from the middle of a sentence.
    """
    letters = [chr(ord("A") + i) for i in range(options)]
    match = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?(?:[.:)]?\s*|[.:)]\s+.+)", answer.strip(), re.DOTALL)
    letter = match[1].upper() if match else None
    return letter if letter in letters else None
