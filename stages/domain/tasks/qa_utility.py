"""QA utility of a caption: the share of questions about the reference that a reader answers right
from the caption alone.

The idea is that of QA-based summary evaluation (QuestEval, arXiv 2103.12693) and of VDC
(arXiv 2410.03051): questions come from the annotation, or once from the reference; an examiner
that sees only the caption answers them; answers are compared with the true ones. A question that
the same examiner answers right from an empty caption measures no caption, so it is dropped and
counted.
"""

from __future__ import annotations

from typing import NamedTuple

from stages.domain.core.records import Sample, Verdict
from stages.domain.tasks.rewards import Judge

#: Most questions about one reference.
MOST_QUESTIONS = 10
#: Most requests for a caption: the questions, then from no caption and from this one an answer and
#: its comparison for each.
MOST_CALLS = 1 + 4 * MOST_QUESTIONS


class Utility(NamedTuple):
    """``share``: right answers among ``asked`` questions. ``dropped``: questions that no caption
    was needed for."""

    share: float
    asked: int
    dropped: int

    @property
    def parts(self) -> dict[str, float]:
        """Counts for the record of a score; they add nothing to it."""
        return {"questions": float(self.asked), "dropped_questions": float(self.dropped)}


def qa_utility(sample: Sample, caption: str, judge: Judge) -> Utility | Verdict:
    """Compute the utility of a caption; a verdict if the judge did not score it.

    ``invalid`` if no question is left: the caption cannot be measured, which is not its fault.
    """
    pairs = sample.qa_pairs or judge.ask_about(sample.reference)
    if isinstance(pairs, Verdict):
        return pairs
    pairs = pairs[:MOST_QUESTIONS]
    kept = right = 0
    for pair in pairs:
        told = []
        for text in ("", caption):
            said = judge.answer_from(pair.question, text)
            if isinstance(said, Verdict):
                return said
            # An answer is left empty where the text does not tell: no need to compare it.
            agreement = judge.agrees(pair.question, pair.answer, said) if said else None
            if isinstance(agreement, Verdict):
                return agreement
            told.append(agreement is not None and agreement.right)
        blind, seen = told
        kept += not blind
        right += seen and not blind
    dropped = len(pairs) - kept
    if not kept:
        reason = f"all {dropped} questions are answered without a caption" if dropped else "no question"
        return Verdict(outcome="invalid", reason=reason, judge=judge.name)
    return Utility(right / kept, kept, dropped)
