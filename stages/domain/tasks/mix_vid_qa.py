"""MixVidQA (VidBridge-R1): two unrelated clips are cut and interleaved A1 B1 A2 B2; the question is
about one of them.

Example: half a second of a red bar, half of a blue circle, and so on. Question: "what does the red
bar do first ?". The question names its clip by content, never by position; the other clip must be
ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from random import Random

from pydantic import Field, model_validator

from stages.domain.core.records import Clip, Event, Exact, Reject, Sample, Segment, Span, Timeline, Trace
from stages.domain.core.timeline import (
    SampledFrames,
    conformed_frames,
    cut,
    frame_count,
    interleave,
    piece_lengths,
    sample_indices,
    segment_counts,
)
from stages.domain.tasks.lexicon import vague
from stages.domain.tasks.order import first, last
from stages.domain.tasks.partners import Partner, as_partner
from stages.domain.tasks.rewards import right_or_wrong
from stages.domain.tasks.task import BaseSettings, Context, Marking, Task, TaskSamples, TraceBrief, sample_of

NAME = "mix_vid_qa"
#: Placeholder for the question and reference of a mixture that no template covers, until a writer
#: has written them.
UNWRITTEN = "(not written yet)"
#: Draws of piece lengths and excerpts before a pair is rejected.
ATTEMPTS = 8
#: Clips tried as partner: if a thousand in a row do not fit, hardly any does.
SEARCHED = 1000


class Settings(BaseSettings):
    """Settings of MixVidQA. ``per_clip``: partners drawn for each clip."""

    #: Longest part of a clip that is used, in seconds; a longer clip contributes an excerpt.
    max_clip_s: Exact
    #: Shortest and longest piece, in seconds.
    min_piece_s: Exact
    max_piece_s: Exact
    #: Fewest sampled frames in every piece.
    min_piece_frames: int = Field(ge=1)
    #: Mix only clips of one shot (``ingest.curate`` finds them): a cut inside a clip looks like
    #: the cut to the other clip.
    one_shot: bool
    #: Mix also clips that are different parts of one recording, as where a long recording holds
    #: unrelated shots.
    one_recording: bool

    @model_validator(mode="after")
    def _ordered(self) -> Settings:
        if not 0 < self.min_piece_s <= self.max_piece_s <= self.max_clip_s:
            raise ValueError(
                f"min_piece_s {self.min_piece_s}, max_piece_s {self.max_piece_s} and max_clip_s {self.max_clip_s}: need"
                " 0 < min_piece_s <= max_piece_s <= max_clip_s"
            )
        return self


def unsuitable(clip: Partner, partner: Partner, settings: Settings) -> str | None:
    """Reason why these two must not be mixed; None if they may.

    They must come from different source videos (or parts of one, if the settings say so), show
    different classes, and share no attribute that a question could name.
    """
    if clip.source_id == partner.source_id and not settings.one_recording:
        return "same source video"
    if clip.overlaps(partner):
        return "same part of one file"
    if settings.one_shot and not partner.one_shot:
        return "several shots"
    if clip.label is not None and clip.label == partner.label:
        return f"same class {clip.label!r}"
    shared = clip.named & partner.named
    if shared:
        return f"both show {sorted(shared)[0]!r}"
    return None


def make(clip: Clip, settings: Settings, context: Context) -> TaskSamples:
    """Make up to ``per_clip`` samples about ``clip``, each mixed with another partner."""
    if clip.display_name is None or not clip.events:
        missing = "an event to ask about" if clip.display_name else "a single subject or a class label to name it by"
        return [], [Reject(item=clip.clip_id, reason="nothing-to-ask", detail=f"the annotation lacks {missing}")]
    return _mixed(clip, settings, context)


def make_unwritten(clip: Clip, settings: Settings, context: Context) -> TaskSamples:
    """Make samples as :func:`make` does, of a clip that no template covers.

    Each question is :data:`UNWRITTEN` until a writer writes it.
    """
    if not _tells(clip):
        return [], [
            Reject(item=clip.clip_id, reason="nothing-to-ask", detail="the annotation tells nothing of the clip")
        ]
    return _mixed(clip, settings, context)


def _tells(clip: Clip) -> bool:
    """True if the annotation has anything to write a question from."""
    return bool(clip.label or clip.caption or clip.subjects or clip.events)


def _mixed(clip: Clip, settings: Settings, context: Context) -> TaskSamples:
    if settings.one_shot and clip.shots != ():
        found = "nobody looked for its shots" if clip.shots is None else f"it has {len(clip.shots) + 1} shots"
        return [], [Reject(item=clip.clip_id, reason="not-one-shot", detail=f"{found} (mix_vid_qa.one_shot)")]
    samples: list[Sample] = []
    rejects: list[Reject] = []
    used: set[str] = set()
    about = as_partner(clip)
    for index in range(settings.per_clip):
        key = f"{context.seed}/{NAME}/{clip.clip_id}/{index}"
        partner = next(
            (
                c
                for c in islice(context.ring.walk(key), SEARCHED)
                if c.clip_id not in used and unsuitable(about, c, settings) is None
            ),
            None,
        )
        if partner is None:
            detail = f"no suitable partner number {index + 1} in the {clip.split} split (another source, class, look)"
            rejects.append(Reject(item=clip.clip_id, reason="no-partner", detail=detail))
            break
        used.add(partner.clip_id)
        result = _sample(clip, about, partner, settings, context.sampled_frames, Random(key))
        if isinstance(result, Sample):
            samples.append(result)
        else:
            rejects.append(result)
    return samples, rejects


def _sample(
    clip: Clip, about: Partner, partner: Partner, settings: Settings, sampled_frames: SampledFrames, rng: Random
) -> Sample | Reject:
    # The lower of the two rates: no frame has to be repeated.
    rate = min(clip.rate, partner.rate)
    bounds = math.ceil(settings.min_piece_s * rate), math.floor(settings.max_piece_s * rate)
    order = [about, partner] if rng.random() < 0.5 else [partner, about]
    lengths = [_cuttable(c, rate, settings.max_clip_s, bounds) for c in order]
    events = _conformed_events(clip, rate)
    for _ in range(ATTEMPTS if all(lengths) else 0):
        pieces = [piece_lengths(length, *bounds, rng) or () for length in lengths]
        excerpts = [
            _excerpt(c, length, rate, events if c is about else (), rng)
            for c, length in zip(order, lengths, strict=True)
        ]
        first, second = (
            [
                Segment(clip_id=c.clip_id, span=Span(start=excerpt.start + span.start, stop=excerpt.start + span.stop))
                for span in cut(excerpt.frames, cuts)
            ]
            for c, excerpt, cuts in zip(order, excerpts, pieces, strict=True)
        )
        timeline = interleave(first, second, rate)
        total = timeline.frames
        shown = frame_count(sampled_frames, total, rate)
        counts = segment_counts(timeline, sample_indices(total, shown))
        if min(counts) < settings.min_piece_frames:
            continue
        askable = _askable(events, excerpts[order.index(about)], rate)
        if clip.display_name is not None and askable:
            which = rng.choice(tuple(askable))
            return _templated(clip, partner, timeline, which, askable[which], shown)
        if (clip.display_name is None or not clip.events) and _tells(shown_part(clip, timeline)):
            return _unwritten(clip, partner, timeline, shown)
    detail = (
        f"with {partner.clip_id}: no cut into pieces of {settings.min_piece_s} to {settings.max_piece_s} s, of"
        f" {settings.max_clip_s} s of each clip at most, shows every piece and a whole event to ask about"
    )
    return Reject(item=clip.clip_id, reason="piece-not-shown", detail=detail)


def _cuttable(clip: Partner, rate: Fraction, max_clip_s: Fraction, bounds: tuple[int, int]) -> int:
    """Largest number of frames of the clip, conformed to ``rate``, that pieces of these lengths add
    up to; 0 if no piece fits."""
    shortest, longest = bounds
    at_most = min(conformed_frames(clip.frames, clip.rate, rate), int(max_clip_s * rate))
    return min(at_most, at_most // shortest * longest) if shortest <= longest else 0


def _conformed_events(clip: Clip, rate: Fraction) -> tuple[Event, ...]:
    """Convert the clip's events to frames of the clip conformed to ``rate``; each span covers every
    frame that shows part of the event."""
    total = conformed_frames(clip.frames, clip.rate, rate)
    events = []
    for event in clip.events:
        start = min(int(event.span.start * rate / clip.rate), total - 1)
        stop = min(math.ceil(event.span.stop * rate / clip.rate), total)
        events.append(Event(span=Span(start=start, stop=max(stop, start + 1)), caption=event.caption))
    return tuple(events)


def _excerpt(clip: Partner, length: int, rate: Fraction, events: Sequence[Event], rng: Random) -> Span:
    """Choose ``length`` frames of the clip: all of them, or a random excerpt, around one of
    ``events`` if any fits."""
    total = conformed_frames(clip.frames, clip.rate, rate)
    fitting = [event.span for event in events if event.span.frames <= length]
    if length == total:
        start = 0
    elif fitting:
        chosen = rng.choice(fitting)
        start = rng.randint(max(0, chosen.stop - length), min(chosen.start, total - length))
    else:
        start = rng.randint(0, total - length)
    return Span(start=start, stop=start + length)


def _askable(events: Sequence[Event], shown: Span, rate: Fraction) -> dict[str, Event]:
    """Select the events to ask about: ``first`` and ``last`` of the visible events, or the only one
    under the empty key.

    Only an event that is visible as a whole qualifies, and ``first`` and ``last`` must be unique
    (:mod:`stages.domain.tasks.order`).
    """
    visible = [event for event in events if event.span.start < shown.stop and shown.start < event.span.stop]
    whole = [event for event in visible if shown.start <= event.span.start and event.span.stop <= shown.stop]
    if len(visible) == 1:
        return {"": whole[0]} if whole else {}
    candidates = {"first": first(visible, rate), "last": last(visible, rate)}
    return {which: event for which, event in candidates.items() if event is not None and event in whole}


def ask(clip: Clip, which: str) -> str:
    """Render the question about the clip, which is named by its only subject, else by its class."""
    when = f"{which} " if which else ""
    if len(clip.subjects) == 1 or clip.label is None:
        return f"what does the {clip.display_name} do {when}?"
    return f'What happens {when}in the video that shows "{spoken(clip.label)}"?'


def spoken(label: str) -> str:
    """Convert a class label to words: ``MakeSandwich``, ``make_sandwich`` and ``make sandwich`` all
    become "make sandwich"."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", label).lower().split())


