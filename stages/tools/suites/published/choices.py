"""Multiple choice: extract the option that a reply names, by this project's rule (`strict`) and by
those of public harnesses (`compat`).

The compat rules reproduce those harnesses, quirks included; `make crosscheck` compares them with
the harnesses' own functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from stages.domain.core.replies import final_answer
from stages.domain.tasks.choice import chosen_letter

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letter(index: int) -> str:
    return _LETTERS[index]


def strict_choice(reply: str, options: Sequence[str]) -> str | None:
    """The one option that a reply chooses, without its reasoning, read as the training reward reads
    it.

    None if there is none, or more than one.
    """
    answer = final_answer(reply)
    return None if answer is None else chosen_letter(answer, options)


# lmms-eval: lmms_eval/api/reasoning.py, strip_reasoning_tags, at 75571cf, with the default tags of
# its command line.

_LMMS_TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))


def lmms_eval_spoken(reply: str) -> str:
    """The text that lmms-eval passes to its scoring rules: the reply without reasoning blocks,
    stripped.

    A block that never ends stays. If only ends of blocks are left, all text up to the last one is
    removed.
    """
    for opening, closing in _LMMS_TAGS:
        while closing in reply.partition(opening)[2]:
            before, _, rest = reply.partition(opening)
            reply = before + rest.partition(closing)[2]
        if opening not in reply:
            reply = reply.rpartition(closing)[2]
    return reply.strip()


# lmms-eval: lmms_eval/tasks/_task_utils/mcq_extract.py, extract_mcq_answer, at 75571cf (Video-MME).

_LMMS_STRIPPED = (",", ".", "!", "?", ";", ":", "'", '"')
_LMMS_NOUNS = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
_LMMS_PHRASES = (
    *(f"{the}{noun} is" for noun in _LMMS_NOUNS for the in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
#: Weight of each form of a letter; the form, with ``?`` for the letter.
_LMMS_WRITTEN = ((6, "(?)"), (5, "?."), (4, "?:"), (3, "?)"), (2, "? "))


def lmms_eval_letter(reply: str, letters: str) -> str:
    """The letter that lmms-eval extracts; empty if it finds none.

    Every occurrence competes: a letter at either end of the reply beats one behind a phrase, that
    one beats one in brackets, and so on down to a letter inside a word. Among equals the last
    position wins, and a phrase vouches for every letter anywhere behind it.
    """
    text = reply.strip()
    for character in _LMMS_STRIPPED:
        text = text.strip(character)
    text, bare = f" {text} ", text.strip()
    if not reply.strip():
        return ""
    candidates = [
        (rank, text.rfind(way.replace("?", option)), option) for rank, way in _LMMS_WRITTEN for option in letters
    ]
    lower = text.lower()
    for phrase in _LMMS_PHRASES:
        if (at := lower.find(phrase)) >= 0:
            candidates += [(7, text.find(option, at + len(phrase)), option) for option in letters]
    if bare and bare[0] in letters and not bare[1:2].isalpha():
        candidates.append((10, 0, bare[0]))
    if bare and bare[-1] in letters and not bare[-2:-1].isalpha():
        candidates.append((9, len(text) - 1, bare[-1]))
    if not any(at >= 0 for _, at, _ in candidates):
        candidates += [(0, text.rfind(option), option) for option in letters]
    return max(
        ((rank, at, option) for rank, at, option in candidates if at >= 0),
        key=lambda candidate: candidate[:2],
        default=(0, 0, ""),
    )[2]


# lmms-eval: lmms_eval/tasks/mvbench/utils.py, mcq_acc, at 75571cf (MVBench).

_LMMS_OPTION = re.compile(r"([A-E])\.\s*(.+)", re.IGNORECASE)
_LMMS_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
#: The harness passes a flag in the position of the number of replacements: only that many full
#: stops are removed.
_LMMS_STOPS = int(re.UNICODE)


def lmms_eval_answer(reply: str) -> str:
    """Normalise a reply by lmms-eval's MVBench rule: a letter A to E, else the reply in lower case
    without its punctuation.

    The first word that is one of these letters counts, so the article "a" is A.
    """
    option = _LMMS_OPTION.fullmatch(reply.strip())
    if option:
        return option[1].upper()
    text = reply.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    for mark in _LMMS_PUNCTUATION:
        loose = f"{mark} " in text or f" {mark}" in text or _THOUSANDS.search(text)
        plain = plain.replace(mark, "" if loose else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=_LMMS_STOPS)
    plain = plain.strip("'").strip('"').strip(")").strip("(").strip().lower()
    word = re.search(r"\b[a-e]\b", plain, re.IGNORECASE)
    return word[0].upper() if word else plain


# VLMEvalKit: vlmeval/dataset/utils/videomme.py, extract_characters_regex, at e8e78f0 (Video-MME).

#: Two of the harness's phrases are joined with the next one, for lack of a comma.
_KIT_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
    "Answer:",
    "Option:",
)


def vlmevalkit_letter(reply: str) -> str:
    """The first of A, B, C, D anywhere, even inside a word, after some phrases are removed; empty
    if there is none."""
    text = reply.strip()
    for prefix in _KIT_PREFIXES:
        text = text.replace(prefix, "")
    match = re.search("[ABCD]", text)
    return match[0] if match else ""


# VLMEvalKit: vlmeval/dataset/utils/mvbench.py, check_ans_with_model without a model, at e8e78f0
# (MVBench); its fallback is can_infer of vlmeval/utils/matching_util.py.

_KIT_FAILED = "Failed to obtain answer via API"
_KIT_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_KIT_SPACED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_KIT_VERBOSE = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)


def vlmevalkit_right(reply: str, options: Sequence[str], last: int, first: int) -> bool:
    """Return whether VLMEvalKit's MVBench rule counts a reply as right; it does for an empty one.

    ``last`` and ``first``: numbers of the last and the first option that is the answer, which
    differ if two options are the same.
    """
    expected = f"({letter(last).lower()})"
    first_word = reply.lower().strip().split(" ")[0]
    return (
        first_word.replace(".", "") in expected
        or expected in first_word
        or vlmevalkit_option(reply, options) == letter(first)
    )


def vlmevalkit_option(reply: str, options: Sequence[str]) -> str | None:
    """The letter that VLMEvalKit infers without a model.

    The only one that is a word near the end, one behind "answer is" (even as the beginning of a
    word), or the only option whose words the reply contains.
    """
    letters = [letter(i) for i in range(len(options))]
    if _KIT_FAILED not in reply:
        if any(refusal in reply for refusal in _KIT_REFUSALS):
            return None
        words = reply.translate(_KIT_SPACED).split()
        standing = [candidate for candidate in letters if candidate in words]
        if len(standing) == 1 and words.index(standing[0]) > len(words) - 5:
            return standing[0]
        if not standing and "Z" in words:
            return None
        verbose = _KIT_VERBOSE.search(reply)
        if verbose and verbose[1].upper() in letters:
            return verbose[1].upper()
    lower = reply.lower()
    if len(lower) > 2 * sum(map(len, options)):
        return None
    return _only(letters[i] for i, option in enumerate(options) if option.lower() in lower)


def _only(matches: Iterable[str]) -> str | None:
    these = list(matches)
    return these[0] if len(these) == 1 else None
