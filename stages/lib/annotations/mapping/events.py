"""Timed events of a row, and the part of a file that it is about."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import reject
from stages.lib.annotations.mapping.columns import ColumnProblem, Entry, holds, value_of
from stages.lib.annotations.mapping.entries import entries_of, text_of
from stages.lib.annotations.mapping.schema import Events, Mapping, Times
from stages.lib.annotations.mapping.times import time_of, two_times

BAD = "bad-event"


class Part(NamedTuple):
    """The part ``[start, end)`` of a recording that a row is about, in seconds; None: from its
    beginning, to its end."""

    start: Fraction | None
    end: Fraction | None


def time_in(entry: Entry, column: str, times: Times) -> Fraction | None:
    """Read a time of a row; None if it is null.

    Raises:
        ColumnProblem: the column is missing, or no time of this form.
    """
    value = value_of(entry, column)
    if value is None:
        return None
    try:
        return time_of(value, times.form, _rate(entry, times))
    except ValueError as error:
        raise ColumnProblem(column.removesuffix("?"), str(error)) from error


def _rate(entry: Entry, times: Times) -> Fraction | None:
    if not isinstance(times.rate, str):
        return times.rate
    value: Any = None
    at: Entry | None = entry
    # The rate stands in the row, and the times often in entries of it.
    while at is not None:
        try:
            value = value_of(at, times.rate)
        except ColumnProblem:
            if at.outer is None:
                raise
            at = at.outer
        else:
            break
    try:
        return None if value is None else Fraction(str(value))
    except (ValueError, ZeroDivisionError) as error:
        raise ColumnProblem(times.rate, f"{value!r} is no number of frames a second") from error


def timed_events(
    mapping: Mapping, entry: Entry, where: str, part: Part, *, cut: bool
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Read the events of a row in seconds of its file, and the rejects of others.

    Raises:
        ColumnProblem: a column of the mapping is missing from the row.
    """
    events: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for spec in mapping.events:
        try:
            entries = entries_of(entry, spec.each, "events")
        except ColumnProblem as error:
            if error.missing:
                raise
            rejects.append(reject(where, BAD, str(error)))
            continue
        shift = _shift(spec, part, cut=cut)
        for place, one in enumerate(entries):
            if not holds(one, spec.when):
                continue
            try:
                start, end = _times(spec, one, spec.times or mapping.times)
                caption = text_of(one, spec.caption)
            except ColumnProblem as error:
                if error.missing and spec.each is None:
                    raise
                rejects.append(reject(where, BAD, f"events.{place}.{error}"))
                continue
            events.append({"start": start + shift, "end": end + shift, "caption": caption})
    return events, rejects


def _shift(spec: Events, part: Part, *, cut: bool) -> Fraction:
    """Seconds that are added to an event's times, so that they count from the beginning of the
    file."""
    if spec.relative == "part":
        return Fraction(0) if cut else part.start or Fraction(0)
    return -(part.start or Fraction(0)) if cut else Fraction(0)


def _times(spec: Events, entry: Entry, times: Times) -> tuple[Fraction, Fraction]:
    if spec.span is None:
        assert spec.start is not None
        assert spec.end is not None
        pair = [time_in(entry, spec.start, times), time_in(entry, spec.end, times)]
        column = spec.start if pair[0] is None else spec.end
    else:
        column = spec.span
        try:
            found = two_times(value_of(entry, column))
            pair = [time_of(value, times.form, _rate(entry, times)) for value in found]
        except ColumnProblem:
            raise
        except ValueError as error:
            raise ColumnProblem(column, str(error)) from error
    start, end = pair
    if start is None or end is None:
        raise ColumnProblem(column, "an event needs a start and an end, and this is null")
    return start, end
