"""From a reply and a judge's word to a reward: format gate, keyword bonus, and the two scorings.

A reward is a pure function of reply, sample and judge. Wrong is 0; a judge that could not answer is ``None``, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages.domain.core.records import Record, Sample, Verdict
from stages.domain.core.replies import Reply, parse_analysis
from stages.domain.core.words import phrase_pattern, words

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Phrase = Annotated[str, Field(min_length=1)]


class LexicalLikeness(Record):
    """Words that two phrases share: deterministic, needs nothing, knows no synonym."""

    kind: Literal["lexical"]


class SentenceLikeness(Record):
    """Cosine of two phrases' embeddings under a sentence-transformers model, such as sentence-transformers/all-MiniLM-L6-v2."""

    kind: Literal["sentence_transformers"]
    #: Its name on the hub, or a folder that holds one.
    model: str = Field(min_length=1)
    #: A commit of the hub's repository; of a folder it only says which weights lie there.
    revision: str = Field(min_length=1)


Likeness = Annotated[LexicalLikeness | SentenceLikeness, Field(discriminator="kind")]


class RewardRules(Record):
    """How task scores become rewards (``rewards`` in ``params.yaml``).

    ``hardened``: the total lies between 0 and what the reference itself scores, and style pays as far as the content is right.
    ``paper``: as published, exploits and all. What the released code makes of a reply (``compat``) is no reward here: see
    :mod:`stages.tools.suites.released`.
    ``unit``: divided by the sample's maximum. ``native``: as the task scores it (DarkEventInfer up to 2, captions up to 1.9).
    """

    scoring: Literal["hardened", "paper"]
    scale: Literal["unit", "native"]
    precision_weight: Weight
    keyword_bonus: Weight
    keyword_cap: Weight
    hedge_cost: Weight
    #: ``hardened`` counts them as whole words, as often as they are said; ``paper`` as the released code does, inside other words too
    #: and each phrase once.
    temporal_phrases: tuple[Phrase, ...]
    hedging_phrases: tuple[Phrase, ...]
    #: Under ``hardened`` the format gate closes for thinking with fewer words of its own (see ``own_words``); 0: thinking may be empty.
    min_thinking_words: int = Field(ge=0)
    #: Event coverage under the first threshold scores 0, under the second 0.5, else 1.
    coverage_steps: tuple[Share, Share]
    #: What the caption after a structured analysis is paid for (VideoCap-R1): the E-score, event coverage in steps, or the CN-score, the
    #: mean of completeness and naturalness.
    caption_scorer: Literal["coverage", "completeness_naturalness"]
    #: Subjects and phrases match when their similarity is at least this.
    match_threshold: Share
    #: What that similarity is.
    embedder: Likeness

    @model_validator(mode="after")
    def _steps_rise(self) -> RewardRules:
        if self.coverage_steps[0] > self.coverage_steps[1]:
            raise ValueError(f"coverage_steps {list(self.coverage_steps)}: the first threshold must not exceed the second")
        return self


Result = TypeVar("Result")


class Judge(Protocol):
    """Says how good an answer is. Every verdict may be ``invalid`` or ``unavailable`` instead of a score."""

    @property
    def name(self) -> str: ...

    @property
    def usage(self) -> Mapping[str, int]:
        """Counts of what it was asked in this process and what that cost; empty for a judge that costs nothing."""
        ...

    @property
    def last_error(self) -> str:
        """Why the last question without a readable answer had none; empty where there was none."""
        ...

    @property
    def max_unavailable(self) -> float:
        """The share of replies that may be left without a verdict."""
        ...

    def score_many(self, score: Callable[[Judge], Result]) -> Result:
        """The result of ``score`` on this judge's verdicts; where others are asked for them, they are asked side by side.

        ``score`` may be called several times, with a stand-in for this judge, and must not change anything.
        """
        ...

    def covers(self, sample: Sample, answer: str) -> Verdict:
        """2 covers the reference, 1 partly, 0 wrong, irrelevant, empty or a list of guesses."""
        ...

    def right(self, sample: Sample, answer: str) -> Verdict:
        """1 right, 0 wrong or ambiguous."""
        ...

    def extract_events(self, text: str) -> tuple[str, ...] | Verdict:
        """At most ten atomic events of a caption, in order; a verdict that is not ``scored`` where they could not be had."""
        ...

    def entailed(self, event: str, caption: str) -> Verdict:
        """1 when ``caption`` entails ``event``, else 0."""
        ...

    def complete(self, sample: Sample, caption: str) -> Verdict:
        """How much of what the reference tells the caption tells too, in [0, 1]."""
        ...

    def natural(self, sample: Sample, caption: str) -> Verdict:
        """How much the caption reads like something a person would write, in [0, 1]; the reference's own is 1."""
        ...


