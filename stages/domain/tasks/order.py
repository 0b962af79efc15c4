"""First, last and next events of a clip, defined only if overlaps leave exactly one answer.

Annotated events overlap, and annotated times are imprecise: of two events that start within
:data:`~stages.domain.core.records.UNSURE_S` of each other neither is first. Order of start alone is
not enough: the event that starts last may be over before the one that starts first.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from stages.domain.core.records import UNSURE_S, Clip, Event, Reject


def first(events: Sequence[Event], rate: Fraction) -> Event | None:
    """Find the event that starts before every other one, beyond the tolerance, and ends no later
    than any other.

    Spans are in frames at ``rate`` per second. None if no event qualifies, or there are fewer than
    two.
    """
    sure = UNSURE_S * rate
    for event, others in _each(events):
        starts_first = all(event.span.start + sure <= other.span.start for other in others)
        if starts_first and all(event.span.stop <= other.span.stop for other in others):
            return event
    return None


def last(events: Sequence[Event], rate: Fraction) -> Event | None:
    """Find the event that ends after every other one, beyond the tolerance, and starts no earlier
    than any other.

    None as for :func:`first`.
    """
    sure = UNSURE_S * rate
    for event, others in _each(events):
        ends_last = all(other.span.stop + sure <= event.span.stop for other in others)
        if ends_last and all(other.span.start <= event.span.start for other in others):
            return event
    return None


def right_after(events: Sequence[Event], target: Event, rate: Fraction) -> Event | None:
    """Find the event that starts next once ``target`` is over; None if there is none or not exactly
    one.

    It starts when ``target`` ends or later. Every other event starts after it, beyond the
    tolerance, or cannot be the answer: it is over when ``target`` is, or had started when
    ``target`` did.
    """
    sure = UNSURE_S * rate
    others = [event for event in events if event is not target]
    # Without the second term, the tolerance would reach back to the middle of an event of one
    # second, or to the start of a shorter one.
    earliest = max(target.span.stop - sure, min(Fraction(target.span.stop), target.span.start + sure))
    later = [event for event in others if event.span.start >= earliest]
    if not later:
        return None
    following = min(later, key=lambda event: event.span.start)
    for other in others:
        over = other.span.stop <= target.span.stop and other.span.start < earliest
        begun = other.span.start <= target.span.start
        if other is not following and not (over or begun or following.span.start + sure <= other.span.start):
            return None
    return following


def no_questions(clip: Clip, kind: str, from_events: bool) -> Reject:
    """Build the reject of a clip without questions of a ``kind``, which tasks also make from the
    order of its events if ``from_events``."""
    detail = f"the annotation lists no {kind} question"
    if from_events:
        detail += (
            ", and no events whose order could be asked (two or more, no two alike, overlaps that leave one answer)"
        )
    return Reject(item=clip.clip_id, reason="no-questions", detail=detail)


def _each(events: Sequence[Event]) -> list[tuple[Event, list[Event]]]:
    """Pair each event with the others; empty for fewer than two."""
    return (
        [(event, [*events[:index], *events[index + 1 :]]) for index, event in enumerate(events)]
        if len(events) > 1
        else []
    )
