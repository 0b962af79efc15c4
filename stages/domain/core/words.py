"""What counts as a word, in any script: the one rule behind event filters, judges, rewards, gauges and the text-only guesser.

Where a script puts spaces between words, a word is a run of letters, digits and apostrophes, as it stands. Where it does not, the
units below count; none of them needs a dictionary, and none moves when a word is put in elsewhere, so that two phrases share what
they have in common:

- Chinese characters, hiragana and bopomofo: each is a word, as in the usual scoring of Chinese (sacreBLEU's ``zh``); of Chinese
  text about 1.6 of them make an English word.
- Katakana: a run is a word, since it mostly writes one loan word.
- Thai: a syllable, found by its vowel signs. A Thai letter by itself is in every sentence, and would make all of them alike.
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
#: Vowels written before and behind their consonant; a letter that is a vowel where no vowel follows it.
_THAI_BEFORE, _THAI_BEHIND, _THAI_EITHER = r"\u0e40-\u0e44", r"\u0e30\u0e32\u0e33\u0e45", r"\u0e2d"
#: Lao, Burmese and Khmer, and the signs that are written on or around their letters.
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
#: The rule of :func:`_between_spaces`, for most text many times as fast.
_ASCII_WORD = re.compile("[a-z0-9']+")
_WIDE = re.compile("[\uff01-\uffef]+")
#: They say how the letters around them are drawn, and part nothing: soft hyphen, joiners, variation selectors.
_UNSEEN = dict.fromkeys((0xAD, 0x200C, 0x200D, *range(0xFE00, 0xFE10)))


def words(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation, in order."""
    text = text.lower()
    if text.isascii():
        return tuple(_ASCII_WORD.findall(text))
    # Full-width letters and half-width kana are the usual ones; an accent that follows its letter is the letter with the accent.
    text = unicodedata.normalize("NFC", _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]), text).translate(_UNSEEN))
    return tuple(piece for run in _between_spaces(text) for piece in _PIECE.findall(run))


def _between_spaces(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "'" or _is_sign(c) else " " for c in text).split()


def _is_sign(character: str) -> bool:
    """Vowel signs, tones and accents: no letters, yet inside words."""
    return unicodedata.category(character) in ("Mn", "Mc")


@cache
def phrase_pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Find phrases that stand as whole words ("strengthen" holds no "then"), the longest where one lies in another.

    In a script without spaces a phrase has no edges to be told by: it is found wherever its characters stand.
    """
    edge = f"[^\\W{_UNSPACED}]"  # of a word that is parted by spaces
    found = (
        f"{'' if _unspaced(phrase[0]) else f'(?<!{edge})'}{re.escape(phrase)}{'' if _unspaced(phrase[-1]) else f'(?!{edge})'}"
        for phrase in sorted(phrases, key=len, reverse=True)
    )
    return re.compile("|".join(found) or "(?!)", re.IGNORECASE)


def _unspaced(character: str) -> bool:
    return re.match(f"[{_UNSPACED}]", character) is not None
