"""DarkEventInfer (VidBridge-R1): one event of a clip is blacked out; what happens there?

Example: a clip of 16 frames whose event [2, 6) is dark. Question: "what happens in the dark part
?". Reference: "the red bar rises". The frames before and after show where the bar was, so the
answer can be inferred, but not seen.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Literal

from pydantic import Field, field_validator, model_validator

from stages.domain.core.records import Clip, Event, Exact, Record, Reject, Sample, Span, Trace
from stages.domain.core.replies import Reply
from stages.domain.core.timeline import frame_count, mask, plain, resolve, sample_indices
from stages.domain.core.words import words
from stages.domain.tasks.lexicon import vague
from stages.domain.tasks.rewards import Referee, RewardRules, Share, TaskScore, unavailable
from stages.domain.tasks.task import BaseSettings, Context, Marking, Task, TaskSamples, TraceBrief, sample_of

NAME = "dark_event_infer"
ORDINALS = ("first", "second", "third", "fourth")
MAXIMUM = 2.0


class EventFilter(Record):
    """Conditions on events to black out: length, position in the clip, and caption."""

    min_s: Exact
    max_s: Exact
    #: Positions allowed: at the clip's start, at its end, or in the middle. An event at an edge has
    #: context on one side only.
    places: tuple[Literal["start", "middle", "end"], ...] = Field(min_length=1)
    min_words: int = Field(ge=1)
    max_words: int = Field(ge=1)
    #: Regular expressions of captions that cannot be inferred ("intro", "credits roll"); a match
    #: rejects the event.
    forbidden: tuple[str, ...]
    #: Reject an event if another event of the clip has the same caption, since that one would
    #: reveal it.
    unique: bool

    @model_validator(mode="after")
    def _usable(self) -> EventFilter:
        if not 0 <= self.min_s <= self.max_s:
            raise ValueError(f"min_s {self.min_s} and max_s {self.max_s}: need 0 <= min_s <= max_s")
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} exceeds max_words {self.max_words}")
        for pattern in self.forbidden:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"forbidden: {pattern!r} is not a regular expression ({error})") from error
        return self


class Settings(BaseSettings):
    #: The question. ``{which}`` becomes "first ", "second " … if several parts are dark, else an
    #: empty text.
    question: str
    #: Most events blacked out at once in one sample; with more than one, the question names the one
    #: it is about.
    masks: int = Field(ge=1, le=len(ORDINALS))
    #: Fewest sampled frames inside each dark part.
    min_dark_frames: int = Field(ge=1)
    #: Fewest visible sampled frames on each side of a dark part; a side that the clip does not have
    #: is exempt.
    min_context_frames: int = Field(ge=1)
    #: Largest share of the clip that may be dark; a longer event leaves too little to infer it
    #: from.
    max_dark_share: Share
    events: EventFilter

    @field_validator("question")
    @classmethod
    def _says_which(cls, question: str) -> str:
        if question.count("{which}") != 1:
            raise ValueError(
                f"question {question!r}: needs {{which}} once, such as 'What happens in the {{which}}dark part?'"
            )
        return question


def refusal(clip: Clip, event: Event, settings: Settings, sampled_frames: int) -> tuple[str, str] | None:
    """Reason and detail of a reject if blacking out this event makes no valid sample, else None
    (the validity rule of SPEC 1)."""
    unfit = _filtered(clip, event, settings.events)
    if unfit is not None:
        return "event-filtered", f"{event.caption!r}: {unfit}"
    unclear = _unclear(clip, (event.span,), settings, sampled_frames)
    return None if unclear is None else ("dark-part-not-inferable", f"{event.caption!r}{unclear}")


def _filtered(clip: Clip, event: Event, rules: EventFilter) -> str | None:
    seconds = event.span.frames / clip.rate
    if not rules.min_s <= seconds <= rules.max_s:
        return f"takes {float(seconds):.3g} s, events.min_s is {rules.min_s}, events.max_s {rules.max_s}"
    position = "start" if event.span.start == 0 else "end" if event.span.stop == clip.frames else "middle"
    if position not in rules.places:
        return f"stands at the clip's {position}, events.places: {', '.join(sorted(rules.places))}"
    length = len(words(event.caption))
    if not rules.min_words <= length <= rules.max_words:
        return (
            f"its caption has {length} words, events.min_words is {rules.min_words}, events.max_words {rules.max_words}"
        )
    for pattern in rules.forbidden:
        if re.search(pattern, event.caption, re.IGNORECASE):
            return f"its caption matches {pattern!r} of events.forbidden"
    same = event.caption.casefold()
    if rules.unique and sum(other.caption.casefold() == same for other in clip.events) > 1:
        return "another event of the clip has the same caption (events.unique)"
    return None


def _unclear(clip: Clip, dark: tuple[Span, ...], settings: Settings, sampled_frames: int) -> str | None:
    """Describe the rule that the sampled frames break if these parts are dark; None if they keep
    all."""
    share = sum(span.frames for span in dark) / clip.frames
    if share > settings.max_dark_share:
        return f" covers {share:.2f} of the clip, more than max_dark_share {settings.max_dark_share}"
    indices = sample_indices(clip.frames, sampled_frames)
    edges = [0, *(edge for span in dark for edge in (span.start, span.stop)), clip.frames]
    for number, span in enumerate(dark):
        inside = _seen(indices, span.start, span.stop)
        if inside < settings.min_dark_frames:
            return (
                f": {inside} of {sampled_frames} sampled frames are dark, min_dark_frames is {settings.min_dark_frames}"
            )
        # The context before this dark part reaches back to the previous dark part, the context
        # after it to the next.
        for side, (start, stop) in (("before", edges[2 * number :][:2]), ("after", edges[2 * number + 2 :][:2])):
            seen = _seen(indices, start, stop)
            if start < stop and seen < settings.min_context_frames:
                return f": {seen} sampled frames {side} it, min_context_frames is {settings.min_context_frames}"
    return None


def _seen(indices: Sequence[int], start: int, stop: int) -> int:
    """Count the ascending frame numbers in ``[start, stop)``."""
    return bisect_left(indices, stop) - bisect_left(indices, start)


def make(clip: Clip, settings: Settings, context: Context) -> TaskSamples:
    """Make up to ``per_clip`` samples of one clip; the clip's own random generator draws its
    events."""
    if not clip.events:
        return [], [Reject(item=clip.clip_id, reason="no-events", detail="the annotation lists no event to black out")]
    sampled_frames = frame_count(context.sampled_frames, clip.frames, clip.rate)
    valid, rejects = [], []
    for event in clip.events:
        why = refusal(clip, event, settings, sampled_frames)
        if why is None:
            valid.append(event)
        else:
            rejects.append(Reject(item=clip.clip_id, reason=why[0], detail=why[1]))
    rng = Random(f"{context.seed}/{NAME}/{clip.clip_id}")
    chosen = sorted(rng.sample(valid, min(settings.per_clip, len(valid))), key=lambda event: event.span.start)
    return [
        _sample(clip, event, _beside(clip, event, valid, settings, sampled_frames, rng), settings, sampled_frames)
        for event in chosen
    ], rejects


def _beside(
    clip: Clip, target: Event, valid: list[Event], settings: Settings, sampled_frames: int, rng: Random
) -> tuple[Span, ...]:
    """Dark parts of a sample about the event ``target``: its span, and spans of others as long as
    every rule holds."""
    dark: tuple[Span, ...] = (target.span,)
    for event in rng.sample(valid, len(valid)) if settings.masks > 1 else ():
        more = tuple(sorted((*dark, event.span), key=lambda span: span.start))
        apart = all(earlier.stop < later.start for earlier, later in pairwise(more))
        if len(dark) < settings.masks and apart and _unclear(clip, more, settings, sampled_frames) is None:
            dark = more
    return dark


def _sample(clip: Clip, event: Event, dark: tuple[Span, ...], settings: Settings, sampled_frames: int) -> Sample:
    timeline = plain(clip.clip_id, clip.frames, clip.rate)
    for span in dark:
        timeline = mask(timeline, span)
    which = f"{ORDINALS[dark.index(event.span)]} " if len(dark) > 1 else ""
    key, question = f"{clip.clip_id}/{event.span.start}-{event.span.stop}", settings.question.replace("{which}", which)
    trace = Trace(
        thinking=clip.caption or clip.event_summary,
        answer=event.caption,
        brief_thinking=clip.brief_thinking,
        careless_answer=vague(event.caption),
    )
    events = (event.caption,)
    return sample_of(NAME, clip, key, sampled_frames, question, event.caption, trace, timeline=timeline, events=events)


def dark_frames(sample: Sample) -> int:
    """Count the dark frames among those that the model sees."""
    indices = sample_indices(sample.timeline.frames, sample.sampled_frames)
    return sum(source.dark for source in resolve(sample.timeline, indices))


def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all
    verdict = referee.judge.covers(sample, reply.answer)
    if verdict.score is None:
        return unavailable(verdict, MAXIMUM)
    return TaskScore(value=verdict.score, maximum=MAXIMUM, parts={"covers": verdict.score}, reason=verdict.reason)


TASK = Task(
    name=NAME,
    title="DarkEventInfer",
    settings=Settings,
    make=make,
    score=score,
    answer="statement",
    all_or_nothing=False,
    judge_calls=lambda _: 1,
    marking=Marking(
        name="covers",
        scale="covers",
        preamble=(
            "You mark answers to the question what happened in a part of a video that was hidden. `reference` tells"
            " what really happened there."
        ),
        rule=(
            " Give 2 when the answer states the event of the reference, in whatever words, and nothing that"
            " contradicts it. Give 1 when it states the event in part or more vaguely, without an error. Give 0 when"
            " it states another event, is beside the point, or offers several candidate events instead of committing"
            " to one: a list of guesses is 0 even if one of them is right."
        ),
    ),
    trace=TraceBrief(
        name="write_dark_trace",
        situation=(
            "One event is hidden: the picture is black there, so the viewer infers it from what comes before and after"
            " it and must not speak as if it had been seen."
        ),
        answer=" The answer names the one hidden event that is asked about, in one short sentence.",
    ),
)
