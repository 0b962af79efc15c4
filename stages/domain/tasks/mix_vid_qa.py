"""MixVidQA (VidBridge-R1): two unrelated clips are cut and interleaved A1 B1 A2 B2; the question is about one of them.

Example: half a second of a red bar, half of a blue circle, and so on. Question: "what does the red bar do first ?". The question
names its clip by content, never by position; the other clip is to be ignored.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Iterator, Sequence
from random import Random

from pydantic import Field, model_validator

from stages.domain.lexicon import vague
from stages.domain.records import Clip, Exact, Record, Reject, Sample, Segment, TaskName, Timeline, Trace
from stages.domain.replies import Reply
from stages.domain.rewards import Judge, RewardRules, TaskScore, unavailable
from stages.domain.timeline import cut, interleave, piece_lengths, sample_indices, segment_counts

NAME: TaskName = "mix_vid_qa"
MAXIMUM = 1.0
#: Draws of piece lengths before a pair is given up.
ATTEMPTS = 8


class Settings(Record):
    #: Partners drawn for each clip.
    per_clip: int = Field(gt=0)
    min_piece_s: Exact
    max_piece_s: Exact
    #: Every piece must show at least so many of the sampled frames.
    min_piece_frames: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Settings:
        if not 0 < self.min_piece_s <= self.max_piece_s:
            raise ValueError(f"min_piece_s {self.min_piece_s} and max_piece_s {self.max_piece_s}: need 0 < min <= max")
        return self


def unsuitable(clip: Clip, partner: Clip) -> str | None:
    """Why these two must not be mixed; None when they may.

    They come from different source videos, show different classes, share no attribute that a question could name, and (until
    clips are conformed) run at one frame rate.
    """
    if clip.source_id == partner.source_id:
        return "same source video"
    if clip.label is not None and clip.label == partner.label:
        return f"same class {clip.label!r}"
    named = {word for subject in clip.subjects for word in subject.attributes}
    shared = named & {word for subject in partner.subjects for word in subject.attributes}
    if shared:
        return f"both show {sorted(shared)[0]!r}"
    if clip.rate != partner.rate:
        return f"frame rates {clip.rate} and {partner.rate} differ"
    return None


class Ring:
    """The clips of one split on a hash ring, so that a new clip changes the partners of a few others only."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._clips = sorted(clips, key=lambda clip: _point(clip.clip_id))
        self._points = [_point(clip.clip_id) for clip in self._clips]

    def walk(self, key: str) -> Iterator[Clip]:
        """Every clip once, from the point of ``key`` onwards."""
        start = bisect.bisect(self._points, _point(key))
        for offset in range(len(self._clips)):
            yield self._clips[(start + offset) % len(self._clips)]


def _point(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def make(clip: Clip, ring: Ring, settings: Settings, sampled_frames: int, seed: int) -> tuple[list[Sample], list[Reject]]:
    """Up to ``per_clip`` samples that ask about ``clip``, each mixed with another partner."""
    subject = clip.called
    if subject is None or not clip.events:
        missing = "an event to ask about" if subject else "a single subject or a class label to name it by"
        return [], [Reject(item=clip.clip_id, reason="nothing-to-ask", detail=f"the annotation lacks {missing}")]
    samples: list[Sample] = []
    rejects: list[Reject] = []
    used: set[str] = set()
    for index in range(settings.per_clip):
        key = f"{seed}/{NAME}/{clip.clip_id}/{index}"
        partner = next((c for c in ring.walk(key) if c.clip_id not in used and unsuitable(clip, c) is None), None)
        if partner is None:
            detail = (
                f"no suitable partner number {index + 1} in the {clip.split} split (another source, class, look; same frame rate)"
            )
            rejects.append(Reject(item=clip.clip_id, reason="no-partner", detail=detail))
            break
        used.add(partner.clip_id)
        rng = Random(key)
        timeline = _mixed(clip, partner, settings, sampled_frames, rng)
        if timeline is None:
            detail = (
                f"with {partner.clip_id}: no cut into pieces of {settings.min_piece_s}-{settings.max_piece_s} s shows every piece"
            )
            rejects.append(Reject(item=clip.clip_id, reason="piece-not-shown", detail=detail))
            continue
        samples.append(_sample(clip, partner, timeline, subject, sampled_frames, rng))
    return samples, rejects


def _mixed(clip: Clip, partner: Clip, settings: Settings, sampled_frames: int, rng: Random) -> Timeline | None:
    shortest, longest = math.ceil(settings.min_piece_s * clip.rate), math.floor(settings.max_piece_s * clip.rate)
    order = [clip, partner] if rng.random() < 0.5 else [partner, clip]
    for _ in range(ATTEMPTS):
        pieces = [piece_lengths(c.frames, shortest, longest, rng) for c in order]
        if any(lengths is None for lengths in pieces):
            return None
        segments = [
            [Segment(clip_id=c.clip_id, span=span) for span in cut(c.frames, lengths or ())]
            for c, lengths in zip(order, pieces, strict=True)
        ]
        timeline = interleave(segments[0], segments[1], clip.rate)
        counts = segment_counts(timeline, sample_indices(timeline.frames, sampled_frames))
        if min(counts) >= settings.min_piece_frames:
            return timeline
    return None


def _sample(clip: Clip, partner: Clip, timeline: Timeline, subject: str, sampled_frames: int, rng: Random) -> Sample:
    ordered = sorted(clip.events, key=lambda event: event.span.start)
    which = rng.choice(("first", "last"))
    event = ordered[0] if which == "first" else ordered[-1]
    story = clip.caption or " then ".join(e.caption for e in ordered)
    return Sample(
        sample_id=f"{NAME}/{clip.clip_id}+{partner.clip_id}/{which}",
        task=NAME,
        split=clip.split,
        clip_id=clip.clip_id,
        timeline=timeline,
        sampled_frames=sampled_frames,
        question=f"what does the {subject} do {which} ?",
        reference=event.caption,
        events=(event.caption,),
        trace=Trace(
            thinking=story,
            answer=event.caption,
            brief_thinking=clip.brief_thinking,
            careless_answer=vague(event.caption),
        ),
    )


def score(reply: Reply, sample: Sample, judge: Judge, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all tasks
    verdict = judge.right(sample, reply.answer)
    if verdict.score is None:
        return unavailable(verdict, MAXIMUM)
    return TaskScore(value=verdict.score, maximum=MAXIMUM, parts={"right": verdict.score}, reason=verdict.reason)
