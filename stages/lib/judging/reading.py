"""From what a model wrote to the answer in it: judges as they are, and never a verdict that was only quoted.

Read is one JSON object with the keys that were asked for, in whatever a model puts around it: a code fence, thinking that is closed
before it, tokens that end a turn, a list of one, an object of one key, ``2.0`` for 2, further keys. Ambiguous, and so not read: two
answers, one in the middle of prose, one in thinking that never ends, a key said twice, and whatever the judged text spells itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, TypeGuard

Object = dict[str, Any]

#: Where thinking begins and ends, in the ways of the models that are served today.
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
#: Tokens that end a turn where an endpoint passes them on: <|im_end|>, </s>, <eos>, <end_of_turn>, [EOS], <｜end▁of▁sentence｜>.
_ENDS = re.compile(r"(?:\s|\ufeff|<\|[\w ]{1,30}\|>|</s>|<eos>|<end_of_turn>|\[EOS\]|<｜[\w▁ ]{1,40}｜>)+\Z")
#: What opens a block of code, or a pair of tags, around all that is said.
_OPENED = re.compile(
    r"(?P<fence>`+|~{3,})[ \t]*\w*\s|(?P<code>`+)|<(?P<tag>answer|verdict|output|result|response|json)>", re.IGNORECASE
)
#: What may stand before an object on its line, and behind it, where prose comes first.
_OPENS, _CLOSES = re.compile(r"(?:\A|\n|`)[ \t]*(?:json)?[ \t]*\Z", re.IGNORECASE), re.compile(r"\s*(?:`+|~{3,}|</\w+>)?\s*\Z")
_MOST_WRAPPERS = 3


def find_answer(text: str, keys: Collection[str], asked: str | None) -> Object | None:
    """The JSON object that a model answers with; None where it cannot be told.

    Args:
        keys: an object with one of them is an answer, well-formed or not.
        asked: what the model was given, to tell its own words from those that it quotes. Without it an answer behind prose is read
            from a line, or a fence, of its own only.
    """
    text = _ENDS.sub("", text.lstrip("\ufeff \t\r\n"))
    quotable = [] if asked is None else list(_spelt_in(asked))
    found = _alone(text)
    if found is None and (said := _after_thinking(text)) is not None:
        found = _alone(said)
        if found is None and not any(_answers(one, keys) for one in quotable):
            found = _behind_prose(said, keys, own_line=asked is None)
    answer = _unwrapped(found, keys)
    return None if answer in quotable else answer


def _after_thinking(text: str) -> str | None:
    """What stands behind a model's thinking; all of it where it shows none, None where the thinking does not end.

    Thinking may quote its own tags. It begins where the text does, in the text or (one end more) in what the template put before it.
    """
    begins, ends = list(_THINKS.finditer(text)), list(_THOUGHT.finditer(text))
    if not begins and not ends:
        return text
    missing = 0 if begins and begins[0].start() == 0 else 1
    return text[ends[-1].end() :].strip() if len(ends) >= len(begins) + missing else None


def _alone(text: str) -> Any | None:
    """The JSON that all of the text is, fence and tags apart; None where it is something else."""
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
    """The one answer in a text that ends with it."""
    answers = [(start, end, found) for start, end, found in _objects(text) if _answers(found, keys)]
    if len(answers) != 1:
        return None
    start, end, found = answers[0]
    if not _CLOSES.match(text, end) or (own_line and not _OPENS.search(text[:start])):
        return None
    return found


def _unwrapped(found: Any, keys: Collection[str]) -> Object | None:
    """The object in a list of one, or under the only key of another object; ``found`` itself where it is the answer already."""
    for _ in range(_MOST_WRAPPERS):
        if _answers(found, keys):
            return found
        if not isinstance(found, dict | list) or len(found) != 1:
            return None
        (found,) = found.values() if isinstance(found, dict) else found
    return None


def _answers(found: Any, keys: Collection[str]) -> TypeGuard[Object]:
    return isinstance(found, dict) and any(key in found for key in keys)


def _spelt_in(asked: str) -> Iterator[Object]:
    """Every JSON object that a text in the question spells, which a model may repeat."""
    for line in asked.splitlines():
        _, colon, quoted = line.partition(": ")
        try:
            told = _DECODER.decode(quoted) if colon else None
        except ValueError:
            continue  # of the fence, or another line that quotes nothing
        yield from _inside(told)


def _inside(told: Any) -> Iterator[Object]:
    """The objects in a piece of JSON, those that its texts spell too."""
    if isinstance(told, str):
        for _, _, found in _objects(told):
            yield from _inside(found)
    elif isinstance(told, dict | list):
        if isinstance(told, dict):
            yield told
        for part in told.values() if isinstance(told, dict) else told:
            yield from _inside(part)


def _objects(text: str) -> Iterator[tuple[int, int, Object]]:
    """Every JSON object in a text that lies in no other, with its place."""
    start = text.find("{")
    while start >= 0:
        try:
            found, end = _DECODER.raw_decode(text, start)
            yield start, end, found
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)


def _each_key_once(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# Line breaks inside strings are common, and mean one thing.
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_each_key_once, parse_constant=_no_number)
