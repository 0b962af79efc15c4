"""From an annotation and what its file holds to a :class:`~stages.domain.records.Clip`: seconds become frames, exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stages.domain.records import SPLITS, Clip, Event, Reject, Span, Split
from stages.params import IngestParams
from stages.sources.jsonl import Annotation, TimedEvent


@dataclass(frozen=True)
class Media:
    """What was found in a video file, for this layer to judge. ``rate`` in frames a second, ``duration_s`` in seconds."""

    sha256: str
    codec: str
    width: int
    height: int
    rate: Fraction
    frames: int
    duration_s: Fraction
    variable_rate: bool


def frame_boundary(seconds: Fraction, rate: Fraction) -> int:
    """The boundary between frames that is nearest to a time; halfway goes to the later one.

    Frame ``i`` is shown during ``[i / rate, (i + 1) / rate)``, so boundary ``n`` lies at ``n / rate``, and an event
    ``[start, end)`` covers frames ``[frame_boundary(start), frame_boundary(end))``. Times that are multiples of a frame
    are kept exactly; others move by half a frame at most, which is as well as an annotator can see.
    """
    return (seconds * rate + Fraction(1, 2)).__floor__()


def to_clip(row: Annotation, split: Split, media: Media, params: IngestParams) -> Clip | Reject:
    """The clip, or why the whole clip is set aside.

    Reasons: ``too-short``, ``too-long``, ``variable-frame-rate`` (timed events would fall on wrong frames),
    ``event-outside-clip``, ``event-without-frame``.
    """
    problem = _unfit(row, media, params)
    if problem is not None:
        return problem
    events = []
    for event in sorted(row.events, key=lambda event: (event.start, event.end)):
        placed = _place(row, event, media)
        if isinstance(placed, Reject):
            return placed
        events.append(placed)
    return Clip(
        clip_id=row.clip_id,
        source_id=row.source_id,
        path=row.video,
        sha256=media.sha256,
        split=split,
        frames=media.frames,
        rate=media.rate,
        width=media.width,
        height=media.height,
        codec=media.codec,
        label=row.label,
        licence=row.licence,
        caption=row.caption,
        events=tuple(events),
        subjects=row.subjects,
        questions=row.qa,
    )


def without_duplicates(clips: Iterable[Clip]) -> tuple[list[Clip], list[Reject]]:
    """Clips in order of their id, of equal files the first only; the others are ``duplicate-video``."""
    kept: dict[str, Clip] = {}
    rejects = []
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        first = kept.setdefault(clip.sha256, clip)
        if first is not clip:
            detail = f"video: {clip.path!r} holds the same bytes as {first.path!r} (clip {first.clip_id!r}); remove one"
            rejects.append(Reject(item=clip.clip_id, reason="duplicate-video", detail=detail))
    return list(kept.values()), rejects


def summarise(clips: Sequence[Clip], rejects: Sequence[Reject], hazards: Mapping[str, int]) -> dict[str, Any]:
    """Counts that describe the data; nothing of when or where. ``hazards``: files that decord must not read, by reason."""
    return {
        "accepted": len(clips),
        "rejected": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "splits": {split: sum(clip.split == split for clip in clips) for split in SPLITS},
        "sources": len({clip.source_id for clip in clips}),
        "frames": sum(clip.frames for clip in clips),
        "duration_s": round(float(sum(clip.frames / clip.rate for clip in clips)), 3),
        "events": sum(len(clip.events) for clip in clips),
        "questions": sum(len(clip.questions) for clip in clips),
        "captions": sum(clip.caption is not None for clip in clips),
        "codecs": dict(sorted(Counter(clip.codec for clip in clips).items())),
        "sizes": dict(sorted(Counter(f"{clip.width}x{clip.height}" for clip in clips).items())),
        "not_for_decord": dict(sorted(hazards.items())),
    }


def _unfit(row: Annotation, media: Media, params: IngestParams) -> Reject | None:
    if media.frames < params.min_frames:
        return _reject(row, "too-short", f"{media.frames} frames, ingest.min_frames is {params.min_frames}")
    if media.duration_s > Fraction(str(params.max_duration_s)):
        return _reject(row, "too-long", f"{float(media.duration_s):.2f} s, ingest.max_duration_s is {params.max_duration_s:g}")
    if media.variable_rate and row.events:
        detail = "its frames are not evenly spaced, so seconds do not name frames; re-encode it at a constant frame rate"
        return _reject(row, "variable-frame-rate", detail)
    return None


def _place(row: Annotation, event: TimedEvent, media: Media) -> Event | Reject:
    start, stop = frame_boundary(event.start, media.rate), frame_boundary(event.end, media.rate)
    said = f"event {event.caption!r} [{_s(event.start)}, {_s(event.end)}) s"
    if stop > media.frames or start >= media.frames:
        return _reject(
            row, "event-outside-clip", f"{said} reaches beyond the clip, which has {_s(media.duration_s)} s; correct its end"
        )
    if stop <= start:
        return _reject(row, "event-without-frame", f"{said} is shorter than a frame ({_s(1 / media.rate)} s); remove or widen it")
    return Event(span=Span(start=start, stop=stop), caption=event.caption)


def _s(seconds: Fraction) -> str:
    return f"{float(seconds):.6g}"


def _reject(row: Annotation, reason: str, detail: str) -> Reject:
    return Reject(item=row.clip_id, reason=reason, detail=f"{row.video}: {detail}")
