"""Places in a reply that the gauges by task look at: its answer, and the end of the answer's first
event."""

from __future__ import annotations

import re
from typing import NamedTuple

from stages.domain.tasks.lexicon import facts

OPENING, CLOSING = "<answer>", "</answer>"

#: Ends a sentence; a point only before white space or the end ("2.5" goes on).
_SENTENCE = r"[.!?](?=\s|\Z)|[;。！？；]"
#: Joins an event to a later one.
_LATER = (
    r",?\s+(?:and\s+)?(?:then|next|afterwards?|after\s+that|before|finally|later|subsequently|followed\s+by)(?![\w-])"
)
_END = re.compile(f"{_SENTENCE}|{_LATER}")
#: In sentences of the generated world "and" joins events, too; elsewhere it mostly joins nouns.
_END_IN_GENERATED = re.compile(rf"{_SENTENCE}|{_LATER}|,?\s+and\s")


class AnswerSpan(NamedTuple):
    """Characters of an answer in its reply, without the tags. ``closed``: the closing tag
    follows."""

    start: int
    stop: int
    closed: bool


def answer_span(reply: str) -> AnswerSpan | None:
    """Find the answer of a reply; None without an opening tag. Unlike the format gate, it takes an
    answer that never ends."""
    opening = reply.find(OPENING)
    if opening < 0:
        return None
    start = opening + len(OPENING)
    stop = reply.find(CLOSING, start)
    return AnswerSpan(start, len(reply) if stop < 0 else stop, stop >= 0)


def first_event_end(answer: str) -> int | None:
    """Number of characters up to the end of the first event of an answer: of its last word, in
    front of what ends the sentence or joins a later event. The whole answer is one event where
    nothing does; None for an answer without a word.
    """
    pattern = _END if facts(answer) is None else _END_IN_GENERATED
    for match in pattern.finditer(answer):
        if any(char.isalnum() for char in answer[: match.start()]):
            return len(answer[: match.start()].rstrip())
    return len(answer.rstrip()) if any(char.isalnum() for char in answer) else None
