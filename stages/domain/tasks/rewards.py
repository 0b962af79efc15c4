"""Parts of rewards: format gate, keyword bonus, the two scorings, and the protocols of judge and
embedder.

A reward is a pure function of reply, sample and judge. A wrong reply earns 0; a reply that the
judge could not score has ``None``, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages.domain.core.records import OpenQuestion, Record, Sample, Verdict
from stages.domain.core.replies import Reply, parse_analysis
from stages.domain.core.words import phrase_pattern, words

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Phrase = Annotated[str, Field(min_length=1)]


class LexicalLikeness(Record):
    """Overlap of the words of two phrases: deterministic, without a model, blind to synonyms."""

    kind: Literal["lexical"]


class SentenceLikeness(Record):
    """Cosine of two phrases' embeddings under a sentence-transformers model, such as
    sentence-transformers/all-MiniLM-L6-v2."""

    kind: Literal["sentence_transformers"]
    #: Name of a model on the hub, or a folder that holds one.
    model: str = Field(min_length=1)
    #: A commit of the hub's repository; for a folder it is only a label of its weights.
    revision: str = Field(min_length=1)


Likeness = Annotated[LexicalLikeness | SentenceLikeness, Field(discriminator="kind")]


class RewardRules(Record):
    """How task scores become rewards (``rewards`` in ``params.yaml``).

    ``hardened``: the total lies between 0 and the reference's own score, and style is paid only in
    proportion to correct content. ``paper``: as published, exploits included. The scoring of the
    released code (``compat``) is not a reward here: see :mod:`stages.tools.suites.released`.
    ``unit``: divided by the sample's maximum. ``native``: the task's own score (DarkEventInfer up
    to 2, captions up to 1.9).
    """

    scoring: Literal["hardened", "paper"]
    scale: Literal["unit", "native"]
    precision_weight: Weight
    keyword_bonus: Weight
    keyword_cap: Weight
    hedge_cost: Weight
    #: ``hardened`` counts every occurrence as whole words; ``paper`` counts each phrase once,
    #: inside other words too, as the released code does.
    temporal_phrases: tuple[Phrase, ...]
    hedging_phrases: tuple[Phrase, ...]
    #: Under ``hardened``, a reply fails the format gate if its thinking has fewer words of its own
    #: (see ``own_words``) than this; 0: thinking may be empty.
    min_thinking_words: int = Field(ge=0)
    #: Event coverage below the first threshold scores 0, below the second 0.5, else 1.
    coverage_steps: tuple[Share, Share]
    #: Score of the caption after a structured analysis (VideoCap-R1): the E-score, event coverage
    #: in steps, or the CN-score, the mean of completeness and naturalness. ``qa_utility``: the
    #: share of questions about the reference that the judge answers right from the caption alone,
    #: without those that it answers right from an empty caption; it also takes the place of event
    #: recall in captions without an analysis.
    caption_scorer: Literal["coverage", "completeness_naturalness", "qa_utility"]
    #: Subjects and phrases match if their similarity is at least this.
    match_threshold: Share
    #: The measure of that similarity.
    embedder: Likeness

    @model_validator(mode="after")
    def _steps_rise(self) -> RewardRules:
        if self.coverage_steps[0] > self.coverage_steps[1]:
            raise ValueError(
                f"coverage_steps {list(self.coverage_steps)}: the first threshold must not exceed the second"
            )
        return self


Result = TypeVar("Result")


class Agreement(NamedTuple):
    """Verdict on an answer: right or wrong, and how well it matches the true one, from 0 to 5."""

    right: bool
    marks: int


class Judge(Protocol):
    """Grades answers. Every verdict may be ``invalid`` or ``unavailable`` instead of a score."""

    @property
    def name(self) -> str: ...

    @property
    def usage(self) -> Mapping[str, int]:
        """Counts of this process's requests and their cost; empty for a judge that costs
        nothing."""
        ...

    @property
    def last_error(self) -> str:
        """Reason of the last request without a usable answer; empty if there was none."""
        ...

    @property
    def max_unavailable(self) -> float:
        """Largest share of replies that may stay without a verdict."""
        ...

    @property
    def remedy(self) -> str:
        """Advice where more replies than that have no verdict."""
        ...

    def score_many(self, score: Callable[[Judge], Result]) -> Result:
        """Return the result of ``score`` on this judge's verdicts; requests to a server run
        concurrently.

        ``score`` may be called several times, with a stand-in for this judge, and must have no side
        effects.
        """
        ...

    def covers(self, sample: Sample, answer: str) -> Verdict:
        """Grade 2 if the answer covers the reference, 1 if in part, 0 if wrong, irrelevant, empty
        or a list of guesses."""
        ...

    def right(self, sample: Sample, answer: str) -> Verdict:
        """Grade 1 if right, 0 if wrong or ambiguous."""
        ...

    def extract_events(self, text: str) -> tuple[str, ...] | Verdict:
        """List at most ten atomic events of a caption, in order; a verdict other than ``scored`` if
        that failed."""
        ...

    def entailed(self, event: str, caption: str) -> Verdict:
        """Grade 1 if ``caption`` entails ``event``, else 0."""
        ...

    def complete(self, sample: Sample, caption: str) -> Verdict:
        """Grade how much of the reference's content the caption has, in [0, 1]."""
        ...

    def natural(self, sample: Sample, caption: str) -> Verdict:
        """Grade how natural the caption reads, in [0, 1]; the reference itself has 1."""
        ...

    def ask_about(self, reference: str) -> tuple[OpenQuestion, ...] | Verdict:
        """Write at most ten questions that a description of a video answers, with their answers."""
        ...

    def answer_from(self, question: str, caption: str) -> str | Verdict:
        """Answer a question from the caption alone; empty if the caption does not answer it."""
        ...

    def agrees(self, question: str, reference: str, answer: str) -> Agreement | Verdict:
        """Judge whether ``answer`` means the same as ``reference``."""
        ...


