"""Number of frames that a model is shown of a timeline: a fixed count, or a rate with bounds.

Numbers are even: the models here merge frames in pairs (a temporal patch of 2).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import Field, model_validator

from stages.domain.core.records import Exact, Record

#: Most frames of one sample.
MOST_FRAMES = 4096

EvenCount = Annotated[int, Field(ge=2, le=MOST_FRAMES, multiple_of=2)]


class SamplingRate(Record):
    """Frames in proportion to the length of a timeline, within bounds."""

    #: Frames per second of the timeline.
    per_second: Annotated[Exact, Field(gt=0)]
    #: Smallest number of frames. A timeline with fewer shows some of them twice.
    at_least: EvenCount
    #: Largest number of frames.
    at_most: EvenCount

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> SamplingRate:
        if self.at_least > self.at_most:
            raise ValueError(f"at_least is {self.at_least} and at_most {self.at_most}: need at_least <= at_most")
        return self


#: The same number for every timeline, or a rate with bounds.
SampledFrames = EvenCount | SamplingRate


def frame_count(sampled: SampledFrames, frames: int, rate: Fraction) -> int:
    """Number of frames to show of a timeline of ``frames`` at ``rate``.

    With a :class:`SamplingRate` it is the largest even number of at most ``per_second`` times the
    timeline's seconds and at most its frames, moved into the bounds. This is the rule of Qwen's own
    preprocessing (``smart_nframes`` of qwen-vl-utils), in exact arithmetic.
    """
    if isinstance(sampled, int):
        return sampled
    most = min(int(frames * sampled.per_second / rate), frames)
    return min(max(most // 2 * 2, sampled.at_least), sampled.at_most)


def counts(sampled: SampledFrames) -> range:
    """Every number of frames that may be shown of a timeline."""
    if isinstance(sampled, int):
        return range(sampled, sampled + 1)
    return range(sampled.at_least, sampled.at_most + 1, 2)


def in_words(sampled: SampledFrames) -> str:
    """Describe the number of frames for people: "8 frames", "2 frames a second, 4 to 64"."""
    if isinstance(sampled, int):
        return f"{sampled} frames"
    return f"{float(sampled.per_second):g} frames a second, {sampled.at_least} to {sampled.at_most}"