class Embedder(Protocol):
    """Whoever says how much alike two phrases are."""

    def similarities(self, these: Sequence[str], those: Sequence[str]) -> NDArray[np.float64]:
        """A table of shape (these, those), in [0, 1], the same both ways round; exactly 1 for equal phrases."""
        ...


@dataclass(frozen=True)
class Referee:
    """Whom the rules of the tasks may ask about a reply."""

    judge: Judge
    embedder: Embedder


class TaskScore(Record):
    """What a task made of one well-formed reply: ``value`` of at most ``maximum``; None when a judge could not say."""

    value: float | None
    maximum: float = Field(gt=0)
    parts: dict[str, float] = Field(default_factory=dict)
    reason: str = ""


def unavailable(verdict: Verdict, maximum: float) -> TaskScore:
    """A reply that could not be scored, with the judge's reason."""
    return TaskScore(value=None, maximum=maximum, reason=f"{verdict.judge}: {verdict.outcome}: {verdict.reason}")


def own_words(thinking: str, question: str) -> int:
    """How many different words of a thinking are not the question's; of a structured one those of its values, not its keys.

    A word that is repeated counts once, so neither repetition nor the question's own text passes for thought. Words of the options
    count: naming one of them is what thinking about a choice is.
    """
    analysis = parse_analysis(thinking)
    said = [thinking] if analysis is None else [part for s in analysis.subjects for part in (s.name, *s.attributes, *s.actions)]
    return len(set(words(" ".join(said))) - set(words(question)))


def lacks_thinking(reply: Reply, sample: Sample, rules: RewardRules) -> bool:
    """Whether the format gate closes for want of thinking. No more is asked than the sample's own trace has: the truth passes."""
    if rules.scoring == "paper" or rules.min_thinking_words == 0:
        return False
    truth = own_words(sample.trace.thinking, sample.question) if sample.trace is not None else rules.min_thinking_words
    return own_words(reply.thinking, sample.question) < min(rules.min_thinking_words, truth)


def _count(text: str, phrases: tuple[str, ...]) -> int:
    return len(phrase_pattern(phrases).findall(text))


def keyword_count(text: str, rules: RewardRules) -> int:
    """How many temporal phrases a text holds as whole words."""
    return _count(text, rules.temporal_phrases)


def published_bonus(text: str, rules: RewardRules) -> float:
    """R_kw as VidBridge-R1's released code counts: each phrase that the text holds, be it inside another word, once.

    Each temporal phrase adds ``keyword_bonus`` up to ``keyword_cap``; any hedging phrase first caps the bonus at 0, and each
    costs ``hedge_cost``.
    """
    lower = text.lower()
    temporal, hedges = (
        sum(phrase.lower() in lower for phrase in phrases) for phrases in (rules.temporal_phrases, rules.hedging_phrases)
    )
    return _bonus(temporal, hedges, rules)


def hardened_bonus(text: str, reference: str, recall: float, rules: RewardRules) -> float:
    """R_kw for telling the right events in order: at most what the reference's own phrases earn, and the share ``recall`` of that.

    Phrases count as whole words ("strengthen" holds no "then"). Hedging costs what it costs as published, be the caption right or
    wrong, as far as it hedges more than the reference does: the reference has recall 1 and so earns the most that there is.
    """
    hedges = max(0, _count(text, rules.hedging_phrases) - _count(reference, rules.hedging_phrases))
    bonus = _bonus(keyword_count(text, rules), hedges, rules)
    return min(bonus, most_hardened_bonus(reference, rules)) * recall if bonus > 0 else bonus


def most_hardened_bonus(reference: str, rules: RewardRules) -> float:
    """The reference's own bonus: the most that :func:`hardened_bonus` gives."""
    return _bonus(keyword_count(reference, rules), 0, rules)


def _bonus(temporal: int, hedges: int, rules: RewardRules) -> float:
    bonus = min(temporal * rules.keyword_bonus, rules.keyword_cap)
    return (min(bonus, 0.0) if hedges else bonus) - hedges * rules.hedge_cost


def coverage_step(coverage: float, rules: RewardRules) -> float:
    """Event coverage onto {0, 0.5, 1}, as VideoCap-R1's E-score does; the thresholds are parameters."""
    low, high = rules.coverage_steps
    if coverage >= high:
        return 1.0
    return 0.5 if coverage >= low else 0.0


def f1(matched: float, predicted: float, reference: float) -> float:
    """Soft F1 from a summed match weight and the two counts; 1 when both sides are empty, 0 when one is."""
    if predicted == 0 and reference == 0:
        return 1.0
    if predicted == 0 or reference == 0:
        return 0.0
    precision, recall = matched / predicted, matched / reference
    return 2 * precision * recall / (precision + recall) if matched else 0.0
