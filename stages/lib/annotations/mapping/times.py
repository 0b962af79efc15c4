"""Times of published tables, in the forms that they are written in, as exact seconds."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from stages.lib.annotations.annotation import Seconds, short

Form = Literal["seconds", "milliseconds", "frames", "clock"]
FORMS: tuple[Form, ...] = ("seconds", "milliseconds", "frames", "clock")

#: ``hh:mm:ss.mmm``, ``mm:ss``, ``hh:mm:ss:mmm``: hours and fractions may be missing.
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9})|:(\d{3}))?")
#: Two times in one text: "13.4-28.1", "00:01 to 00:05", "[1.0, 2.5]", "1.0 2.5".
_TWO = re.compile(r"\s*[\[(]?\s*([^\s,;–—-]+)\s*(?:-->|–|—|-|,|;|\bto\b|\s)\s*([^\s,;–—-]+?)\s*[\])]?\s*")
_SECONDS: TypeAdapter[Fraction] = TypeAdapter(Seconds)


def time_of(value: Any, form: Form, rate: Fraction | None) -> Fraction:
    """Convert a time to seconds. ``rate``: frames a second, for frames.

    Raises:
        ValueError: it is no time of this form.
    """
    if form == "clock":
        match = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{short(value)} is no time hh:mm:ss.mmm or mm:ss; set `times` to one of {_forms()}")
        hours, minutes, seconds, fraction, thousandths = match.groups()
        whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
        return whole + Fraction(f"0.{fraction or thousandths or 0}")
    try:
        exact = _SECONDS.validate_python(value.strip() if isinstance(value, str) else value)
    except ValidationError as error:
        raise ValueError(f"{short(value)} is no number of {form}; set `times` to one of {_forms()}") from error
    if form == "milliseconds":
        return exact / 1000
    if form == "frames":
        if rate is None or rate <= 0:
            raise ValueError(f"{short(value)} counts frames, and the row states no rate of frames a second")
        return exact / rate
    return exact


def two_times(value: Any) -> tuple[Any, Any]:
    """Take the two times of a span apart: a list of two, or one text.

    Raises:
        ValueError: there are not two.
    """
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], value[1]
    match = _TWO.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{short(value)} holds no two times; need a list of two, or a text such as 1.5-3.25")
    return match[1], match[2]


def _forms() -> str:
    return ", ".join(FORMS)
