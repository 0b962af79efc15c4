"""The one parser of ``<think>…</think><answer>…</answer>`` that rewards, evaluation and prediction share.

Example record: ``<think>the red bar rises then grows</think><answer>the red bar rises</answer>``
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from pydantic import ValidationError

from stages.domain.core.records import Record, Subject

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


_OPENED = re.compile(r"(?:<think>\s*(?:</think>\s*)?|</think>\s*)?(?:<answer>\s*)?\Z")
_NOTHING_THOUGHT = re.compile(r"\A\s*<think>\s*</think>(?=\s*<think>)")


def opened_by(prompt: str) -> str:
    """The tags that a rendered prompt ends with, which belong to the reply: ``<think>``, an empty think block; mostly none.

    They come with the white space behind them.
    """
    found = _OPENED.search(prompt)
    return found[0] if found else ""


#: End tokens of common models, where whoever served the model did not take them away.
_END_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<|end_of_text|>", "</s>", "<eos>", "<end_of_turn>", "<｜end▁of▁sentence｜>"
)  # fmt: skip
_THOUGHT = re.compile(r"\s*(?:<think>)?(?P<thinking>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANSWERED = re.compile(r"[^<]*(?:<(?!/?answer>)[^<]*)*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)


def final_answer(text: str) -> str | None:
    """What a reply answers once its reasoning is taken away; None when that cannot be told, or nothing is left.

    Evaluation asks this, of any model; training asks :func:`parse_reply`, which is stricter: of what that accepts, this reads the same
    answer. The reasoning is all up to ``</think>``, whether the reply opens that block or its template did, and what stands before an
    answer block that ends the reply. Without a block, the whole text is the answer. An empty block in front of another, which a template
    puts there, and a literal end token at the end are taken away. A block that never ends, one that stands there twice, and text behind
    an answer block cannot be told.
    """
    text = text.rstrip()
    while text.endswith(_END_TOKENS):
        text = next(text.removesuffix(token) for token in _END_TOKENS if text.endswith(token)).rstrip()
    text = _NOTHING_THOUGHT.sub("", text, count=1)
    if (match := _THOUGHT.fullmatch(text)) is not None and "<think>" not in match["thinking"]:
        text = match["rest"]
    if "<think>" in text or "</think>" in text:
        return None
    if (answered := _ANSWERED.fullmatch(text)) is not None:
        text = answered["answer"]
    text = text.strip()
    return None if not text or any(tag in text for tag in _TAGS) else text


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