def _templated(
    clip: Clip, partner: Partner, timeline: Timeline, which: str, event: Event, sampled_frames: int
) -> Sample:
    key, question, events = f"{clip.clip_id}+{partner.clip_id}/{which or 'only'}", ask(clip, which), (event.caption,)
    trace = Trace(
        thinking=clip.caption or clip.event_summary,
        answer=event.caption,
        brief_thinking=clip.brief_thinking,
        careless_answer=vague(event.caption),
    )
    return sample_of(
        NAME, clip, key, sampled_frames, question, event.caption, trace,
        timeline=timeline, partner=partner, events=events,
    )  # fmt: skip


def _unwritten(clip: Clip, partner: Partner, timeline: Timeline, sampled_frames: int) -> Sample:
    key = f"{clip.clip_id}+{partner.clip_id}/unwritten"
    return sample_of(NAME, clip, key, sampled_frames, UNWRITTEN, UNWRITTEN, None, timeline=timeline, partner=partner)


def shown_part(clip: Clip, timeline: Timeline) -> Clip:
    """Reduce a clip's annotation to the part that a mixture shows.

    For an excerpt, only events that are visible as a whole remain; caption, actions and questions
    about the whole clip are dropped.
    """
    spans = [segment.span for segment in timeline.segments if segment.clip_id == clip.clip_id]
    shown = Span(start=min(span.start for span in spans), stop=max(span.stop for span in spans))
    if shown.frames == conformed_frames(clip.frames, clip.rate, timeline.rate):
        return clip
    conformed = zip(
        sorted(clip.events, key=lambda event: event.span.start), _conformed_events(clip, timeline.rate), strict=True
    )
    whole = tuple(event for event, at in conformed if shown.start <= at.span.start and at.span.stop <= shown.stop)
    looks = tuple(subject.model_copy(update={"actions": ()}) for subject in clip.subjects)
    whole_clip_only = {"caption": None, "captions": None, "questions": (), "open_questions": None}
    return clip.model_copy(update={"events": whole, "subjects": looks, **whole_clip_only})


