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
from typing import Literal

from stages.domain.core.records import folded

#: "A. It rises", "(A) It rises", "A) It rises", "A: It rises".
_LETTERED = re.compile(r"\s*(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|([A-Za-z])\s*[.):、])\s*(\S.*?)\s*", re.DOTALL)
#: A letter between brackets, quotes or emphasis marks, with one or two punctuation marks behind it.
_ALONE = re.compile(r"[\s(\[{\"'`*_<“”‘’]*([A-Za-z])[\s)\]}\"'`*_>“”‘’]*[.:,;)]?[\s)\]}\"'`*_“”‘’]*")
#: A letter, a separator and words.
_WITH_WORDS = re.compile(
    r"[\s(\[{\"'`*_]*([A-Za-z])[\s)\]}\"'`*_]*(?:[.:)\]、,][\"'`*_]*|\s[-–—])\s*(\S.*?)[\s\"'`*_]*", re.DOTALL
)
#: An option on a line of its own in the text of a question.
_LISTED = re.compile(r"^[^\S\n]*\(?([A-Z])[.):][^\S\n]*(\S.*?)\s*$", re.MULTILINE)
_INDEX = re.compile(r"-?\d{1,3}(?:\.0)?")

#: ``stated``: a letter, a letter with its option's words, or an option's own words; ``letter``: a
#: letter alone or with words; ``text``: an option's own words; ``index_from_0``, ``index_from_1``:
#: its place, as a number or as text.
AnswerForm = Literal["stated", "letter", "text", "index_from_0", "index_from_1"]


def listed_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Take a question and its options apart, which stand below it, a line each, with their letters.
    Lines behind the options (an instruction) are dropped.

    Raises:
        ValueError: there are no two such lines, or their letters are not A, B, C … in this order.
    """
    found = list(_LISTED.finditer(text))
    letters = [match[1] for match in found]
    if len(found) < 2 or letters != list(string.ascii_uppercase[: len(found)]):
        raise ValueError(f"need options A, B, … a line each, in this order; found {', '.join(letters) or 'none'}")
    return text[: found[0].start()].strip(), tuple(match[2] for match in found)


def answer_letter(answer: str | int | float, options: Sequence[str], form: AnswerForm) -> str:
    """Find the letter of the right option; ``options`` are without letters.

    Raises:
        ValueError: the answer names no option in this form; the message quotes it.
    """
    if form == "stated":
        return stated_letter(str(answer), options)
    letters = string.ascii_uppercase[: len(options)]
    if form == "text":
        named = {letter for letter, one in zip(letters, options, strict=False) if folded(one) == folded(str(answer))}
        if len(named) != 1:
            raise ValueError(f"{answer!r} is {'no option' if not named else 'several options'}, word for word")
        return named.pop()
    if form == "letter":
        text = unicodedata.normalize("NFKC", str(answer)).strip()
        match = _ALONE.fullmatch(text) or _WITH_WORDS.fullmatch(text)
        if match is None or match[1].upper() not in letters:
            raise ValueError(f"{answer!r} names none of the letters A to {letters[-1:]}")
        return match[1].upper()
    first = 0 if form == "index_from_0" else 1
    text = str(answer).strip()
    if isinstance(answer, bool) or not _INDEX.fullmatch(text):
        raise ValueError(f"{answer!r} is no index; the options count from {first}")
    place = int(text.partition(".")[0]) - first
    if not 0 <= place < len(options):
        raise ValueError(f"{answer!r} names no option: there are {len(options)}, counted from {first}")
    return letters[place]


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
