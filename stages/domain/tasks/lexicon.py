"""The words of the generated world, shared by the corpus that writes them and the rule judge that reads them."""

from __future__ import annotations

import re
from typing import NamedTuple

from stages.domain.core.words import phrase_pattern, words

COLOURS: tuple[str, ...] = ("red", "green", "blue", "yellow")
#: Circle, square and triangle stay confused at 64 px; these three do not.
SHAPES: tuple[str, ...] = ("circle", "bar", "pillar")
#: What a shape can do, and the vaguer word that is still true of it.
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

#: Words of any text that say nothing by themselves: of English, and their like in Chinese and Japanese.
STOP_WORDS: frozenset[str] = (
    FUNCTION_WORDS
    | {"an", "at", "for", "from", "in", "is", "its", "of", "on", "out", "their", "they", "to", "with"}
    | set("的了着地得在是和与及他她它们这那个一把被其" + "はがをにでとのもへて")
)
#: Between the parts of a list, of any text.
SEPARATORS = re.compile(r"\sand\s|[,;/|，、；،؛]")
#: Between alternatives, of any text.
_OR = ("or", "或", "还是", "または", "あるいは", "หรือ", "또는")


class Fact(NamedTuple):
    """One event of the generated world; a word that was not said is empty."""

    colour: str
    shape: str
    verb: str

    def entails(self, other: Fact) -> bool:
        """Whether whoever says this has also said ``other``: equal, or ``other`` leaves words out or uses the vague verb."""
        return (
            other.colour in ("", self.colour)
            and other.shape in ("", self.shape)
            and other.verb in (self.verb, VERBS.get(self.verb))
        )


def offers_alternatives(text: str) -> bool:
    """Whether a text says one thing "or" another."""
    return phrase_pattern(_OR).search(text) is not None


def facts(text: str) -> tuple[Fact, ...] | None:
    """Read a sentence of the generated world, e.g. "the red bar rises then grows"; None when a word is not of that world.

    A verb belongs to the subject named last. A sentence without a verb states no event.
    """
    colour = shape = ""
    found: list[Fact] = []
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
            found.append(Fact(colour, shape, word))
            new_subject = True
        elif word not in FUNCTION_WORDS:
            return None
    return tuple(found)


def content_words(text: str) -> frozenset[str]:
    """The words that say something, without plural and third-person endings ("yawns" meets "yawn")."""
    return frozenset(stem(word) for word in words(text) if word not in STOP_WORDS)


def stem(word: str) -> str:
    """A word without its plural or third-person ending."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def vague(sentence: str) -> str | None:
    """The sentence with its verb replaced by the vaguer one ("the red bar moves"); None when it has no verb of this world."""
    replaced = [VERBS.get(word, word) for word in sentence.split()]
    return " ".join(replaced) if replaced != sentence.split() else None
