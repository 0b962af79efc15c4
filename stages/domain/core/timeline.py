"""Exact time and edits of timelines: the clip and frame that each timeline frame shows, the dark
frames, and how many frames a model is shown.

An edit returns a new :class:`~stages.domain.core.records.Timeline`; nothing here reads a video.
Frames are integers and ranges are half-open throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import Annotated, Any, NamedTuple

from pydantic import Discriminator, Field, Tag, model_validator

from stages.domain.core.records import Exact, Record, Segment, Span, Timeline


class Source(NamedTuple):
    """Origin of one timeline frame: frame ``frame`` of clip ``clip_id``, blacked out if
    ``dark``."""

    clip_id: str
    frame: int
    dark: bool


def plain(clip_id: str, frames: int, rate: Fraction) -> Timeline:
    """Return the timeline of a whole clip, unedited."""
    return Timeline(rate=rate, segments=(Segment(clip_id=clip_id, span=Span(start=0, stop=frames)),))


def mask(timeline: Timeline, span: Span) -> Timeline:
    """Return the timeline with ``span`` (in timeline frames) blacked out; length and timing stay.

    Raises:
        ValueError: the span reaches beyond the timeline.
    """
    if span.stop > timeline.frames:
        raise ValueError(f"mask [{span.start}, {span.stop}) reaches beyond the timeline of {timeline.frames} frames")
    return timeline.model_copy(update={"dark": (*timeline.dark, span)})


def cut(frames: int, pieces: Sequence[int]) -> tuple[Span, ...]:
    """Cut ``[0, frames)`` at the given piece lengths, one after the other.

    Raises:
        ValueError: the lengths do not add up to ``frames``.
    """
    if sum(pieces) != frames:
        raise ValueError(f"pieces {list(pieces)} add up to {sum(pieces)} frames, not {frames}")
    spans, start = [], 0
    for length in pieces:
        spans.append(Span(start=start, stop=start + length))
        start += length
    return tuple(spans)


def piece_lengths(frames: int, shortest: int, longest: int, rng: Random) -> tuple[int, ...] | None:
    """Draw piece lengths in ``[shortest, longest]`` frames that add up to ``frames``; None if none
    exist.

    Each piece is drawn among the lengths that leave a remainder that can still be cut.
    """
    lengths: list[int] = []
    left = frames
    while left:
        rest = [(left - n, n) for n in range(shortest, min(longest, left) + 1)]
        # The remainder after this piece must be 0 or splittable: k pieces reach every total in
        # [k*shortest, k*longest].
        possible = [n for remainder, n in rest if remainder == 0 or -(-remainder // longest) <= remainder // shortest]
        if not possible:
            return None
        length = rng.choice(possible)
        lengths.append(length)
        left -= length
    return tuple(lengths)


def interleave(first: Sequence[Segment], second: Sequence[Segment], rate: Fraction) -> Timeline:
    """Interleave the pieces of two clips, A1 B1 A2 B2 …; the rest of the longer list follows in
    order."""
    segments: list[Segment] = []
    for index in range(max(len(first), len(second))):
        segments += [pieces[index] for pieces in (first, second) if index < len(pieces)]
    return Timeline(rate=rate, segments=tuple(segments))


#: Most frames of one sample.
MOST_FRAMES = 4096

#: Even, since the models here merge frames in pairs (a temporal patch of 2).
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


def _form(value: Any) -> str:
    return "rate" if isinstance(value, dict | SamplingRate) else "count"


#: The same number for every timeline, or a rate with bounds.
SampledFrames = Annotated[
    Annotated[EvenCount, Tag("count")] | Annotated[SamplingRate, Tag("rate")], Discriminator(_form)
]


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


def sample_indices(total: int, count: int) -> tuple[int, ...]:
    """Spread ``count`` frame numbers evenly over ``[0, total)``, first and last included, by
    integer arithmetic.

    Rounds half up. In a timeline shorter than ``count``, some frames occur twice.

    Raises:
        ValueError: ``total`` is below 1, or ``count`` below 2.
    """
    if total < 1 or count < 2:
        raise ValueError(f"cannot spread {count} samples over {total} frames; need at least 2 samples and 1 frame")
    return tuple((2 * i * (total - 1) + count - 1) // (2 * (count - 1)) for i in range(count))


def resolve(timeline: Timeline, indices: Sequence[int]) -> tuple[Source, ...]:
    """Look up the origin of each of these timeline frames.

    Raises:
        IndexError: an index outside ``[0, timeline.frames)``.
    """
    sources = []
    for index in indices:
        if not 0 <= index < timeline.frames:
            raise IndexError(f"frame {index} is outside the timeline of {timeline.frames} frames")
        start = 0
        for segment in timeline.segments:
            if index < start + segment.span.frames:
                dark = any(index in span for span in timeline.dark)
                sources.append(Source(segment.clip_id, segment.span.start + index - start, dark))
                break
            start += segment.span.frames
    return tuple(sources)


def conformed_frames(frames: int, rate: Fraction, to: Fraction) -> int:
    """Number of frames of a clip of ``frames`` at ``rate`` once it is conformed to rate ``to``; at
    least one."""
    return max(1, int(frames * to / rate))


def conformed_frame(number: int, frames: int, rate: Fraction, to: Fraction) -> int:
    """Number of the clip's frame (of ``frames`` at ``rate``) that frame ``number`` of the clip
    conformed to rate ``to`` shows.

    It is the frame displayed in the middle of frame ``number``; at equal rates ``number`` itself.
    """
    # In whole numbers: fractions took a twentieth of a supervised step of a tiny model.
    half_frames = (2 * number + 1) * rate.numerator * to.denominator
    return min(frames - 1, half_frames // (2 * rate.denominator * to.numerator))


def segment_counts(timeline: Timeline, indices: Sequence[int]) -> tuple[int, ...]:
    """Count how many of these frames fall into each segment, in order of the segments."""
    counts, start = [], 0
    for segment in timeline.segments:
        stop = start + segment.span.frames
        counts.append(sum(start <= index < stop for index in indices))
        start = stop
    return tuple(counts)
