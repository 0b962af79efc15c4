"""Multiple choice: a question about one clip and lettered options.

Example: "what does the red bar do first ? A rises B grows C falls D shrinks", reference "A".
"""

from __future__ import annotations

from random import Random

from pydantic import Field

from stages.domain.records import Clip, Question, Record, Reject, Sample, TaskName, Trace
from stages.domain.replies import Reply, choice_letter
from stages.domain.rewards import Judge, RewardRules, TaskScore
from stages.domain.timeline import plain

NAME: TaskName = "mcqa"
MAXIMUM = 1.0


class Settings(Record):
    per_clip: int = Field(gt=0)


def make(clip: Clip, settings: Settings, sampled_frames: int, seed: int) -> tuple[list[Sample], list[Reject]]:
    """Up to ``per_clip`` of the clip's questions."""
    if not clip.questions:
        return [], [Reject(item=clip.clip_id, reason="no-questions", detail="the annotation lists no multiple-choice question")]
    rng = Random(f"{seed}/{NAME}/{clip.clip_id}")
    numbers = sorted(rng.sample(range(len(clip.questions)), min(settings.per_clip, len(clip.questions))))
    return [_sample(clip, number, clip.questions[number], sampled_frames) for number in numbers], []


def _sample(clip: Clip, number: int, question: Question, sampled_frames: int) -> Sample:
    chosen = question.options[ord(question.answer) - ord("A")]
    story = question.rationale or " then ".join(event.caption for event in clip.events) or chosen
    return Sample(
        sample_id=f"{NAME}/{clip.clip_id}/{number}",
        task=NAME,
        split=clip.split,
        clip_id=clip.clip_id,
        timeline=plain(clip.clip_id, clip.frames, clip.rate),
        sampled_frames=sampled_frames,
        question=question.question,
        options=question.options,
        reference=question.answer,
        trace=Trace(thinking=story, answer=question.answer, brief_thinking=clip.brief_thinking),
    )


def score(reply: Reply, sample: Sample, judge: Judge, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all tasks
    letter = choice_letter(reply.answer, len(sample.options))
    value = float(letter == sample.reference)
    return TaskScore(value=value, maximum=MAXIMUM, parts={"right": value}, reason="no single letter" if letter is None else letter)