class Embedder(Protocol):
    """Measures the similarity of phrases."""

    def similarities(self, these: Sequence[str], those: Sequence[str]) -> NDArray[np.float64]:
        """Compute similarities in [0, 1], shape (these, those); symmetric, and exactly 1 for equal
        phrases."""
        ...


@dataclass(frozen=True)
class Referee:
    """Judge and embedder that the scoring rules of the tasks use.

    ``by_task``: judges of single tasks, before :meth:`of`; all other tasks have ``judge``.
    """

    judge: Judge
    embedder: Embedder
    by_task: Mapping[str, Judge] = field(default_factory=dict)

    def of(self, task: str) -> Referee:
        """Referee of one task's replies."""
        return Referee(self.by_task.get(task, self.judge), self.embedder)

    @property
    def judges(self) -> tuple[Judge, ...]:
        """The different judges, each once."""
        return tuple({id(judge): judge for judge in (self.judge, *self.by_task.values())}.values())


class TaskScore(Record):
    """A task's score of one well-formed reply: ``value`` of at most ``maximum``; None if a judge
    did not score it."""

    value: float | None
    maximum: float = Field(gt=0)
    parts: dict[str, float] = Field(default_factory=dict)
    reason: str = ""


def unavailable(verdict: Verdict, maximum: float) -> TaskScore:
    """Build the score of a reply that could not be judged, with the judge's reason."""
    return TaskScore(value=None, maximum=maximum, reason=f"{verdict.judge}: {verdict.outcome}: {verdict.reason}")


