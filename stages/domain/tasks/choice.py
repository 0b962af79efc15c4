"""Reader of multiple-choice answers, shared by rewards, `strict` evaluation and the difficulty
filter.

Example: options ``falls, rises``: ``(B)``, ``The answer is **B**.``, ``B - rises`` and ``rises``
choose B; ``A or B`` chooses none.

An answer is read as a whole. Rules of the unclear cases, each with its reason:

- A second letter behind the first cancels the choice, in "B, not A" too. Distinguishing that from
  "A is wrong, B is right" would need an understanding of negation, and a rule that tries would
  reward lists of guesses.
- A letter with the words of another option contradicts itself. Behind a letter with its own words,
  a single word of another option counts only if it stands alone, between punctuation: "B. blue,
  since the red ball is gone" explains, "B. blue. red." lists.
- Words that belong to no option are an explanation or a paraphrase; the letter counts. Words that
  withdraw the choice ("B. Actually no") cancel it.
- "A" before further words is the article, unless punctuation or a bracket separates them, or they
  are option A's own words, or they give a reason for the choice or confirm it.
- A letter alone is the letter, even if the words of another option are that letter. Otherwise,
  words that belong to exactly one option choose it; followed by another letter, they choose none.
- A conclusion is "Answer: B" at the beginning of a last sentence, ``\\boxed{B}``, or a last line
  that is a letter alone. Any text may precede it that is not another conclusion and does not begin
  with a letter: that is reasoning. "It could be B" is not a conclusion.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

#: Letters and digits that make a letter beside them part of a word. Chinese, Japanese and Korean
#: put no space between words.
_WORD = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
_OPENING, _CLOSING = "([{<\"'`*_“‘«「『【〈《", ")]}>\"'`*_”’»」』】〉》"
_STOPS = ".,;:!。、，；：！…"
_TRIMMED = _OPENING + _CLOSING + _STOPS + "-–—|/\\~ \t\n"

_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mbox|operatorname)\s*\{([^{}]*)\}"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}")
_MATHEMATICS = re.compile(r"\$|\\[()\[\]]")
#: Deepest nesting of commands that is unwrapped.
_NESTED = 4
_VARIATIONS = "\ufe0e\ufe0f"
_BULLETS = re.compile(r"\A[\s>#*•–+-]+(?=\s*\S)")
_HTML = re.compile(r"</?(?:b|strong|i|em|u|p|span|div|code|mark)>|<br\s*/?>", re.IGNORECASE)


def _clean(text: str) -> str:
    """Reduce a text to plain characters without mark-up; a boxed text becomes a conclusion."""
    text = "".join(
        c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf" and c not in _VARIATIONS
    )
    for _ in range(_NESTED):
        text = _TEXT_COMMAND.sub(r"\1", text)
    text = _MATHEMATICS.sub("", _BOXED.sub(r"\n answer: \1\n", text))
    if "</" in text or "<br" in text:
        text = _HTML.sub(lambda tag: "\n" if tag[0].startswith("<br") else "", text)
    for mark in ("**", "__", "`"):
        text = text.replace(mark, "")
    # A sign and a leading decimal point belong to their number; other punctuation around words does
    # not count.
    text = re.sub(rf"(?<![{_WORD}])\.(?=\d)", "0.", re.sub(rf"(?<![{_WORD}])[-–](?=\d)", "−", text))
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text))
    return _BULLETS.sub("", text).strip()


def _plain(text: str) -> str:
    """Normalise a text for comparison: without case, and without punctuation around it."""
    return " ".join(text.casefold().split()).strip(_TRIMMED)


_NOUN = (
    r"(?:(?:the|my|our|your)\s+)?(?:(?:final|single|correct|best|right|chosen|selected|most\s+(?:likely|accurate|appropriate|suitable))\s+){0,4}"
    r"(?:answer|option|choice|response|selection|letter)\b(?:\s+(?:letter|option|choice)\b)?(?:\s+(?:to|for)\s+(?:this|the)\s+question\b)?"
    r"\s*(?:(?:is|would\s+be|should\s+be|must\s+be)\b(?:\s+(?:definitely|clearly|probably|most\s+likely|therefore|thus)\b)?)?"
)
_STATED = (
    r"i(?:'d|'ll|\s+would|\s+will)?\s+(?:choose|chose|pick|select|go\s+(?:with|for)|answer)\b"
    r"|(?:it|that)(?:'s|\s+is)\b(?=(?-i:[^a-z]*[A-Z]))"
)
_FOREIGN = (
    r"(?:(?:本|该|这道)题)?的?[【\[]?(?:正确|最佳|最终|最終的な|正しい)?的?(?:答案|选项|選項|答え|回答|解答|正解)[】\]]?\s*(?:应该是|應該是|是|为|為|は)?(?:选项)?"
    r"|(?:(?:本|该|这道)题)?(?:我|应该|应|應|故)?(?:选择|選擇|选|選)|(?:정답|답|답변)\s*(?:은|는)?|옵션"
    r"|(?:la\s+)?(?:respuesta|réponse|resposta|risposta)(?:\s+(?:correcta|correcte|correta|corretta|final|finale))?\s*(?:(?:es|est|é|è)\b)?"
    r"|(?:die\s+)?(?:richtige\s+)?antwort\s*(?:ist\b)?|(?:правильный\s+)?ответ|đáp\s+án\s*(?:là\b)?"
)
_BEFORE = (
    r"(?:(?:based\s+on|according\s+to|judging\s+by|given|from|in)\s[^.,;:!?\n]{1,100},\s*)?"
    r"(?:(?:so|thus|therefore|hence|then|finally|overall|consequently|sure|okay|ok|in\s+(?:conclusion|summary|short))\b[,:!.]?\s*"
    r"|(?:所以|因此|因而|从而|故|综上)[，,、]?\s*){0,4}"
    r"(?:(?:i|we)\s+(?:think|believe|conclude|say)\s+(?:that\s+)?)?"
)
#: Phrases that announce a choice: "So the correct answer is:", "Option", "答案是".
_LEAD = re.compile(rf"[\s,#>*_\-•]{{0,8}}{_BEFORE}(?:{_NOUN}|{_STATED}|{_FOREIGN})\s*[:=→]*\s*", re.IGNORECASE)
#: Most announcements in a row: "Final answer: the correct option is".
_LEADS = 4
#: Beginning of a sentence, or of its conclusion.
_BEGINS = re.compile(
    r"\n|(?<=[.!?])\s|[。！？]|(?<!\bif)(?=[\s,](?:(?:so|thus|therefore|hence)\b|所以|因此|因而|从而|故))",
    re.IGNORECASE,
)

_LETTER = re.compile(
    rf"[^\w{re.escape(_OPENING + _CLOSING + _STOPS)}]*"
    rf"(?P<open>[{re.escape(_OPENING)}\s]*)(?P<letter>[A-Za-z])(?![{_WORD}])"
)
#: Separators between a letter and the words behind it.
_PARTS = re.compile(rf"\s*[{re.escape(_STOPS + _CLOSING)}|/=→]|[ \t]*\n|\s+[-–—~]|[–—]|-\s|\s*[{re.escape(_OPENING)}]")
_ABBREVIATION = re.compile(r"\.\s?[A-Za-z]\.")
#: A letter that is not part of a word; "he'd" contains none.
_SINGLE = re.compile(rf"(?<![{_WORD}])(?<![A-Za-z]['’])[A-Za-z](?![{_WORD}])")
#: Replaces an option's words once they are read.
_GAP = "\x00"
_STOPS_BEFORE = re.compile(
    rf"(?:^|[{re.escape(_STOPS + _OPENING + _CLOSING)}?/|&+\n\x00]|\b(?:and|or)|[和或与とか])\s*$"
)
_STOPS_BEHIND = re.compile(rf"\s*(?:$|[{re.escape(_STOPS + _OPENING + _CLOSING)}?/|&+\n]|(?:and|or)\b|[和或与とか])")
#: Behind an "A" that is a letter: "A is out", "A because".
_SPOKEN_OF = re.compile(
    r"\s*(?:$|[^\w\s]|(?:is|was|are|were|because|since|seems|looks|would|could|but)\b)", re.IGNORECASE
)
_EXPLAINS = re.compile(r"\s*(?:because|since|as|due\s+to)\b", re.IGNORECASE)
_CONFIRMS = re.compile(
    r"\s*(?:is|was|seems)\s+(?:the\s+|my\s+)?(?:(?:final|only|most\s+likely)\s+)?(?:correct|right|best|answer|choice|true)\b"
    r"(?:\s+(?:answer|option|choice|one)\b)?"
    r"|\s*(?:选项|選項|项)?\s*(?:是|が|은|는|이|가)?\s*(?:正确|對|对|正解|正しい|맞)?(?:的)?(?:答案|选项)?"
    r"(?:です|だ|でしょう|입니다|이다|이에요|예요|번)?(?=$|[\s。，,.;])",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"(?:no|not|never|nope|wrong|incorrect|false|maybe\s+not|(?:is|are|was|seems|looks)\s+(?:not|wrong|incorrect|false|unlikely|out)"
    r"|isn't|is\s+n't|cannot\s+be|can't\s+be)\b|不|错|錯|ではな|じゃな|아니|아닙",
    re.IGNORECASE,
)
_TAKES_BACK = re.compile(
    r"^(?:or|nor|neither|unless|and\s*/\s*or|或|还是|または|또는)\b"
    r"|(?:^|[.,;:!?。，；！？()\-–—\n])\s*(?:oh\s+|but\s+|hmm\W+|or\s+|and\s+)*"
    r"(?:actually|wait|sorry|correction|scratch\s+that|instead|rather|on\s+second\s+thought|no(?=\s*(?:$|[.,;:!?\-–—]|wait|actually)))\b"
    r"|\bnot\s+(?:sure|certain|correct|this\s+one|that\s+one|(?:the\s+)?right\s+(?:answer|option|choice|one))\b"
    r"|\b(?:answer|option|choice|letter|it|that|this)(?:\s+is|'s)\s+(?:not|wrong|incorrect|false)(?=\s*(?:$|[.,;!?]))"
    r"|\b(?:none|neither|either|both|all|any|each)\s+of\s+(?:the|these|those)\s+(?:above|others?|options|answers|choices)\b"
    r"|^(?:none|neither|either|both|all|any|each)\s+of\s+(?:these|those|them)(?=\s*(?:$|[.,;!?]))"
    r"|\b(?:cannot|can't|can\s+not|could\s+not|couldn't)\s+(?:tell|say|decide|determine|be\s+sure|know)\b"
    r"|\b(?:changed?|change)\s+my\s+mind\b|\btake\s+(?:it|that)\s+back\b|\bor\s+(?:maybe|perhaps|possibly|another|something|the\s+other)\b"
    r"|不对|不對|不是|错了|錯了|应该是|應該是",
    re.IGNORECASE,
)


def chosen_letter(answer: str, options: Sequence[str]) -> str | None:
    """Read the letter of the one option that an answer chooses; None if it chooses none, or
    several.

    Args:
        answer: the answer text, without reasoning and tags.
        options: words of the options, in order; A is the first. At most 26.
    """
    return _options(tuple(options)).read(_clean(answer))


class _Option(NamedTuple):
    letter: str
    #: Normalised by :func:`_plain`; empty for an option without words.
    words: str
    #: Matches them in a text.
    pattern: re.Pattern[str] | None


def _option(number: int, text: str) -> _Option:
    letter, words = chr(ord("A") + number), _plain(_clean(text))
    if words[:1] == letter.casefold() and words[1:2] in (".", ")", ":") and _plain(words[2:]):
        words = _plain(words[2:])  # the option's text already starts with its letter
    pattern = rf"(?<![{_WORD}])(?<!\d[.,:]){re.escape(words)}(?![{_WORD}])(?![.,:]\d)".replace(r"\ ", r"\s+")
    return _Option(letter, words, re.compile(pattern, re.IGNORECASE) if words else None)


class _Letter(NamedTuple):
    """A letter at the beginning of a text.

    ``parted``: punctuation, a bracket or the end separates it from ``behind``, the rest of the
    text.
    """

    letter: str
    written: str
    behind: str
    parted: bool


class _Options:
    def __init__(self, options: Sequence[str]) -> None:
        self._options = [_option(number, option) for number, option in enumerate(options)]
        self._letters = "".join(option.letter for option in self._options)

    def read(self, text: str) -> str | None:
        words, rest = self._by_words(text), text
        for _ in range(_LEADS):
            if (lead := _LEAD.match(rest)) is None:
                break
            rest = rest[lead.end() :]
            words = words or self._by_words(rest)
        if self._is_letter(rest):
            return _plain(rest).upper()
        choice = self._letter_of(rest)
        letters = {words, self._by_letter(choice)} - {None}
        if letters or (choice is not None and choice.parted):
            return letters.pop() if len(letters) == 1 else None
        return self._words_then_letter(rest) or self._concluded(text)

    def _is_letter(self, text: str) -> bool:
        return len(_plain(text)) == 1 and _plain(text).upper() in self._letters and "?" not in text

    def _letter_of(self, text: str) -> _Letter | None:
        match = _LETTER.match(text)
        if match is None or match["letter"].upper() not in self._letters:
            return None
        behind = text[match.end() :]
        quoted = set(match["open"]) & set("'‘")
        if (behind[:1] in ("'", "’") and not quoted) or _ABBREVIATION.match(behind):
            return None
        wrapped = bool(match["open"].strip()) and behind[:1] in tuple(_CLOSING)
        parted = wrapped or not behind.strip() or _PARTS.match(behind) is not None
        # An article is sometimes followed by a comma or a bracket.
        if match["letter"].islower() and not wrapped and behind.lstrip()[:1] in tuple("," + _OPENING):
            parted = False
        return _Letter(match["letter"].upper(), match["letter"], behind, parted)

    def _by_letter(self, choice: _Letter | None) -> str | None:
        if choice is None or "?" in choice.behind[:2]:
            return None  # "B?" is a question
        own = self._options[ord(choice.letter) - ord("A")]
        behind = choice.behind.lstrip(_TRIMMED + "=→")
        if not choice.parted:
            its_own = own.pattern is not None and own.pattern.match(behind) is not None
            confirmed = _EXPLAINS.match(choice.behind) or (
                (match := _CONFIRMS.match(choice.behind)) and match[0].strip()
            )
            if not its_own and (choice.written == "a" or not confirmed):
                return None
        agrees = _plain(behind) in ("", own.words) or self._bears_out(own, behind)
        return choice.letter if agrees else None

    def _bears_out(self, own: _Option, behind: str) -> bool:
        """True if the words behind an option's letter do not contradict it."""
        spans = _longest([(*m.span(), o) for o in self._options if o.pattern for m in o.pattern.finditer(behind)])
        others = [span for span in spans if span[2].words != own.words]
        its_own = [span for span in spans if span[2].words == own.words]
        begins = bool(its_own) and its_own[0][0] == 0
        if any(not begins or " " in other.words or _alone(behind, start, stop) for start, stop, other in others):
            return False
        for start, stop, _ in its_own:
            behind = behind[:start] + _GAP * (stop - start) + behind[stop:]
        if begins:
            behind = behind.lstrip(_GAP + _TRIMMED)
        elif _DENIES.match(behind):
            return False
        return _TAKES_BACK.search(behind) is None and not self._names_another(own.letter, behind)

    def _names_another(self, letter: str, text: str) -> bool:
        """True if a text names another letter than this one; a letter of no option counts if it is
        listed."""
        for match in _SINGLE.finditer(text):
            other, listed = match[0], _alone(text, *match.span())
            if other.upper() == letter:
                continue
            if other.upper() not in self._letters:
                named = other.isupper() and listed
            else:  # "a" and "I" are words too
                named = other not in "aAiI" or listed or _SPOKEN_OF.match(text, match.end()) is not None
            if named:
                return True
        return False

    def _by_words(self, text: str) -> str | None:
        """Letter of the only option whose words equal this text."""
        words = _plain(text)
        same = [option.letter for option in self._options if option.words and option.words == words]
        return same[0] if len(same) == 1 else None

    def _words_then_letter(self, text: str) -> str | None:
        """Letter of the option whose words a text begins with, if nothing but that letter follows:
        ``rises (B)``."""
        trimmed = text.lstrip(_TRIMMED)
        for option in sorted(self._options, key=lambda option: -len(option.words)):
            if option.pattern is not None and (match := option.pattern.match(trimmed)) is not None:
                rest = _LEAD.sub("", trimmed[match.end() :].lstrip(_TRIMMED), count=1)
                return option.letter if _plain(rest).upper() == option.letter else None
        return None

    def _concluded(self, text: str) -> str | None:
        """Letter that the last sentence states, if no other sentence states another."""
        starts = [0, *(match.end() for match in _BEGINS.finditer(text))]
        leads = sorted({lead.end() for start in starts if (lead := _LEAD.match(text, start)) is not None})
        if not leads:
            return self._last_line(text)
        choices = [choice for end in leads if (choice := self._letter_of(text[end:])) is not None]
        named = {choice.letter for choice in choices if choice.written not in "aA" or choice.parted}
        letter = self._by_letter(self._letter_of(text[leads[-1] :]))
        return letter if named == {letter} else None

    def _last_line(self, text: str) -> str | None:
        """Letter that is the whole last line, if no line before begins with another."""
        *before, last = [line for line in text.split("\n") if line.strip()] or [""]
        if not before or not self._is_letter(last) or last.strip() == "a":
            return None
        begun = {choice.letter for line in before if (choice := self._letter_of(line)) is not None and choice.parted}
        return _plain(last).upper() if begun <= {_plain(last).upper()} else None


@lru_cache(maxsize=1024)
def _options(options: tuple[str, ...]) -> _Options:
    return _Options(options)


def _longest(spans: list[tuple[int, int, _Option]]) -> list[tuple[int, int, _Option]]:
    """Sort the spans and drop those that lie inside a longer one."""
    kept: list[tuple[int, int, _Option]] = []
    reach = 0
    for start, stop, option in sorted(spans, key=lambda span: (span[0], -span[1])):
        if stop > reach or (start, stop) == kept[-1][:2]:
            kept.append((start, stop, option))
        reach = max(reach, stop)
    return kept


def _alone(text: str, start: int, stop: int) -> bool:
    """True if this part of a text stands between punctuation, or is an item of a list."""
    return (
        _STOPS_BEFORE.search(text[max(0, start - 8) : start]) is not None
        and _STOPS_BEHIND.match(text, stop) is not None
    )
