"""Open questions: a question about one clip, answered in words.

Example: 'What happens right after "the red bar rises"?', reference "the red bar grows". The answer
is right or wrong: a second answer, an event beside the right one, or a hedge makes it wrong.
"""

from __future__ import annotations

from random import Random

from stages.domain.core.records import Clip, OpenQuestion, Sample, Trace, folded
from stages.domain.core.timeline import SampledFrames
from stages.domain.tasks.lexicon import vague
from stages.domain.tasks.order import first, last, no_questions, right_after
from stages.domain.tasks.rewards import right_or_wrong
from stages.domain.tasks.task import (
    BaseSettings,
    Context,
    Marking,
    Task,
    TaskSamples,
    TraceBrief,
    drawn_numbers,
    sample_of,
)

NAME = "qa"


class Settings(BaseSettings):
    #: Make questions from the order of a clip's events if its annotation has no open questions.
    from_events: bool


def event_questions(clip: Clip) -> tuple[OpenQuestion, ...]:
    """Ask for the first event, the last event, and the event right after each other one.

    There is no question if overlaps leave no single answer (:mod:`stages.domain.tasks.order`), for
    fewer than two events, or if two captions are the same.
    """
    events = clip.events
    if len({folded(event.caption) for event in events}) < len(events):
        return ()
    candidates = [
        ("What happens first?", first(events, clip.rate)),
        ("What happens last?", last(events, clip.rate)),
        *((f'What happens right after "{event.caption}"?', right_after(events, event, clip.rate)) for event in events),
    ]
    return tuple(
        OpenQuestion(question=question, answer=answer.caption) for question, answer in candidates if answer is not None
    )


def make(clip: Clip, settings: Settings, context: Context) -> TaskSamples:
    """Make samples of up to ``per_clip`` of the clip's open questions, or of questions made from
    its events."""
    questions = clip.open_questions or ()
    if not questions and settings.from_events:
        questions = event_questions(clip)
    if not questions:
        return [], [no_questions(clip, "open", settings.from_events)]
    rng = Random(f"{context.seed}/{NAME}/{clip.clip_id}")
    numbers = drawn_numbers(rng, len(questions), settings.per_clip)
    return [_sample(clip, number, questions[number], context.sampled_frames) for number in numbers], []


def _sample(clip: Clip, number: int, question: OpenQuestion, sampled_frames: SampledFrames) -> Sample:
    trace = Trace(
        thinking=clip.caption or clip.event_summary or question.answer,
        answer=question.answer,
        brief_thinking=clip.brief_thinking,
        careless_answer=vague(question.answer),
    )
    return sample_of(NAME, clip, f"{clip.clip_id}/{number}", sampled_frames, question.question, question.answer, trace)


TASK = Task(
    name=NAME,
    title="answering questions (open)",
    settings=Settings,
    make=make,
    score=right_or_wrong,
    answer="statement",
    all_or_nothing=True,
    judge_calls=lambda _: 1,
    marking=Marking(
        name="answers",
        scale="right",
        preamble="You mark answers to a question about a video. `reference` is the true answer to `question`.",
        rule=(
            " The answer is right when it answers the question as the reference does, in whatever words. It is wrong"
            " when it differs, gives a second answer or tells of a further event, leaves open which of several things"
            " it means, or could be read as right and as wrong."
        ),
    ),
    trace=TraceBrief(
        name="write_answer_trace",
        situation="The question is to be answered in a few words.",
        answer=" The answer is one short sentence, or less.",
    ),
)
