"""Conversion of an annotation and its file into a :class:`~stages.domain.core.records.Clip`, with
exact conversion of seconds to frames."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from stages.domain.core.records import Clip, Event, Exact, Excerpt, Record, Reject, Span, Split
from stages.lib.annotations.annotation import Annotation, TimedEvent
from stages.params import IngestParams


class Media(Record):
    """Content of a video file. ``rate`` in frames per second, ``duration_s`` in seconds.

    For a variable frame rate, ``rate`` and ``frames`` are those of an even clock. ``sha256`` is
    that of the original file, also if it was re-encoded.
    """

    sha256: str
    codec: str
    width: int
    height: int
    rate: Exact
    frames: int
    duration_s: Exact
    #: Start of the first frame, counted from the start of the file with its sound, as the seconds
    #: of an annotation are.
    starts_s: Exact
    variable_rate: bool
    #: Reasons why decord must not read the file, as slugs.
    hazards: tuple[str, ...]
    #: Path of the re-encoded file that replaces it, relative to the manifest's folder.
    normalised: str | None = None
    #: Hazards of the original file, if it was re-encoded.
    normalised_for: tuple[str, ...] = ()


def frame_boundary(seconds: Fraction, rate: Fraction) -> int:
    """Boundary between frames that is nearest to a time; halfway goes to the later one.

    Frame ``i`` is displayed during ``[i / rate, (i + 1) / rate)``, so boundary ``n`` lies at ``n /
    rate``, and an event ``[start, end)`` covers frames ``[frame_boundary(start),
    frame_boundary(end))``. Times that are multiples of a frame stay exact; others move by at most
    half a frame, which an annotator cannot see.
    """
    # (seconds * rate + 1/2) rounded down, in integers: fractions would cost ten times as much.
    numerator = seconds.numerator * rate.numerator
    denominator = seconds.denominator * rate.denominator
    return (2 * numerator + denominator) // (2 * denominator)


def to_clip(
    row: Annotation, split: Split, media: Media, params: IngestParams, source_id: str | None = None
) -> tuple[Clip | None, tuple[Reject, ...]]:
    """Build a clip. Returns it with the rejects of parts of its annotation, or None with one reject
    of the whole row.

    Reasons for the row: ``too-short``, ``too-long``, ``other-recording``, ``part-outside-file``;
    for an event: ``event-outside-clip``, ``event-without-frame``; for the caption:
    ``caption-beyond-clip``.

    Args:
        source_id: the recording, if not the row's own ``source_id``.
    """
    part = part_of(row, media, params)
    if isinstance(part, Reject):
        return None, (part,)
    problem = _unfit(row, media, part, params) or _other_recording(row, media, params)
    if problem is not None:
        return None, (problem,)
    events, rejects = list[Event](), list[Reject]()
    for event in in_order(row.events):
        converted = event_in_frames(row, event, media, part, params)
        if isinstance(converted, Reject):
            rejects.append(converted)
        else:
            events.append(converted)
    caption, captions = row.caption, row.captions
    if (caption is not None or captions) and (missing := _missing_s(row, media, params)):
        caption, captions = None, ()
        rejects.append(
            part_reject(
                row,
                "caption-beyond-clip",
                f"caption: it tells of {missing} s more than the file has; get the whole file",
            )
        )
    told = {
        "caption": caption,
        "captions": captions or None,
        "events": tuple(events),
        "subjects": row.subjects,
        "questions": row.qa,
        "open_questions": row.open_qa or None,
        "answers": row.answers,
    }
    return clip_of(row, split, media, part, clip_id=row.clip_id, source_id=source_id or row.source_id, **told), tuple(
        rejects
    )


def clip_of(row: Annotation, split: Split, media: Media, part: Span, **about: Any) -> Clip:
    """Build the clip of these frames of a file from the file's facts, the row's label and licence,
    and ``about``, its further fields."""
    whole = part == Span(start=0, stop=media.frames)
    return Clip(
        path=media.normalised or row.video,
        sha256=media.sha256,
        split=split,
        frames=part.frames,
        rate=media.rate,
        width=media.width,
        height=media.height,
        codec=media.codec,
        hazards=media.hazards,
        variable_rate=media.variable_rate,
        normalised=media.normalised is not None,
        excerpt=None if whole else Excerpt(first=part.start, file_frames=media.frames),
        label=row.label,
        licence=row.licence,
        **about,
    )


def in_order(events: Iterable[TimedEvent]) -> list[TimedEvent]:
    return sorted(events, key=lambda event: (event.start, event.end))


def without_duplicates(clips: Iterable[Clip]) -> tuple[list[Clip], list[Reject]]:
    """Keep the first, in order of their id, of clips with equal content: the same part of equal
    files. The others are rejected, in this order, as ``duplicate-video``.

    Equal files of two names that are in two splits are one recording in two splits: the clips of
    the later name are rejected as ``split-conflict``. A part of a divided recording whose id
    another clip has is rejected as ``duplicate-id``.
    """
    kept: dict[tuple[str, int, int], Clip] = {}
    of_content: dict[str, Clip] = {}
    of_id: dict[str, Clip] = {}
    rejects = []
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        content = clip.sha256, clip.first_frame, clip.frames
        first, named = kept.get(content), of_content.setdefault(clip.sha256, clip)
        if first is not None:
            same = "the same bytes" if clip.excerpt is None else "the same part of the same bytes"
            detail = f"video: {clip.path!r} holds {same} as {first.path!r} (clip {first.clip_id!r}); remove one"
            rejects.append(Reject(item=clip.clip_id, reason="duplicate-video", detail=detail))
        elif named.split != clip.split:
            detail = (
                f"split: {clip.split!r}, but {clip.path!r} holds the same bytes as {named.path!r}, which is in"
                f" {named.split!r} (clip {named.clip_id!r}); name one file, or give both rows one source"
            )
            rejects.append(Reject(item=clip.clip_id, reason="split-conflict", detail=detail))
        elif clip.clip_id in of_id:
            detail = (
                f"id {clip.clip_id!r}: another clip, of {of_id[clip.clip_id].path!r}, has it already; give its row"
                " another one"
            )
            rejects.append(Reject(item=clip.clip_id, reason="duplicate-id", detail=detail))
        else:
            kept[content] = of_id[clip.clip_id] = clip
    return list(kept.values()), rejects


@lru_cache(maxsize=16)
def exactly(number: float) -> Fraction:
    """A parameter as it is written in ``params.yaml``."""
    return Fraction(str(number))


def part_of(row: Annotation, media: Media, params: IngestParams) -> Span | Reject:
    """Frames of the file that the row is about.

    A part that exceeds the file within the tolerance is cut at the file's edge, if most of it is
    inside; otherwise a reject ``part-outside-file``.
    """
    if row.start is None and row.end is None:
        return Span(start=0, stop=media.frames)
    ends_s = media.starts_s + media.frames / media.rate
    start_s, end_s = row.start or Fraction(0), ends_s if row.end is None else row.end
    first, stop = (frame_boundary(time - media.starts_s, media.rate) for time in (start_s, end_s))
    beyond_s = -start_s if frame_boundary(start_s, media.rate) < 0 else Fraction(0)
    if stop > media.frames:
        beyond_s = max(beyond_s, end_s - ends_s)
    inside = max(first, 0), min(stop, media.frames)
    quoted = f"the row is about [{_s(start_s)}, {_s(end_s)}) s"
    if beyond_s > _tolerated_s(end_s - start_s, params) or 2 * (inside[1] - inside[0]) < stop - first:
        detail = (
            f"{quoted}, and the file has {_s(ends_s)} s; correct start and end, or get the whole file"
            f" ({_tolerance(params)}) ({row.where})"
        )
        return row_reject(row, "part-outside-file", detail)
    if inside[1] <= inside[0]:
        return row_reject(
            row, "too-short", f"{quoted}, which is less than a frame of {_s(1 / media.rate)} s ({row.where})"
        )
    return Span(start=inside[0], stop=inside[1])


def _unfit(row: Annotation, media: Media, part: Span, params: IngestParams) -> Reject | None:
    if part.frames < params.min_frames:
        return row_reject(row, "too-short", f"{part.frames} frames, ingest.min_frames is {params.min_frames}")
    length_s = media.duration_s if part.frames == media.frames else part.frames / media.rate
    if length_s > exactly(params.max_duration_s):
        return row_reject(
            row, "too-long", f"{float(length_s):.2f} s, ingest.max_duration_s is {params.max_duration_s:g}"
        )
    return None


def _other_recording(row: Annotation, media: Media, params: IngestParams) -> Reject | None:
    """Reject a row whose file is longer than its annotation says."""
    if row.length_s is not None and media.duration_s - row.length_s > _tolerated_s(row.length_s, params):
        detail = (
            f"the file has {_s(media.duration_s)} s, the annotation is of {_s(row.length_s)} s: it is another"
            f" recording, or the whole of one; cut the annotated part into a file of its own ({row.where})"
        )
        return row_reject(row, "other-recording", detail)
    return None


def _tolerated_s(length_s: Fraction, params: IngestParams) -> Fraction:
    """Tolerated error of times, for a recording of this length: annotations round, and a container
    lasts as long as its sound."""
    return min(exactly(params.tolerance.seconds), exactly(params.tolerance.share) * length_s)


def _tolerance(params: IngestParams) -> str:
    return f"ingest.tolerance is {params.tolerance.seconds:g} s and {params.tolerance.share:g} of the clip"


def _missing_s(row: Annotation, media: Media, params: IngestParams) -> str | None:
    """Seconds by which the file is shorter than its annotation, as text; None if they are within
    the tolerated fraction."""
    missing = (row.length_s or 0) - media.starts_s - media.duration_s
    return (
        _s(missing)
        if row.length_s and row.end is None and missing > exactly(params.tolerance.share) * row.length_s
        else None
    )


def event_in_frames(
    row: Annotation, event: TimedEvent, media: Media, part: Span, params: IngestParams
) -> Event | Reject:
    """Convert an event to frames of the clip that is ``part`` of the file; cut it at the clip's
    edges if it exceeds them within the tolerance and most of it is inside.

    An event may start before the first frame of a file whose sound starts earlier; the annotation
    is not wrong then.
    """
    start = frame_boundary(event.start - media.starts_s, media.rate)
    stop = frame_boundary(event.end - media.starts_s, media.rate)
    if part.start <= start < stop <= part.stop and media.starts_s >= 0:
        # As below, without its fractions: most events are inside of their clip.
        return Event(span=Span(start=start - part.start, stop=stop - part.start), caption=event.caption, cut_s=None)
    first, last = max(start, part.start), min(stop, part.stop)
    inside = Span(start=first - part.start, stop=last - part.start) if first < last else None
    length_s = part.frames / media.rate
    ends_s = media.starts_s + part.stop / media.rate
    begins_s = media.starts_s + part.start / media.rate if part.start else Fraction(0)
    beyond_s = begins_s - event.start if frame_boundary(event.start - begins_s, media.rate) < 0 else Fraction(0)
    if stop > part.stop:
        beyond_s = max(beyond_s, event.end - ends_s)
    quoted = f"event {event.caption!r} [{_s(event.start)}, {_s(event.end)}) s"
    if stop <= start:
        why = f"{quoted} is shorter than a frame ({_s(1 / media.rate)} s); remove or widen it"
        return part_reject(row, "event-without-frame", f"{why} ({row.where}, events)")
    inside_frames = inside.frames if inside else 0
    if not beyond_s and 2 * inside_frames < stop - start:
        why = f"{quoted} is over, or half over, before the picture starts, at {_s(media.starts_s)} s; remove it"
        return part_reject(row, "event-outside-clip", f"{why} ({row.where}, events)")
    if inside is None or beyond_s > _tolerated_s(length_s, params) or 2 * inside_frames < stop - start:
        extent = f"has {_s(ends_s)} s" if part.start == 0 else f"is [{_s(begins_s)}, {_s(ends_s)}) s of the file"
        why = (
            f"{quoted} reaches beyond the clip, which {extent}, by {_s(beyond_s)} s; correct its times"
            f" ({_tolerance(params)})"
        )
        return part_reject(row, "event-outside-clip", f"{why} ({row.where}, events)")
    return Event(span=inside, caption=event.caption, cut_s=beyond_s or None)


def _s(seconds: Fraction) -> str:
    return f"{float(seconds):.6g}"


def part_reject(row: Annotation, reason: str, detail: str) -> Reject:
    """Reject a part of a row."""
    return Reject(item=row.clip_id, reason=reason, detail=f"{row.video}: {detail}")


def row_reject(row: Annotation, reason: str, detail: str) -> Reject:
    """Reject a clip's row, and with it all rows that it joins."""
    return part_reject(row, reason, detail).model_copy(update={"rows": row.rows if row.rows > 1 else None})
