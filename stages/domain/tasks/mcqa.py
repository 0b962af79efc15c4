"""Multiple choice: a question about one clip and lettered options.

Example: "what does the red bar do first ? A rises B grows C falls D shrinks", reference "A".
"""

from __future__ import annotations

from random import Random

from stages.domain.core.records import Clip, Question, Sample, Trace, folded
from stages.domain.core.replies import Reply
from stages.domain.core.timeline import SampledFrames
from stages.domain.tasks.choice import chosen_letter
from stages.domain.tasks.order import first, last, no_questions, right_after
from stages.domain.tasks.rewards import Referee, RewardRules, TaskScore
from stages.domain.tasks.task import BaseSettings, Context, Task, TaskSamples, TraceBrief, drawn_numbers, sample_of

NAME = "mcqa"
MAXIMUM = 1.0
#: Most options of a question that is made from events.
OPTIONS = 4


class Settings(BaseSettings):
    #: Make questions from the order of a clip's events if its annotation has no questions.
    from_events: bool


def event_questions(clip: Clip, rng: Random) -> tuple[Question, ...]:
    """Make questions about the first event, the last event and the event right after each other
    one.

    All options are events of the same clip, so only their order decides. An option must be right or
    wrong, so there is no question if overlaps leave no single answer
    (:mod:`stages.domain.tasks.order`), for fewer than two events, or if two captions are the same.
    """
    events = clip.events
    captions = [event.caption for event in events]
    if len({folded(caption) for caption in captions}) < len(captions):
        return ()
    candidates = [
        ("Which of these happens first?", first(events, clip.rate), captions),
        ("Which of these happens last?", last(events, clip.rate), captions),
    ]
    if len(captions) > 2:
        for event in events:
            others = [caption for caption in captions if caption != event.caption]
            candidates.append(
                (
                    f'Which of these happens right after "{event.caption}"?',
                    right_after(events, event, clip.rate),
                    others,
                )
            )
    return tuple(
        _from_events(question, answer.caption, others, rng)
        for question, answer, others in candidates
        if answer is not None
    )


def _from_events(question: str, answer: str, captions: list[str], rng: Random) -> Question:
    wrong = [caption for caption in captions if caption != answer]
    options = [answer, *rng.sample(wrong, min(OPTIONS - 1, len(wrong)))]
    rng.shuffle(options)
    return Question(question=question, options=tuple(options), answer=chr(ord("A") + options.index(answer)))


def make(clip: Clip, settings: Settings, context: Context) -> TaskSamples:
    """Make samples of up to ``per_clip`` of the clip's questions, or of questions made from its
    events."""
    rng = Random(f"{context.seed}/{NAME}/{clip.clip_id}")
    questions = clip.questions
    if not questions and settings.from_events:
        questions = event_questions(clip, rng)
    if not questions:
        return [], [no_questions(clip, "multiple-choice", settings.from_events)]
    numbers = drawn_numbers(rng, len(questions), settings.per_clip)
    return [_sample(clip, number, questions[number], context.sampled_frames) for number in numbers], []


def _sample(clip: Clip, number: int, question: Question, sampled_frames: SampledFrames) -> Sample:
    chosen = question.options[ord(question.answer) - ord("A")]
    story = question.rationale or clip.event_summary or chosen
    trace = Trace(thinking=story, answer=question.answer, brief_thinking=clip.brief_thinking)
    key = f"{clip.clip_id}/{number}"
    return sample_of(
        NAME, clip, key, sampled_frames, question.question, question.answer, trace, options=question.options
    )


def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all
    letter = chosen_letter(reply.answer, sample.options)
    value = float(letter == sample.reference)
    return TaskScore(
        value=value, maximum=MAXIMUM, parts={"right": value}, reason="no single letter" if letter is None else letter
    )


TASK = Task(
    name=NAME,
    title="answering questions (multiple choice)",
    settings=Settings,
    make=make,
    score=score,
    answer="letter",
    all_or_nothing=True,
    judge_calls=lambda _: 0,
    trace=TraceBrief(
        name="write_choice_trace",
        situation="Options with letters follow the question.",
        answer=" The answer is the letter of the right option and nothing else.",
    ),
)
