"""The similarity judge: cosine of answer and reference under a sentence-transformers model.

A cosine sees what a text is about. Measured on 300 pairs (``make bench-judges``), denials, swapped
roles and lists of guesses have full marks more often than paraphrases do, so by itself it is no
reward; ``refusals`` lets the rule judge refuse the most obvious of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stages.domain.core.records import Sample, Verdict
from stages.lib.judging.embedder import SentenceEmbedder, load_sentences
from stages.lib.judging.local import LocalJudge, Measured, Pair, sentences
from stages.lib.judging.rule import refusal
from stages.lib.judging.weights import judge_device, unavailable
from stages.params import SimilarityJudgeParams

#: Share of the reference's content words from which a part of an answer is one of its guesses; that
#: of the recipes for the rule judge.
_GUESS_SHARE = 0.4


class CosineModel:
    """Cosines of pairs of texts."""

    kind = "cosine"
    size = 1

    def __init__(self, name: str, embedder: SentenceEmbedder) -> None:
        self.name = name
        self._embedder = embedder

    def measure(self, pairs: Sequence[Pair]) -> list[Measured]:
        readable = [pair for pair in pairs if all(map(self._embedder.reads_whole, pair))]
        cosines = dict(zip(readable, self._embedder.cosines(readable), strict=True))
        return [(cosines[pair],) if pair in cosines else None for pair in pairs]


def load_cosine(params: SimilarityJudgeParams, field: str) -> CosineModel:
    """Load the model, on the GPU if there is one.

    Raises:
        JudgeError: it is neither in the cache nor downloadable, or not a sentence-transformers
            model.
    """
    problem = partial(unavailable, params, field, "a sentence-transformers model")
    embedder = load_sentences(params.model, params.revision, judge_device(), problem)
    return CosineModel(f"{params.model}@{params.revision}", embedder)


class SimilarityJudge(LocalJudge[SimilarityJudgeParams]):
    """Grades by the cosine to the reference."""

    def covers(self, sample: Sample, answer: str) -> Verdict:
        return self._graded(sample.reference, answer, ((self.params.full, 2.0), (self.params.partial, 1.0)))

    def right(self, sample: Sample, answer: str) -> Verdict:
        return self._graded(sample.reference, answer, ((self.params.full, 1.0),))

    def entailed(self, event: str, caption: str) -> Verdict:
        """Grade 1 if a sentence of the caption is alike to the event."""
        best, too_long = -1.0, False
        for sentence in sentences(caption):
            if self._refused(event, sentence) is None:
                measured = self._pairs.of(Pair(event, sentence))
                too_long |= measured is None
                best = max(best, measured[0]) if measured is not None else best
        if best < self.params.full and too_long:
            return self._too_long()
        return self._scored(float(best >= self.params.full), f"cosine {best:.2f}" if best >= 0 else "not said")

    def _graded(self, reference: str, answer: str, steps: Sequence[tuple[float, float]]) -> Verdict:
        if not sentences(answer):
            return self._scored(0.0, "says nothing")
        if (why := self._refused(reference, answer)) is not None:
            return self._scored(0.0, why)
        measured = self._pairs.of(Pair(reference, answer))
        if measured is None:
            return self._too_long()
        (cosine,) = measured
        return self._scored(next((score for least, score in steps if cosine >= least), 0.0), f"cosine {cosine:.2f}")

    def _refused(self, reference: str, answer: str) -> str | None:
        return refusal(reference, answer, _GUESS_SHARE) if self.params.refusals else None
