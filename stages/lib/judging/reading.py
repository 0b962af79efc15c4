"""Extraction of a judge's JSON answer from a model's text; a verdict that the model only quotes is
never taken.

An answer is one JSON object with the requested keys. Tolerated around it: a code fence, thinking
that is closed before it, end-of-turn tokens, a list of one, an object of one key; and inside it:
``2.0`` for 2, further keys. Ambiguous, and so rejected: two answers, an answer in the middle of
prose or in thinking that never ends, a duplicate key, and every object that the judged text itself
spells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, TypeGuard

Object = dict[str, Any]

#: Tags that begin and end thinking, of the models that are served today.
_THINKS = re.compile(
    r"<(?:\w+:)?(?:think|thinking|thought|reasoning|reflection)>|\[THINK\]|◁think▷|<\|begin_of_thought\|>"
    r"|<\|channel\|>(?:analysis|commentary)",
    re.IGNORECASE,
)
_THOUGHT = re.compile(
    r"</(?:\w+:)?(?:think|thinking|thought|reasoning|reflection)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
    r"|<\|channel\|>final(?:\s*<\|constrain\|>\s*\w*)?<\|message\|>",
    re.IGNORECASE,
)
#: Tokens that end a turn, if an endpoint does not strip them: <|im_end|>, </s>, <eos>,
#: <end_of_turn>, [EOS], <｜end▁of▁sentence｜>.
_ENDS = re.compile(r"(?:\s|\ufeff|<\|[\w ]{1,30}\|>|</s>|<eos>|<end_of_turn>|\[EOS\]|<｜[\w▁ ]{1,40}｜>)+\Z")
#: Opening of a code block, or of a pair of tags, around the whole text.
_OPENED = re.compile(
    r"(?P<fence>`+|~{3,})[ \t]*\w*\s|(?P<code>`+)|<(?P<tag>answer|verdict|output|result|response|json)>", re.IGNORECASE
)
#: Text allowed on the line of an object, before and behind it, if prose comes first.
_OPENS, _CLOSES = (
    re.compile(r"(?:\A|\n|`)[ \t]*(?:json)?[ \t]*\Z", re.IGNORECASE),
    re.compile(r"\s*(?:`+|~{3,}|</\w+>)?\s*\Z"),
)
_MOST_WRAPPERS = 3


def find_answer(text: str, keys: Collection[str], question: str | None) -> Object | None:
    """Find the JSON object that a model answers with; None if it is ambiguous or missing.

    Args:
        keys: an object with one of them is an answer, well-formed or not.
        question: the question's text, to distinguish the model's own words from quotes of it.
            Without it, an answer behind prose must stand on a line, or in a fence, of its own.
    """
    text = _ENDS.sub("", text.lstrip("\ufeff \t\r\n"))
    quotable = [] if question is None else list(_spelt_in(question))
    value = _alone(text)
    if value is None and (visible := _after_thinking(text)) is not None:
        value = _alone(visible)
        if value is None and not any(_answers(item, keys) for item in quotable):
            value = _behind_prose(visible, keys, own_line=question is None)
    answer = _unwrapped(value, keys)
    return None if answer in quotable else answer


def _after_thinking(text: str) -> str | None:
    """Return the text behind a model's thinking; all of it if there is none, None if the thinking
    does not end.

    Thinking may quote its own tags. It begins at the start of the text, or in the template's part
    before it (then one end tag more).
    """
    begins, ends = list(_THINKS.finditer(text)), list(_THOUGHT.finditer(text))
    if not begins and not ends:
        return text
    missing = 0 if begins and begins[0].start() == 0 else 1
    return text[ends[-1].end() :].strip() if len(ends) >= len(begins) + missing else None


def _alone(text: str) -> Any | None:
    """Parse the whole text as JSON, apart from fence and tags; None if it is not JSON."""
    for _ in range(_MOST_WRAPPERS):
        try:
            return _DECODER.decode(text)
        except (ValueError, RecursionError):
            opened = _OPENED.match(text)
            if opened is None:
                return None
            closed = opened["fence"] or opened["code"] or f"</{opened['tag']}>"
            if not text[opened.end() :].endswith(closed):
                return None
            text = _ENDS.sub("", text[opened.end() : -len(closed)].strip())
    return None


def _behind_prose(text: str, keys: Collection[str], own_line: bool) -> Object | None:
    """Find the only answer in a text that ends with it."""
    answers = [(start, end, item) for start, end, item in _objects(text) if _answers(item, keys)]
    if len(answers) != 1:
        return None
    start, end, answer = answers[0]
    if not _CLOSES.match(text, end) or (own_line and not _OPENS.search(text[:start])):
        return None
    return answer


def _unwrapped(value: Any, keys: Collection[str]) -> Object | None:
    """Take the object out of a list of one, or from the only key of another object; ``value``
    itself if it is the answer already."""
    for _ in range(_MOST_WRAPPERS):
        if _answers(value, keys):
            return value
        if not isinstance(value, dict | list) or len(value) != 1:
            return None
        (value,) = value.values() if isinstance(value, dict) else value
    return None


def _answers(value: Any, keys: Collection[str]) -> TypeGuard[Object]:
    return isinstance(value, dict) and any(key in value for key in keys)


def _spelt_in(question: str) -> Iterator[Object]:
    """Iterate over every JSON object that a text in the question spells, which a model may
    repeat."""
    for line in question.splitlines():
        _, colon, quoted = line.partition(": ")
        try:
            value = _DECODER.decode(quoted) if colon else None
        except ValueError:
            continue  # a fence, or another line without a quoted text
        yield from _inside(value)


def _inside(value: Any) -> Iterator[Object]:
    """Iterate over the objects in a JSON value, including those that its texts spell."""
    if isinstance(value, str):
        for _, _, item in _objects(value):
            yield from _inside(item)
    elif isinstance(value, dict | list):
        if isinstance(value, dict):
            yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _inside(part)


def _objects(text: str) -> Iterator[tuple[int, int, Object]]:
    """Iterate over the outermost JSON objects in a text, each with its start and end."""
    start = text.find("{")
    while start >= 0:
        try:
            item, end = _DECODER.raw_decode(text, start)
            yield start, end, item
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def _each_key_once(pairs: list[tuple[str, Any]]) -> Object:
    item = dict(pairs)
    if len(item) < len(pairs):
        raise ValueError("a key occurs twice")
    return item


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# Not strict: line breaks inside strings are common and unambiguous.
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_each_key_once, parse_constant=_no_number)
