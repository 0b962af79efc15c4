"""Judges that compare two texts by a model in this process: in batches, each pair once, with
measurements kept in the cache that the endpoints' answers are in.

A pair of texts is measured by the model and graded by a rule. A text that the model cannot read
whole has no verdict (``invalid``): a cut one would be graded for its beginning.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from stages.domain.core.records import Sample, Verdict
from stages.domain.core.words import words
from stages.lib.judging.direct import DirectJudge
from stages.lib.judging.questions import in_rounds
from stages.lib.judging.rule import FULL_STOP, RuleJudge
from stages.params import LocalJudgeParams
from stages.runtime.endpoint.answer_cache import open_cache

Result = TypeVar("Result")
ParamsT = TypeVar("ParamsT", bound=LocalJudgeParams)

#: Measurements are rounded to this: the other texts of a batch move them by less (1e-6).
DECIMALS = 4
#: Lists events and compares the variety of words, as for text that no model reads.
_RULE = RuleJudge(full_share=1.0, partial_share=1.0)


class Pair(NamedTuple):
    """Two texts: does ``hypothesis`` follow from ``premise``, or how alike are they?"""

    premise: str
    hypothesis: str


#: Numbers that a model gives a pair; None: one of the texts is longer than it reads.
Measured = tuple[float, ...] | None


class PairModel(Protocol):
    """A loaded model. ``name``: model and revision; ``kind``: of its measurements, in cache keys;
    ``size``: how many numbers it gives a pair."""

    name: str
    kind: str
    size: int

    def measure(self, pairs: Sequence[Pair]) -> list[Measured]: ...


class Pairs(Protocol):
    """Measurements of pairs, by whatever way."""

    name: str

    def of(self, pair: Pair) -> Measured: ...


class MeasuredPairs:
    """Measurements by a model, kept in memory and in the cache of answers.

    ``usage`` counts ``pairs`` and ``pairs_cached`` of this process, and ``pairs_too_long``.
    """

    def __init__(self, model: PairModel, folder: Path) -> None:
        self.name = model.name
        self.usage: Counter[str] = Counter()
        self.last_error = ""
        self._model, self._folder = model, folder

    def of(self, pair: Pair) -> Measured:
        return self.all([pair])[pair]

    def all(self, pairs: Collection[Pair]) -> dict[Pair, Measured]:
        """Measure each pair; those in no cache in batches.

        Raises:
            JudgeError: the cache cannot be used.
        """
        found: dict[Pair, Measured] = {}
        self.usage["pairs"] += len(pairs)
        with open_cache(self._folder) as cache:
            for pair in pairs:
                if (text := cache.get(self._key(pair))) is not None:
                    found[pair] = tuple(json.loads(text))
            self.usage["pairs_cached"] += len(found)
            new = [pair for pair in pairs if pair not in found]
            for pair, measured in zip(new, self._model.measure(new) if new else (), strict=True):
                found[pair] = measured
                if measured is None:
                    self.usage["pairs_too_long"] += 1
                    self.last_error = f"a text is longer than {self.name} reads: {pair.hypothesis:.60}…"
                else:
                    cache.put(self._key(pair), json.dumps(measured))
        return found

    def collecting(self, answers: Mapping[Pair, Measured], missing: dict[Pair, None]) -> Pairs:
        return _Collected(self.name, self._model.size, answers, missing)

    def _key(self, pair: Pair) -> str:
        return hashlib.sha256(json.dumps([self._model.kind, self.name, *pair]).encode()).hexdigest()


class _Collected:
    """Measurements from a table; collects those that are missing, which count as nothing."""

    def __init__(self, name: str, size: int, answers: Mapping[Pair, Measured], missing: dict[Pair, None]) -> None:
        self.name = name
        self._size, self._answers, self._missing = size, answers, missing

    def of(self, pair: Pair) -> Measured:
        if pair in self._answers:
            return self._answers[pair]
        self._missing[pair] = None
        return (0.0,) * self._size


class LocalJudge(DirectJudge, ABC, Generic[ParamsT]):
    """A judge by measurements of pairs; a subclass grades them.

    Events are listed, and naturalness is graded, as the rule judge does: no model here writes.
    """

    remedy = (
        "The model reads no longer sentences: take one that does, shorten replies (max_completion_tokens), or allow"
        " more (max_unavailable)"
    )

    def __init__(self, params: ParamsT, pairs: Pairs) -> None:
        self.name = pairs.name
        self.params, self._pairs = params, pairs

    @property
    def max_unavailable(self) -> float:
        return self.params.max_unavailable

    @property
    def usage(self) -> Mapping[str, int]:  # type: ignore[override]
        return self._pairs.usage if isinstance(self._pairs, MeasuredPairs) else {}

    @property
    def last_error(self) -> str:  # type: ignore[override]
        return self._pairs.last_error if isinstance(self._pairs, MeasuredPairs) else ""

    def score_many(self, score: Callable[[Self], Result]) -> Result:
        """Return the result of ``score``; pairs are collected and measured in batches.

        Raises:
            JudgeError: the cache cannot be used.
        """
        pairs = self._pairs
        assert isinstance(pairs, MeasuredPairs)
        return in_rounds(
            pairs.all,
            lambda answers, missing: type(self)(self.params, pairs.collecting(answers, missing)),
            score,
        )

    @abstractmethod
    def covers(self, sample: Sample, answer: str) -> Verdict: ...

    @abstractmethod
    def right(self, sample: Sample, answer: str) -> Verdict: ...

    @abstractmethod
    def entailed(self, event: str, caption: str) -> Verdict: ...

    def extract_events(self, text: str) -> tuple[str, ...]:
        return _RULE.extract_events(text)

    def complete(self, sample: Sample, caption: str) -> Verdict:
        """Share of the reference's events that the caption tells."""
        events = sample.events or self.extract_events(sample.reference)
        return self._told([self.entailed(event, caption) for event in events])

    def natural(self, sample: Sample, caption: str) -> Verdict:
        return _RULE.natural(sample, caption).model_copy(update={"judge": self.name})

    def _too_long(self) -> Verdict:
        return Verdict(outcome="invalid", reason="a text is longer than the model reads", judge=self.name)


def sentences(text: str) -> list[str]:
    """Split a text at full stops; those that hold a word."""
    return [part.strip() for part in FULL_STOP.split(text) if words(part)]
