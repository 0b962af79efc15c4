"""The rule judge: deterministic, offline, exact on sentences of the generated world.

Outside that world it compares content words, which is a crude measure of an open answer; the
verdict's reason names the method used. The most obvious wrong answers with the right words earn
nothing (a negation, alternatives, a list of guesses, words in another order). A synonym earns
nothing either, and many wrong answers pass, so ``params.yaml`` must allow the rule judge there
explicitly (``rule_on_real_text``).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import groupby, pairwise

from stages.domain.core.records import Sample, Verdict
from stages.domain.core.words import phrase_pattern, words
from stages.domain.tasks import qa
from stages.domain.tasks.lexicon import (
    COLOURS,
    FUNCTION_WORDS,
    SEPARATORS,
    SHAPES,
    STOP_WORDS,
    Fact,
    content_words,
    facts,
    offers_alternatives,
    stem,
)
from stages.lib.judging.direct import DirectJudge

_SENTENCE = re.compile(r"[.;!?]+\s*|,?\s+(?:and\s+)?then\s+|,\s+(?=and\s)|[。；！？]+\s*|，?(?:然后|接着|随后)")
FULL_STOP = re.compile(r"[.;!?。；！？\n]+")
#: 不 does not count inside words such as 不断, "continually".
_NEGATION = re.compile(
    r"\b(?:not|no|never|without|nobody|nothing|neither|nor|cannot)\b|n['’]t\b|不(?![断停久同锈])|没|未(?!来)|ない|なかった|ません|ずに|않|ไม่",
    re.IGNORECASE,
)
#: Markers of the passive voice: the agent follows them.
_PASSIVE = ("by", "被", "によって", "ถูก")
#: Fewer words than this have no order to compare; if at most this share of them is in the
#: reference's order, the order differs.
_ORDERED_WORDS, _ORDERED_SHARE = 3, 0.5
#: Words of the generated world that may turn the order in which events are told.
_ORDERING = FUNCTION_WORDS - {"a", "and", "it", "that", "the", "then"}


@dataclass(frozen=True)
class RuleJudge(DirectJudge):
    """Judge by rule. ``full_share``, ``partial_share``: share of the reference's content words for
    full and for partial marks."""

    full_share: float
    partial_share: float
    name: str = "rule"

    def covers(self, sample: Sample, answer: str) -> Verdict:
        """Grade DarkEventInfer. Exactly one event may be claimed: a list of guesses scores 0, even
        with the right one in it."""
        reference, claimed = facts(sample.reference), facts(answer)
        if not reference:
            if (why := refusal(sample.reference, answer, self.partial_share)) is not None:
                return self._scored(0.0, why)
            share = _content_share(sample.reference, answer)
            score = 2.0 if share >= self.full_share else 1.0 if share >= self.partial_share else 0.0
            return self._scored(score, f"{share:.2f} of the reference's content words")
        if not claimed:
            return self._scored(0.0, "claims no event")
        if len(set(claimed)) > 1:
            return self._scored(0.0, f"claims {len(set(claimed))} events, one was asked for")
        return self._scored(*_agreement(claimed[0], reference[0]))

    def right(self, sample: Sample, answer: str) -> Verdict:
        """Grade MixVidQA and open questions. Only the full facts of the reference are right, in
        their order; a vague one is ambiguous, and ambiguous is wrong.

        In the generated world this is exact: another event, a second answer or a hedge makes the
        answer wrong, and so does any word too many in an open answer. What the reference leaves out
        of its subject may be told as the question tells it.
        """
        reference, claimed = facts(sample.reference), facts(answer)
        if not reference:
            if reference is not None and words(sample.reference):
                return self._scored(*_same_things(sample.reference, answer))
            if (why := refusal(sample.reference, answer, self.partial_share)) is not None:
                return self._scored(0.0, why)
            if sample.task == qa.NAME and (why := _further(sample, answer)) is not None:
                return self._scored(0.0, why)
            share = _content_share(sample.reference, answer)
            return self._scored(float(share >= self.full_share), f"{share:.2f} of the reference's content words")
        told, expected = ([fact for fact, _ in groupby(listed or ())] for listed in (claimed, reference))
        if len(told) != len(expected):
            asked = "one was" if len(expected) == 1 else f"{len(expected)} were"
            count = len(set(told)) if len(expected) == 1 else len(told)
            return self._scored(0.0, f"claims {count} events, {asked} asked for")
        if sample.task == qa.NAME and (why := _loose(sample.reference, answer, len(expected))) is not None:
            return self._scored(0.0, why)
        asked_of = _subject(sample.question)
        pairs = [(said, true) for said, true in zip(told, expected, strict=True) if not _is(said, true, asked_of)]
        return self._scored(float(not pairs), _agreement(*(pairs or [(told[0], expected[0])])[0])[1])

    def extract_events(self, text: str) -> tuple[str, ...]:
        """List atomic events, in order, each once: facts of the generated world, else clauses."""
        events = facts(text)
        if events is not None:
            return tuple(dict.fromkeys(" ".join(("the", *filter(None, fact))) for fact in events))
        return tuple(dict.fromkeys(clause for part in _SENTENCE.split(text) if (clause := part.strip(" ,.，、"))))

    def entailed(self, event: str, caption: str) -> Verdict:
        """Grade 1 if the caption entails the event (an exact caption entails a vaguer event, not
        the other way round)."""
        target, stated = facts(event), facts(caption)
        if target and stated is not None:
            entailed = any(fact.entails(target[0]) for fact in stated)
            return self._scored(float(entailed), "said" if entailed else "not said")
        if not target:
            nearest = max(FULL_STOP.split(caption), key=lambda sentence: _content_share(event, sentence))
            if (why := _denied(event, nearest) or _reordered(event, nearest)) is not None:
                return self._scored(0.0, why)
        share = _content_share(event, caption)
        return self._scored(float(share >= self.full_share), f"{share:.2f} of the event's content words")

    def complete(self, sample: Sample, caption: str) -> Verdict:
        """Share of the reference's events that the caption entails."""
        events = sample.events or self.extract_events(sample.reference)
        return self._told([self.entailed(event, caption) for event in events])

    def natural(self, sample: Sample, caption: str) -> Verdict:
        """Grade how little the caption repeats itself: its share of distinct word pairs relative to
        the reference's, at most 1.

        A crude substitute for a reader, which distinguishes babble and stuffing from text, no more.
        Without an event the grade is 0.
        """
        if not self.extract_events(caption):
            return self._scored(0.0, "tells no event")
        share = min(1.0, _distinct_share(caption) / _distinct_share(sample.reference))
        return self._scored(share, f"{share:.2f} of the reference's variety")


