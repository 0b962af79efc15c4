"""Score captions against a reference: recall of its events, and precision of the caption's own
(AutoDQ, arXiv 2407.00634)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.domain.core.records import Verdict
from stages.domain.core.replies import final_answer
from stages.domain.tasks.caption import MAX_EVENTS

#: Judges whether a text contains something: (what, text).
Tells = Callable[[str, str], Verdict]
#: Lists the contents of a text.
Lists = Callable[[str], tuple[str, ...] | Verdict]


def recall_and_precision(
    caption: str, reference: str, events: Sequence[str] | None, lists: Lists, tells: Tells, nothing: float
) -> tuple[float, float] | None:
    """Recall and precision of a caption, in [0, 1]; None if the judge was not able to score it.

    Args:
        events: contents of the reference, if the annotations list them; else the judge lists them.
        nothing: the share if there is nothing to count: 1 in the published code, 0 here.
    """
    expected = tuple(events) if events else lists(reference)
    if isinstance(expected, Verdict):
        return None
    if not caption.strip():
        # Needs no judge, which would cost a request.
        return (0.0 if expected else nothing), nothing
    contained = lists(caption)
    if isinstance(contained, Verdict):
        return None
    recall, precision = _share(expected, caption, tells, nothing), _share(contained, reference, tells, nothing)
    return None if recall is None or precision is None else (recall, precision)


def strict_caption(reply: str) -> str:
    """The caption without its reasoning; empty if there is none."""
    return final_answer(reply) or ""


def _share(events: Sequence[str], text: str, tells: Tells, nothing: float) -> float | None:
    verdicts = [tells(event, text).score for event in events[:MAX_EVENTS]]
    scores = [score for score in verdicts if score is not None]
    if len(scores) < len(verdicts):
        return None
    return sum(scores) / len(scores) if scores else nothing
