"""Division of a recording that is too long into consecutive parts, each a clip of its own
(``ingest.longer: parts``)."""

from __future__ import annotations

from itertools import pairwise

from stages.domain.core.records import Clip, Event, Reject, Span, Split
from stages.ingest.clips import Media, clip_of, event_in_frames, exactly, in_order, part_reject, row_reject, to_clip
from stages.lib.annotations.annotation import Annotation, TimedEvent
from stages.params import IngestParams


def to_clips(
    row: Annotation, split: Split, media: Media, params: IngestParams, source_id: str | None = None
) -> tuple[list[Clip], tuple[Reject, ...]]:
    """Build the clips of a row: one, or the parts of a recording that is too long.

    Returns them with the rejects of parts of its annotation, or none with one reject of the whole
    row. Reasons beside those of :func:`~stages.ingest.clips.to_clip`: ``event-across-parts`` for an
    event that lies in no part, and ``about-whole-recording`` for what tells of all parts together.
    """
    is_part = row.start is not None or row.end is not None
    if is_part or params.longer == "reject" or media.duration_s <= exactly(params.max_duration_s):
        clip, rejects = to_clip(row, split, media, params, source_id)
        return ([] if clip is None else [clip]), rejects
    spans = equal_spans(media.frames, int(exactly(params.max_duration_s) * media.rate))
    if not spans or min(span.frames for span in spans) < params.min_frames:
        detail = (
            f"a part of {params.max_duration_s:g} s (ingest.max_duration_s) has fewer frames than ingest.min_frames,"
            f" {params.min_frames}"
        )
        return [], (row_reject(row, "too-short", detail),)
    events: list[list[Event]] = [[] for _ in spans]
    rejects = _of_the_whole(row)
    for event in in_order(row.events):
        placed = _placed(row, event, media, spans, params)
        if isinstance(placed, Reject):
            rejects += (placed,)
        else:
            number, converted = placed
            events[number].append(converted)
    clips = []
    for span, within in zip(spans, events, strict=True):
        # The first part has the file's beginning, also where its picture starts later.
        start, end = (float(media.starts_s + frame / media.rate) if frame else 0.0 for frame in (span.start, span.stop))
        about = {"clip_id": f"{row.clip_id}@{start:.10g}-{end:.10g}", "source_id": source_id or row.source_id}
        clips.append(clip_of(row, split, media, span, events=tuple(within), **about))
    return clips, rejects


def equal_spans(frames: int, most: int) -> list[Span]:
    """Divide frames into the fewest consecutive spans of at most ``most`` frames, whose lengths
    differ by at most one. Empty if ``most`` is 0."""
    count = -(-frames // most) if most > 0 else 0
    return [
        Span(start=start, stop=stop)
        for start, stop in pairwise(number * frames // max(1, count) for number in range(count + 1))
    ]


def _placed(
    row: Annotation, event: TimedEvent, media: Media, spans: list[Span], params: IngestParams
) -> tuple[int, Event] | Reject:
    """Find the part that has most of an event, beyond which it reaches by no more than the
    tolerance."""
    whole = event_in_frames(row, event, media, Span(start=0, stop=media.frames), params)
    if isinstance(whole, Reject):
        return whole
    for number, span in enumerate(spans):
        if span.stop <= whole.span.start or whole.span.stop <= span.start:
            continue
        converted = event_in_frames(row, event, media, span, params)
        if isinstance(converted, Event):
            return number, converted
    detail = (
        f"event {event.caption!r} [{float(event.start):.6g}, {float(event.end):.6g}) s lies in none of the"
        f" {len(spans)} parts of the recording, which is longer than ingest.max_duration_s ({row.where}, events)"
    )
    return part_reject(row, "event-across-parts", detail)


def _of_the_whole(row: Annotation) -> tuple[Reject, ...]:
    """Reject what tells of the whole recording: it need not be true of a part."""
    captions = [] if row.caption is None else [row.caption]
    texts = [("caption", text) for text in (*captions, *row.captions)]
    texts += [("question", question.question) for question in row.qa]
    texts += [("question", question.question) for question in row.open_qa]
    texts += [("subject", subject.name) for subject in row.subjects]
    texts += [(f"answer of {task}", str(one)) for task, objects in (row.answers or {}).items() for one in objects]
    return tuple(
        part_reject(
            row,
            "about-whole-recording",
            f"{kind} {text!r:.200} is about the whole recording, which is taken in parts (ingest.longer); give its row"
            f" start and end ({row.where})",
        )
        for kind, text in texts
    )