def refusal(reference: str, answer: str, partial_share: float) -> str | None:
    """Reason why an answer is wrong even with the reference's words; None if no rule
    applies."""
    if offers_alternatives(answer) and not offers_alternatives(reference):
        return "offers alternatives"
    parts = [part for sentence in FULL_STOP.split(answer) for part in SEPARATORS.split(sentence) if words(part)]
    shares = [_content_share(reference, part) for part in parts]
    matching = sum(share >= partial_share for share in shares)
    # A part that only names the agent is neither the event nor another one.
    others = sum(
        share == 0 or (share < partial_share and len(content_words(part)) > 1)
        for part, share in zip(parts, shares, strict=True)
    )
    if matching and others > max(1, matching):
        return f"lists {matching + others} guesses"
    return _denied(reference, answer) or _reordered(reference, answer)


def _subject(question: str) -> Fact:
    """Colour and shape that a question names, if it names one of each; without a verb."""
    named = set(words(question))
    colours, shapes = named & set(COLOURS), named & set(SHAPES)
    return Fact(colours.pop() if len(colours) == 1 else "", shapes.pop() if len(shapes) == 1 else "", "")


def _is(claimed: Fact, reference: Fact, asked_of: Fact) -> bool:
    """True if a claimed event is the reference; what the reference leaves out of its subject may be
    told as the question tells it."""
    return (
        claimed.verb == reference.verb
        and claimed.colour in (reference.colour, reference.colour or asked_of.colour)
        and claimed.shape in (reference.shape, reference.shape or asked_of.shape)
    )


