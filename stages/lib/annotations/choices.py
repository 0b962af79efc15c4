"""Parsing of multiple-choice questions in published files: options that carry their letters,
answers in several spellings.

There are no guesses: an answer is a letter alone (``B``, ``b``, ``(B)``, ``B.``, ``"B"``), a letter
with its own option's words (``B. It falls``), or an option's own words. Anything else, such as a
sentence that happens to begin with a letter, is refused.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

from stages.domain.core.records import folded

#: "A. It rises", "(A) It rises", "A) It rises", "A: It rises".
_LETTERED = re.compile(r"\s*(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|([A-Za-z])\s*[.):、])\s*(\S.*?)\s*", re.DOTALL)
#: A letter between brackets, quotes or emphasis marks, with one or two punctuation marks behind it.
_ALONE = re.compile(r"[\s(\[{\"'`*_<“”‘’]*([A-Za-z])[\s)\]}\"'`*_>“”‘’]*[.:,;)]?[\s)\]}\"'`*_“”‘’]*")
#: A letter, a separator and words.
_WITH_WORDS = re.compile(
    r"[\s(\[{\"'`*_]*([A-Za-z])[\s)\]}\"'`*_]*(?:[.:)\]、,][\"'`*_]*|\s[-–—])\s*(\S.*?)[\s\"'`*_]*", re.DOTALL
)


def unlettered(options: Sequence[str]) -> tuple[str, ...]:
    """Strip the letters from published options; unchanged if not every one has a letter.

    Raises:
        ValueError: every option has a letter, and the letters are not A, B, C … in this order.
    """
    matches = [_LETTERED.fullmatch(option) for option in options]
    letters = [next(filter(None, match.groups()[:3])).upper() for match in matches if match]
    if not options or len(letters) < len(options):
        return tuple(options)
    if letters != list(string.ascii_uppercase[: len(letters)]):
        raise ValueError(f"options carry the letters {', '.join(letters)}; need A, B, C … in this order, or none")
    return tuple(match[4] for match in matches if match)


def stated_letter(answer: str, options: Sequence[str]) -> str:
    """Find the letter of the option that a published answer names; ``options`` are without letters.

    Raises:
        ValueError: it names none, or more than one; the message quotes it.
    """
    text = unicodedata.normalize("NFKC", answer).strip()
    letters = string.ascii_uppercase[: len(options)]
    named: set[str] = {
        letter for letter, option in zip(letters, options, strict=False) if folded(option) == folded(text)
    }
    alone, with_words = _ALONE.fullmatch(text), _WITH_WORDS.fullmatch(text)
    if alone and alone[1].upper() in letters:
        named.add(alone[1].upper())
    elif with_words and with_words[1].upper() in letters and not named:
        letter = with_words[1].upper()
        if folded(options[letters.index(letter)]) != folded(with_words[2]):
            raise ValueError(
                f"{answer!r} has the letter {letter} and not the words of that option,"
                f" {options[letters.index(letter)]!r}"
            )
        named.add(letter)
    if len(named) > 1:
        raise ValueError(f"{answer!r} is the letter of one option and the words of another")
    if not named:
        raise ValueError(
            f"{answer!r} names no option: there are {len(options)} (A to {letters[-1:]}); give a letter, or an option's"
            " own words"
        )
    return named.pop()
