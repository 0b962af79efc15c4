"""A number, right within a tolerance: a task of one's own in one file.

Example: three bars stand on the ground. Question: "how many bars are there ?". Reference: "3". The
row of the clip says ``"answers": {"count": {"question": "how many bars are there ?", "number":
3}}``.
"""

from __future__ import annotations

import re

from pydantic import Field

from stages.domain.core.records import Clip, Record, Reject, Sample, Trace
from stages.domain.core.replies import Reply
from stages.domain.tasks.rewards import Referee, RewardRules, TaskScore
from stages.domain.tasks.task import AnswerForm, BaseSettings, Context, Task, TaskSamples, answers_of, sample_of

NAME = "count"


class Settings(BaseSettings):
    #: Largest error of a right answer, as a share of the true number.
    tolerance: float = Field(ge=0)


class Counted(Record):
    """What a row says: ``answers.count``, one object or a list of them."""

    question: str = Field(min_length=1)
    number: float


class Truth(Record):
    """What a sample keeps for its score."""

    number: float
    error: float


def read_number(answer: str) -> float | None:
    return float(answer) if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,6})?", answer) else None


def make(clip: Clip, settings: Settings, context: Context) -> TaskSamples:
    counted = answers_of(clip, NAME, Counted)
    if not counted:
        return [], [Reject(item=clip.clip_id, reason="no-number", detail="the row has no answers.count")]
    samples = []
    for place, one in enumerate(counted[: settings.per_clip]):
        answer, key = f"{one.number:.6g}", f"{clip.clip_id}/{place}"
        trace = Trace(thinking=f"there are {answer}", answer=answer)
        truth = Truth(number=one.number, error=settings.tolerance * abs(one.number))
        samples.append(sample_of(NAME, clip, key, context.sampled_frames, one.question, answer, trace, truth=truth))
    return samples, []


def score(reply: Reply, sample: Sample, referee: Referee, rules: RewardRules) -> TaskScore:  # noqa: ARG001 - one signature for all tasks
    given, truth = read_number(reply.answer), Truth.model_validate(sample.truth)
    assert given is not None  # the form of the answer is checked first
    right = float(abs(given - truth.number) <= truth.error)
    return TaskScore(value=right, maximum=1.0, parts={"right": right}, reason=f"{given:g} for {truth.number:g}")


TASK = Task(
    name=NAME,
    title="counting",
    settings=Settings,
    make=make,
    score=score,
    answer="value",
    all_or_nothing=True,
    judge_calls=lambda _: 0,
    answers=Counted,
    form=AnswerForm(read_number, "a number"),
)
