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


def told_shares(
    caption: str, reference: str, known: Sequence[str] | None, lists: Lists, tells: Tells, nothing: float
) -> tuple[float, float] | None:
    """Recall and precision of a caption, in [0, 1]; None if the judge was not able to score it.

    Args:
        known: contents of the reference, if the annotations list them; else the judge lists them.
        nothing: the share if there is nothing to count: 1 in the published code, 0 here.
    """
    wanted = tuple(known) if known else lists(reference)
    if isinstance(wanted, Verdict):
        return None
    if not caption.strip():
        # Needs no judge, which would cost a request.
        return (0.0 if wanted else nothing), nothing
    said = lists(caption)
    if isinstance(said, Verdict):
        return None
    recall, precision = _share(wanted, caption, tells, nothing), _share(said, reference, tells, nothing)
    return None if recall is None or precision is None else (recall, precision)


def strict_caption(reply: str) -> str:
    """The caption without its reasoning; empty if there is none."""
    return final_answer(reply) or ""


def _share(events: Sequence[str], text: str, tells: Tells, nothing: float) -> float | None:
    found = [tells(event, text).score for event in events[:MAX_EVENTS]]
    scores = [score for score in found if score is not None]
    if len(scores) < len(found):
        return None
    return sum(scores) / len(scores) if scores else nothing
