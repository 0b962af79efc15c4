"""Vocabulary of the generated world, shared by the corpus that writes it and the rule judge that
reads it."""

from __future__ import annotations

import re
from typing import NamedTuple

from stages.domain.core.words import phrase_pattern, words

COLOURS: tuple[str, ...] = ("red", "green", "blue", "yellow")
#: Distinguishable at 64 px; circle, square and triangle are not.
SHAPES: tuple[str, ...] = ("circle", "bar", "pillar")
#: Actions of a shape, each with a vaguer verb that is still true.
VERBS: dict[str, str] = {
    "retreats": "moves",
    "advances": "moves",
    "rises": "moves",
    "falls": "moves",
    "grows": "changes",
    "shrinks": "changes",
}
VAGUE_VERBS: frozenset[str] = frozenset(VERBS.values())
FUNCTION_WORDS: frozenset[str] = frozenset(
    {"a", "after", "and", "finally", "first", "followed", "by", "it", "next", "subsequently", "that", "the", "then"}
)

#: Words without content of their own, in English, Chinese and Japanese.
STOP_WORDS: frozenset[str] = (
    FUNCTION_WORDS
    | {"an", "at", "for", "from", "in", "is", "its", "of", "on", "out", "their", "they", "to", "with"}
    | set("的了着地得在是和与及他她它们这那个一把被其" + "はがをにでとのもへて")
)
#: Separators between the parts of a list, in any text.
SEPARATORS = re.compile(r"\sand\s|[,;/|，、；،؛]")
#: Words between alternatives, in any text.
_OR = ("or", "或", "还是", "または", "あるいは", "หรือ", "또는")


class Fact(NamedTuple):
    """One event of the generated world; a missing word is empty."""

    colour: str
    shape: str
    verb: str

    def entails(self, other: Fact) -> bool:
        """True if this fact implies ``other``: equal, or ``other`` omits words or uses the vague
        verb."""
        return (
            other.colour in ("", self.colour)
            and other.shape in ("", self.shape)
            and other.verb in (self.verb, VERBS.get(self.verb))
        )


def offers_alternatives(text: str) -> bool:
    """True if a text contains an "or" between alternatives."""
    return phrase_pattern(_OR).search(text) is not None


def facts(text: str) -> tuple[Fact, ...] | None:
    """Parse a sentence of the generated world, e.g. "the red bar rises then grows"; None if it has
    a word of another vocabulary.

    A verb belongs to the subject named last. A sentence without a verb states no event.
    """
    colour = shape = ""
    parsed: list[Fact] = []
    new_subject = True
    for word in words(text):
        if word in COLOURS or word in SHAPES:
            if new_subject:
                colour = shape = ""
                new_subject = False
            if word in COLOURS:
                colour = word
            else:
                shape = word
        elif word in VERBS or word in VAGUE_VERBS:
            parsed.append(Fact(colour, shape, word))
            new_subject = True
        elif word not in FUNCTION_WORDS:
            return None
    return tuple(parsed)


def content_words(text: str) -> frozenset[str]:
    """Set of content words, without plural and third-person endings ("yawns" equals "yawn")."""
    return frozenset(stem(word) for word in words(text) if word not in STOP_WORDS)


def stem(word: str) -> str:
    """Strip the plural or third-person ending of a word."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def vague(sentence: str) -> str | None:
    """Replace the verbs of a sentence by vaguer ones ("the red bar moves"); None if it has no verb
    of the generated world."""
    replaced = [VERBS.get(word, word) for word in sentence.split()]
    return " ".join(replaced) if replaced != sentence.split() else None
