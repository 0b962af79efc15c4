"""Captioning, scored as VidBridge-R1 does: event recall + 0.5 * event precision (AutoDQ) + a bonus
for temporal order.

Example: "describe the video .", reference "the red bar rises then grows".
"""

from __future__ import annotations

from random import Random

from stages.domain.core.records import Clip, Reject, Sample, Trace, Verdict
from stages.domain.core.replies import Reply
from stages.domain.tasks.qa_utility import MOST_CALLS, qa_utility
from stages.domain.tasks.rewards import (
    Judge,
    Referee,
    RewardRules,
    TaskScore,
    hardened_bonus,
    most_hardened_bonus,
    published_bonus,
    unavailable,
)
from stages.domain.tasks.task import (
    BaseSettings,
    Context,
    Part,
    Task,
    TaskSamples,
    TraceBrief,
    drawn_numbers,
    sample_of,
)

NAME = "caption"
QUESTION = "describe the video ."
#: Most events per text (SPEC 1).
MAX_EVENTS = 10


class Settings(BaseSettings):
    """Settings of captions. ``per_clip``: captions of one clip that become samples, if it has
    several."""


def make(clip: Clip, settings: Settings, context: Context) -> TaskSamples:
    """Make a sample of the clip's caption, and of up to ``per_clip`` - 1 of its further captions,
    drawn by the seed."""
    if not clip.caption:
        return [], [
            Reject(item=clip.clip_id, reason="no-caption", detail="the annotation has no caption of the whole clip")
        ]
    first = clip.events[0].caption if len(clip.events) > 1 else None
    events = tuple(event.caption for event in clip.events)[:MAX_EVENTS]
    further = [caption for caption in clip.captions or () if caption.strip()]
    rng = Random(f"{context.seed}/{NAME}/{clip.clip_id}")
    numbers = drawn_numbers(rng, len(further), settings.per_clip - 1)
    captions = {clip.clip_id: clip.caption, **{f"{clip.clip_id}/{number + 1}": further[number] for number in numbers}}
    samples = []
    for key, caption in captions.items():
        trace = Trace(thinking=caption, answer=caption, brief_thinking=clip.brief_thinking, careless_answer=first)
        sample = sample_of(NAME, clip, key, context.sampled_frames, QUESTION, caption, trace, events=events)
        samples.append(sample.model_copy(update={"qa_pairs": clip.open_questions}))
    return samples, []


def event_recall(sample: Sample, caption: str, judge: Judge) -> float | Verdict:
    """Share of the reference's events that the caption entails; a verdict if the judge did not
    score."""
    events = sample.events or judge.extract_events(sample.reference)
    return _share(events, caption, judge)


def event_precision(sample: Sample, caption: str, judge: Judge) -> float | Verdict:
    """Share of the caption's events that the reference entails. A caption without events has
    precision 0, not 1."""
    return _share(judge.extract_events(caption), sample.reference, judge)


def _share(events: tuple[str, ...] | Verdict, caption: str, judge: Judge) -> float | Verdict:
    if isinstance(events, Verdict):
        return events
    events = events[:MAX_EVENTS]
    total = 0.0
    for event in events:
        verdict = judge.entailed(event, caption)
        if verdict.score is None:
            return verdict
        total += verdict.score
    return total / len(events) if events else 0.0


def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore:
    """Score recall + weight * precision + keyword bonus.

    With ``caption_scorer: qa_utility`` recall is the share of questions that the caption answers.
    ``paper``: unbounded, as published. ``hardened``: the bonus is scaled by recall, so phrases of
    order earn nothing in a wrong caption and do not offset errors; the total lies between 0 and the
    reference's own score.
    """
    hardened = rules.scoring == "hardened"
    maximum = (
        1 + rules.precision_weight + (most_hardened_bonus(sample.reference, rules) if hardened else rules.keyword_cap)
    )
    asked: dict[str, float] = {}
    if rules.caption_scorer == "qa_utility":
        utility = qa_utility(sample, reply.answer, referee.judge)
        if isinstance(utility, Verdict):
            return unavailable(utility, maximum)
        recall, asked = utility.share, utility.parts
    else:
        covered = event_recall(sample, reply.answer, referee.judge)
        if isinstance(covered, Verdict):
            return unavailable(covered, maximum)
        recall = covered
    precision = event_precision(sample, reply.answer, referee.judge)
    if isinstance(precision, Verdict):
        return unavailable(precision, maximum)
    bonus = (
        hardened_bonus(reply.answer, sample.reference, recall, rules)
        if hardened
        else published_bonus(reply.answer, rules)
    )
    total = recall + rules.precision_weight * precision + bonus
    if hardened:
        total = min(max(total, 0.0), maximum)
    parts = {"recall": recall, "precision": precision, "keywords": bonus, **asked}
    return TaskScore(value=total, maximum=maximum, parts=parts, reason=f"recall {recall:.2f} precision {precision:.2f}")


TASK = Task(
    name=NAME,
    title="describing videos (caption)",
    settings=Settings,
    make=make,
    score=score,
    answer="caption",
    all_or_nothing=False,
    # The judge lists the events of both texts, then looks for each in the other text.
    judge_calls=lambda rules: 1 + MAX_EVENTS + (MOST_CALLS if rules.caption_scorer == "qa_utility" else 1 + MAX_EVENTS),
    parts=(
        Part("recall"),
        Part("precision", lambda rules: rules.precision_weight),
        Part("keywords", lambda rules: rules.keyword_cap),
    ),
    trace=TraceBrief(
        name="write_caption_trace",
        situation="The viewer is to describe the video.",
        answer=" The answer is the description: every event, in order, and nothing else.",
    ),
)
