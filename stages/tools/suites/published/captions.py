"""How captions are marked against a reference: what of it they tell, and what they tell that it bears out (AutoDQ, arXiv
2407.00634)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.domain.core.records import Verdict
from stages.domain.core.replies import final_answer
from stages.domain.tasks.caption import MAX_EVENTS

#: Who says whether a text tells something: (what, text).
Tells = Callable[[str, str], Verdict]
#: Who lists what a text tells.
Lists = Callable[[str], tuple[str, ...] | Verdict]


def told_shares(
    caption: str, reference: str, known: Sequence[str] | None, lists: Lists, tells: Tells, nothing: float
) -> tuple[float, float] | None:
    """Recall and precision of a caption, in [0, 1]; None when the judge could not say.

    Args:
        known: what the reference tells, where the annotations list it; else it is listed by the judge.
        nothing: the share where there is nothing to share: 1 in the published code, 0 here.
    """
    wanted = tuple(known) if known else lists(reference)
    if isinstance(wanted, Verdict):
        return None
    if not caption.strip():
        # No judge is needed for that, nor paid.
        return (0.0 if wanted else nothing), nothing
    said = lists(caption)
    if isinstance(said, Verdict):
        return None
    recall, precision = _share(wanted, caption, tells, nothing), _share(said, reference, tells, nothing)
    return None if recall is None or precision is None else (recall, precision)


def strict_caption(reply: str) -> str:
    """The caption with the reasoning taken away; empty where there is none."""
    return final_answer(reply) or ""


def _share(events: Sequence[str], text: str, tells: Tells, nothing: float) -> float | None:
    found = [tells(event, text).score for event in events[:MAX_EVENTS]]
    scores = [score for score in found if score is not None]
    if len(scores) < len(found):
        return None
    return sum(scores) / len(scores) if scores else nothing
