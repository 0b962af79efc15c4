"""What happens first, last and right after: asked of events only where overlaps leave exactly one answer.

Annotated events overlap, and their times are an annotator's: of two events that start within :data:`~stages.domain.core.records.UNSURE_S`
of each other neither is first. The order in which events start is not yet the order in which they happen: one that starts last may be
over before the one that starts first.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from stages.domain.core.records import UNSURE_S, Event


def first(events: Sequence[Event], rate: Fraction) -> Event | None:
    """The event that starts before every other one, surely, and is not outlasted by being longer: it ends no later than any other.

    Spans are in frames at ``rate`` a second. None where no event is, or there are fewer than two.
    """
    sure = UNSURE_S * rate
    for event, others in _each(events):
        starts_first = all(event.span.start + sure <= other.span.start for other in others)
        if starts_first and all(event.span.stop <= other.span.stop for other in others):
            return event
    return None


def last(events: Sequence[Event], rate: Fraction) -> Event | None:
    """The event that ends after every other one, surely, and starts no earlier than any other. None as for :func:`first`."""
    sure = UNSURE_S * rate
    for event, others in _each(events):
        ends_last = all(other.span.stop + sure <= event.span.stop for other in others)
        if ends_last and all(other.span.start <= event.span.start for other in others):
            return event
    return None


def right_after(events: Sequence[Event], asked: Event, rate: Fraction) -> Event | None:
    """The event that starts next once ``asked`` is over; None where there is none or not exactly one.

    It starts when ``asked`` ends or later. Every other event surely starts after it, or is no answer: it is over when ``asked`` is, or
    was going on when ``asked`` began.
    """
    sure = UNSURE_S * rate
    others = [event for event in events if event is not asked]
    # Of an event of a second "when it ends" would otherwise reach back to its middle, of a shorter one to its beginning.
    earliest = max(asked.span.stop - sure, min(Fraction(asked.span.stop), asked.span.start + sure))
    later = [event for event in others if event.span.start >= earliest]
    if not later:
        return None
    found = min(later, key=lambda event: event.span.start)
    for other in others:
        over = other.span.stop <= asked.span.stop and other.span.start < earliest
        begun = other.span.start <= asked.span.start
        if other is not found and not (over or begun or found.span.start + sure <= other.span.start):
            return None
    return found


def _each(events: Sequence[Event]) -> list[tuple[Event, list[Event]]]:
    """Each event and the others; nothing where there are fewer than two."""
    return [(event, [*events[:place], *events[place + 1 :]]) for place, event in enumerate(events)] if len(events) > 1 else []