def right_or_wrong(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all
    """Score a reply of a task whose answers are right, 1, or wrong, 0, as the judge says."""
    verdict = referee.judge.right(sample, reply.answer)
    if verdict.score is None:
        return unavailable(verdict, 1.0)
    return TaskScore(value=verdict.score, maximum=1.0, parts={"right": verdict.score}, reason=verdict.reason)


def own_words(thinking: str, question: str) -> int:
    """Count the different words of a thinking that are not in the question; of a structured
    thinking, words of values only, not of keys.

    A repeated word counts once, so neither repetition nor a copy of the question counts as
    thinking. Words of the options count, since thinking about a choice names them.
    """
    analysis = parse_analysis(thinking)
    texts = (
        [thinking]
        if analysis is None
        else [part for s in analysis.subjects for part in (s.name, *s.attributes, *s.actions)]
    )
    return len(set(words(" ".join(texts))) - set(words(question)))


def lacks_thinking(reply: Reply, sample: Sample, rules: RewardRules) -> bool:
    """True if the reply fails the format gate by too little thinking. The sample's own trace always
    passes."""
    if rules.scoring == "paper" or rules.min_thinking_words == 0:
        return False
    truth = own_words(sample.trace.thinking, sample.question) if sample.trace is not None else rules.min_thinking_words
    return own_words(reply.thinking, sample.question) < min(rules.min_thinking_words, truth)


def _count(text: str, phrases: tuple[str, ...]) -> int:
    return len(phrase_pattern(phrases).findall(text))


def keyword_count(text: str, rules: RewardRules) -> int:
    """Count the temporal phrases of a text, as whole words."""
    return _count(text, rules.temporal_phrases)


def published_bonus(text: str, rules: RewardRules) -> float:
    """Compute R_kw as VidBridge-R1's released code does: each phrase in the text counts once,
    inside other words too.

    Each temporal phrase adds ``keyword_bonus`` up to ``keyword_cap``; any hedging phrase first caps
    the bonus at 0, and each costs ``hedge_cost``.
    """
    lower = text.lower()
    temporal, hedges = (
        sum(phrase.lower() in lower for phrase in phrases)
        for phrases in (rules.temporal_phrases, rules.hedging_phrases)
    )
    return _bonus(temporal, hedges, rules)


def hardened_bonus(text: str, reference: str, recall: float, rules: RewardRules) -> float:
    """Compute R_kw of a caption, capped at the bonus of the reference's own phrases and scaled by
    ``recall``.

    Phrases count as whole words ("strengthen" does not contain "then"). Hedging beyond the
    reference's costs as much as published, whether the caption is right or wrong. The reference
    itself has recall 1 and earns the maximum.
    """
    hedges = max(0, _count(text, rules.hedging_phrases) - _count(reference, rules.hedging_phrases))
    bonus = _bonus(keyword_count(text, rules), hedges, rules)
    return min(bonus, most_hardened_bonus(reference, rules)) * recall if bonus > 0 else bonus


def most_hardened_bonus(reference: str, rules: RewardRules) -> float:
    """Compute the reference's own bonus, the maximum of :func:`hardened_bonus`."""
    return _bonus(keyword_count(reference, rules), 0, rules)


def _bonus(temporal: int, hedges: int, rules: RewardRules) -> float:
    bonus = min(temporal * rules.keyword_bonus, rules.keyword_cap)
    return (min(bonus, 0.0) if hedges else bonus) - hedges * rules.hedge_cost


def coverage_step(coverage: float, rules: RewardRules) -> float:
    """Map event coverage to {0, 0.5, 1}, as VideoCap-R1's E-score does; the thresholds are
    parameters."""
    low, high = rules.coverage_steps
    if coverage >= high:
        return 1.0
    return 0.5 if coverage >= low else 0.0


def f1(matched: float, predicted: float, reference: float) -> float:
    """Compute soft F1 from a summed match weight and the two counts; 1 if both sides are empty, 0
    if one is."""
    if predicted == 0 and reference == 0:
        return 1.0
    if predicted == 0 or reference == 0:
        return 0.0
    precision, recall = matched / predicted, matched / reference
    return 2 * precision * recall / (precision + recall) if matched else 0.0
