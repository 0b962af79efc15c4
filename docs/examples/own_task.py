"""The colour of the shape that moves first: a task in one file, as an example.

Example: a red bar rises, then grows. Question: "which colour is the one that moves first ?".
Reference: "red".
"""

from __future__ import annotations

from stages.domain.core.records import Clip, Reject, Sample, Trace
from stages.domain.core.replies import Reply
from stages.domain.core.words import words
from stages.domain.tasks.lexicon import facts
from stages.domain.tasks.rewards import Referee, RewardRules, TaskScore
from stages.domain.tasks.task import BaseSettings, Context, Task, TaskSamples, sample_of

NAME = "first_colour"
QUESTION = "which colour is the one that moves first ?"


def make(clip: Clip, settings: BaseSettings, context: Context) -> TaskSamples:  # noqa: ARG001 - one signature for all tasks
    known = facts(clip.events[0].caption) if clip.events else None
    if not known or not known[0].colour:
        return [], [
            Reject(item=clip.clip_id, reason="no-colour", detail="no event, or the first one's caption names no colour")
        ]
    trace = Trace(thinking=clip.events[0].caption, answer=known[0].colour, brief_thinking=clip.brief_thinking)
    return [sample_of(NAME, clip, clip.clip_id, context.sampled_frames, QUESTION, known[0].colour, trace)], []


def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all
    right = float(words(reply.answer) == words(sample.reference))
    return TaskScore(value=right, maximum=1.0, parts={"right": right}, reason=reply.answer)


TASK = Task(
    name=NAME,
    title="the colour of what moves first",
    settings=BaseSettings,
    make=make,
    score=score,
    answer="statement",
    all_or_nothing=True,
    judge_calls=lambda _: 0,
)