def with_question(sample: Sample, clip: Clip, question: str, answer: str) -> Sample:
    """Return the sample with a written question about ``clip`` instead of the template's."""
    shown = shown_part(clip, sample.timeline)
    thinking = shown.caption or shown.event_summary
    return sample.model_copy(
        update={
            "sample_id": f"{sample.sample_id.rpartition('/')[0]}/written",
            "question": question,
            "reference": answer,
            "events": (),
            "trace": Trace(thinking=thinking, answer=answer, brief_thinking=clip.brief_thinking) if thinking else None,
        }
    )


TASK = Task(
    name=NAME,
    title="MixVidQA",
    settings=Settings,
    make=make,
    score=right_or_wrong,
    answer="statement",
    all_or_nothing=True,
    judge_calls=lambda _: 1,
    marking=Marking(
        name="right",
        scale="right",
        preamble=(
            "You mark answers to a question about one of two videos that were cut into each other. `reference` is the"
            " true answer to `question`; what happens in the other video is a wrong answer."
        ),
        rule=(
            " The answer is right when it answers the question as the reference does, in whatever words. It is wrong"
            " when it differs, mixes in the other video, leaves open which of several things it means, or could be"
            " read as right and as wrong."
        ),
    ),
    trace=TraceBrief(
        name="write_mixed_trace",
        situation=(
            "Pieces of two unrelated videos are shown in turns: `seen` tells the one that is asked about, `mixed_in`"
            " the other one, which the viewer recognises and ignores."
        ),
        answer=" The answer is one short sentence.",
    ),
)