def _loose(reference: str, answer: str, events: int) -> str | None:
    """Reason if a sentence of the generated world holds more than the events that it states: a
    second subject, or words of another order."""
    kinds = "".join(
        "c" if word in COLOURS else "s" if word in SHAPES else "" if word in FUNCTION_WORDS else "v"
        for word in words(answer)
    )
    if not re.fullmatch("(c?s?v)+", kinds):
        return "names more than its events"
    ordering = [[word for word in words(text) if word in _ORDERING] for text in (reference, answer)]
    return "orders its events by words of its own" if events > 1 and ordering[0] != ordering[1] else None


def _same_things(reference: str, answer: str) -> tuple[float, str]:
    """Compare an answer with a reference that names things of the generated world and no event:
    equal words, but for those without content."""
    expected, told = list(words(reference)), list(words(answer))
    if any(word not in FUNCTION_WORDS for word in expected):
        expected, told = ([word for word in listed if word not in FUNCTION_WORDS] for listed in (expected, told))
    same = list(dict.fromkeys(told)) == list(dict.fromkeys(expected))
    return float(same), "names the same" if same else "names something else"


def _further(sample: Sample, answer: str) -> str | None:
    """Reason if an open answer says more than the reference and the question do: a part of it that
    is mostly of other words, or as many words of its own as the reference has."""
    known = content_words(f"{sample.reference} {sample.question}")
    for sentence in FULL_STOP.split(answer):
        for part in SEPARATORS.split(sentence):
            told = content_words(part)
            if len(told & known) < len(told - known):
                return f"gives another answer: {part.strip():.80}"
    beside = len(content_words(answer) - known)
    if beside and beside >= len(content_words(sample.reference)):
        return "says as much beside the reference as the reference does"
    return None


def _agreement(claimed: Fact, reference: Fact) -> tuple[float, str]:
    """Grade one claimed event against the reference, 2, 1 or 0, with the reason."""
    colour, shape = claimed.colour == reference.colour, claimed.shape == reference.shape
    if claimed == reference:
        return 2.0, "covers the reference"
    if reference.entails(claimed):
        return 1.0, "true, but vague"
    if claimed.verb == reference.verb and (colour or shape):
        return 1.0, "the event is right, its subject only in part"
    return 0.0, "another event" if claimed.verb != reference.verb else "another subject"


def _distinct_share(text: str) -> float:
    """Share of distinct pairs among a text's pairs of neighbouring words; 1 for a text of one word
    or none."""
    pairs = list(pairwise(words(text)))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _content_share(reference: str, answer: str) -> float:
    """Share of the reference's content words that the answer has too; of all its words if it has no
    content word."""
    expected = content_words(reference) or {stem(word) for word in words(reference)}
    answered = {stem(word) for word in words(answer)}
    return len(expected & answered) / len(expected) if expected else 0.0


def _denied(reference: str, answer: str) -> str | None:
    denied = bool(_NEGATION.search(answer)) != bool(_NEGATION.search(reference))
    return "says no where the reference says yes, or the other way round" if denied else None


def _reordered(reference: str, answer: str) -> str | None:
    """Reason if the shared words are in another order, as with subject and object swapped; else
    None."""
    passive = phrase_pattern(_PASSIVE)
    if passive.search(reference) or passive.search(answer):
        return None
    expected, answered = (
        list(dict.fromkeys(stem(w) for w in words(text) if w not in STOP_WORDS)) for text in (reference, answer)
    )
    position = {word: number for number, word in enumerate(expected)}
    positions = [position[word] for word in answered if word in position]
    ordered: list[int] = []  # the smallest end of an increasing run of each length
    for number in positions:
        at = bisect_left(ordered, number)
        ordered[at : at + 1] = [number]
    return (
        "the same words in another order"
        if len(positions) >= _ORDERED_WORDS and len(ordered) <= _ORDERED_SHARE * len(positions)
        else None
    )
