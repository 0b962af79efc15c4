"""Parser of ``<think>…</think><answer>…</answer>``, shared by rewards, evaluation and prediction.

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
    """Parse a well-formed reply into its stripped parts; None if the reply fails the format gate.

    Well-formed: exactly one think block, then exactly one answer block that is not empty, and only
    white space around them.
    """
    match = _REPLY.fullmatch(text)
    if match is None or any(text.count(tag) != 1 for tag in _TAGS):
        return None
    reply = Reply(match["thinking"].strip(), match["answer"].strip())
    return reply if reply.answer else None


_OPENED = re.compile(r"(?:<think>\s*(?:</think>\s*)?|</think>\s*)?(?:<answer>\s*)?\Z")
_EMPTY_THINKING = re.compile(r"\A\s*<think>\s*</think>(?=\s*<think>)")


def opened_by(prompt: str) -> str:
    """Tags at the end of a rendered prompt that belong to the reply: ``<think>``, an empty think
    block; mostly none.

    White space behind them is included.
    """
    match = _OPENED.search(prompt)
    return match[0] if match else ""


#: End tokens of common models, for servers that do not strip them.
_END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
)
_THOUGHT = re.compile(r"\s*(?:<think>)?(?P<thinking>.*?)</think>(?P<rest>.*)", re.DOTALL)
_ANSWERED = re.compile(r"[^<]*(?:<(?!/?answer>)[^<]*)*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)


def final_answer(text: str) -> str | None:
    """Extract the answer of a reply, without its reasoning; None if it is ambiguous or empty.

    Evaluation uses this on replies of any model. Training uses :func:`parse_reply`, which is
    stricter; of a reply that it accepts, both read the same answer. Reasoning is everything up to
    ``</think>``, whether the reply or its template opened that block, and any text before an answer
    block that ends the reply. Without an answer block, the whole rest is the answer. Dropped: an
    empty think block in front of another one (templates add it), and literal end tokens at the end.
    Ambiguous: a block that never ends, a block that occurs twice, and text behind an answer block.
    """
    text = text.rstrip()
    while text.endswith(_END_TOKENS):
        text = next(text.removesuffix(token) for token in _END_TOKENS if text.endswith(token)).rstrip()
    text = _EMPTY_THINKING.sub("", text, count=1)
    if (match := _THOUGHT.fullmatch(text)) is not None and "<think>" not in match["thinking"]:
        text = match["rest"]
    if "<think>" in text or "</think>" in text:
        return None
    if (answered := _ANSWERED.fullmatch(text)) is not None:
        text = answered["answer"]
    text = text.strip()
    return None if not text or any(tag in text for tag in _TAGS) else text


def render_reply(thinking: str, answer: str) -> str:
    """Render a reply that :func:`parse_reply` reads back."""
    return f"<think>{thinking}</think><answer>{answer}</answer>"


class Analysis(Record):
    """The structured thinking of VideoCap-R1: ``{"subjects": [{"name", "attributes",
    "actions"}]}``."""

    subjects: tuple[Subject, ...]


def parse_analysis(thinking: str) -> Analysis | None:
    """Parse a structured thinking; None if it is not JSON of that shape (the reply then fails the
    task's format gate)."""
    try:
        return Analysis.model_validate_json(thinking)
    except ValidationError:
        return None


def render_analysis(subjects: tuple[Subject, ...]) -> str:
    """Render compact JSON that :func:`parse_analysis` reads back."""
    return json.dumps({"subjects": [subject.model_dump(mode="json") for subject in subjects]}, separators=(",", ":"))


#: Runs of punctuation and keys in :func:`render_analysis`; a small tokenizer makes each of them one
#: token.
ANALYSIS_SCAFFOLDING: tuple[str, ...] = (
    '{"subjects":[{"name":"',
    '","attributes":["',
    '"],"actions":["',
    '","',
    '"]},{"name":"',
    '"]}]}',
)
