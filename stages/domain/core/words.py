"""Splitting text into words, in any script: one rule for event filters, judges, rewards, gauges and
the text-only guesser.

In scripts that put spaces between words, a word is a run of letters, digits and apostrophes. In
scripts that do not, the units below count. None of them needs a dictionary, and none depends on the
words around it, so two phrases share the units that they have in common:

- Chinese characters, hiragana and bopomofo: each is a word, as is usual in the scoring of Chinese
  (sacreBLEU's ``zh``); about 1.6 Chinese characters correspond to an English word.
- Katakana: a run is a word, since it mostly writes one loan word.
- Thai: a syllable, delimited by its vowel signs. Single Thai letters occur in every sentence and
  would make all sentences alike.
- Lao, Khmer, Burmese: a letter with its signs.

Example: ``words("一个人走进room.")`` is ``("一", "个", "人", "走", "进", "room")``.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_HAN = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
#: Hiragana and bopomofo.
_KANA = r"\u3041-\u309f\u3105-\u312f\u31a0-\u31bf"
_KATAKANA = r"\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_THAI, _THAI_CONSONANT, _THAI_SIGN = r"\u0e01-\u0e7f", r"\u0e01-\u0e2e", r"\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
#: Vowels written before and behind their consonant; a letter that is a vowel where no vowel follows
#: it.
_THAI_BEFORE, _THAI_BEHIND, _THAI_EITHER = r"\u0e40-\u0e44", r"\u0e30\u0e32\u0e33\u0e45", r"\u0e2d"
#: Lao, Burmese and Khmer, and the signs written on or around their letters.
_CLUSTERED = r"\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"
_CLUSTER_SIGN = (
    r"\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074"
    r"\u1082-\u108d\u17b4-\u17d3"
)
#: For use inside a character class: scripts that put no space between words.
_UNSPACED = f"{_HAN}{_KANA}{_KATAKANA}{_THAI}{_CLUSTERED}"
_PIECE = re.compile(
    f"[{_KATAKANA}]+"
    # A Thai syllable ends with a consonant that has no sign or vowel of its own.
    f"|[{_THAI_BEFORE}]?[{_THAI_CONSONANT}][{_THAI_SIGN}]*(?:[{_THAI_BEHIND}]|{_THAI_EITHER}(?![{_THAI_SIGN}{_THAI_BEHIND}]))*"
    f"(?:[{_THAI_CONSONANT}](?![{_THAI_SIGN}{_THAI_BEHIND}]))?"
    f"|[{_CLUSTERED}][{_CLUSTER_SIGN}]*"
    f"|[{_UNSPACED}]"
    f"|[^{_UNSPACED}]+"
)
#: Same rule as :func:`_between_spaces`, many times as fast on ASCII text.
_ASCII_WORD = re.compile("[a-z0-9']+")
_WIDE = re.compile("[\uff01-\uffef]+")
#: Characters that change the look of letters and separate nothing: soft hyphen, joiners, variation
#: selectors.
_INVISIBLE = dict.fromkeys((0xAD, 0x200C, 0x200D, *range(0xFE00, 0xFE10)))


def words(text: str) -> tuple[str, ...]:
    """Split a text into lower-case words without punctuation, in order."""
    text = text.lower()
    if text.isascii():
        return tuple(_ASCII_WORD.findall(text))
    # Full-width letters and half-width kana become the usual ones; a letter and its combining
    # accent become one character.
    text = unicodedata.normalize(
        "NFC", _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]), text).translate(_INVISIBLE)
    )
    return tuple(piece for run in _between_spaces(text) for piece in _PIECE.findall(run))


def _between_spaces(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "'" or _is_sign(c) else " " for c in text).split()


def _is_sign(character: str) -> bool:
    """True for vowel signs, tones and accents: not letters, but parts of words."""
    return unicodedata.category(character) in ("Mn", "Mc")


@cache
def phrase_pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Compile a pattern that finds phrases as whole words ("strengthen" does not contain "then");
    the longest match wins.

    In a script without spaces, words have no visible boundaries: a phrase matches wherever its
    characters occur.
    """
    edge = f"[^\\W{_UNSPACED}]"  # a word character of a script with spaces

    def whole(phrase: str) -> str:
        before = "" if _unspaced(phrase[0]) else f"(?<!{edge})"
        after = "" if _unspaced(phrase[-1]) else f"(?!{edge})"
        return before + re.escape(phrase) + after

    alternatives = (whole(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    return re.compile("|".join(alternatives) or "(?!)", re.IGNORECASE)


def _unspaced(character: str) -> bool:
    return re.match(f"[{_UNSPACED}]", character) is not None
