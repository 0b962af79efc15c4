"""DarkEventInfer (VidBridge-R1): one event of a clip is blacked out; what happens there?

Example: a clip of 16 frames whose event [2, 6) is dark. Question: "what happens in the dark part ?". Reference: "the red bar
rises". The picture before and after shows where the bar was, so the answer can be inferred; it cannot be seen.
"""

from __future__ import annotations

from random import Random

from pydantic import Field

from stages.domain.lexicon import vague
from stages.domain.records import Clip, Event, Record, Reject, Sample, TaskName, Trace
from stages.domain.replies import Reply
from stages.domain.rewards import Judge, RewardRules, Share, TaskScore, unavailable
from stages.domain.timeline import mask, plain, resolve, sample_indices

NAME: TaskName = "dark_event_infer"
QUESTION = "what happens in the dark part ?"
MAXIMUM = 2.0


class Settings(Record):
    per_clip: int = Field(gt=0)
    #: How many sampled frames must fall inside the dark part, and outside it on each side that exists.
    min_dark_frames: int = Field(ge=1)
    min_context_frames: int = Field(ge=1)
    #: A longer event leaves too little to infer from.
    max_dark_share: Share


def refusal(clip: Clip, event: Event, settings: Settings, sampled_frames: int) -> str | None:
    """Why blacking out this event would make no valid sample; None when it does (the validity rule of SPEC 1)."""
    share = event.span.frames / clip.frames
    if share > settings.max_dark_share:
        return f"{event.caption!r} covers {share:.2f} of the clip, more than max_dark_share {settings.max_dark_share}"
    indices = sample_indices(clip.frames, sampled_frames)
    inside = sum(index in event.span for index in indices)
    before = sum(index < event.span.start for index in indices)
    after = sum(index >= event.span.stop for index in indices)
    if inside < settings.min_dark_frames:
        return f"{event.caption!r}: {inside} of {sampled_frames} sampled frames are dark, min_dark_frames is {settings.min_dark_frames}"
    for side, seen, exists in (("before", before, event.span.start > 0), ("after", after, event.span.stop < clip.frames)):
        if exists and seen < settings.min_context_frames:
            return f"{event.caption!r}: {seen} sampled frames {side} it, min_context_frames is {settings.min_context_frames}"
    return None


def make(clip: Clip, settings: Settings, sampled_frames: int, seed: int) -> tuple[list[Sample], list[Reject]]:
    """Up to ``per_clip`` samples of one clip, its events drawn by a generator of the clip's own."""
    if not clip.events:
        return [], [Reject(item=clip.clip_id, reason="no-events", detail="the annotation lists no event to black out")]
    valid, rejects = [], []
    for event in clip.events:
        why = refusal(clip, event, settings, sampled_frames)
        if why is None:
            valid.append(event)
        else:
            rejects.append(Reject(item=clip.clip_id, reason="dark-part-not-inferable", detail=why))
    rng = Random(f"{seed}/{NAME}/{clip.clip_id}")
    chosen = sorted(rng.sample(valid, min(settings.per_clip, len(valid))), key=lambda event: event.span.start)
    return [_sample(clip, event, sampled_frames) for event in chosen], rejects


def _sample(clip: Clip, event: Event, sampled_frames: int) -> Sample:
    timeline = mask(plain(clip.clip_id, clip.frames, clip.rate), event.span)
    story = clip.caption or " then ".join(e.caption for e in clip.events)
    return Sample(
        sample_id=f"{NAME}/{clip.clip_id}/{event.span.start}-{event.span.stop}",
        task=NAME,
        split=clip.split,
        clip_id=clip.clip_id,
        timeline=timeline,
        sampled_frames=sampled_frames,
        question=QUESTION,
        reference=event.caption,
        events=(event.caption,),
        trace=Trace(
            thinking=story,
            answer=event.caption,
            brief_thinking=clip.brief_thinking,
            careless_answer=vague(event.caption),
        ),
    )


def dark_frames(sample: Sample) -> int:
    """How many of the frames that the model is shown are dark."""
    indices = sample_indices(sample.timeline.frames, sample.sampled_frames)
    return sum(source.dark for source in resolve(sample.timeline, indices))


def score(reply: Reply, sample: Sample, judge: Judge, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all tasks
    verdict = judge.covers(sample, reply.answer)
    if verdict.score is None:
        return unavailable(verdict, MAXIMUM)
    return TaskScore(value=verdict.score, maximum=MAXIMUM, parts={"covers": verdict.score}, reason=verdict.reason)
