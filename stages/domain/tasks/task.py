"""The record that describes one task. Each module of this package ends in one, and :mod:`stages.domain.tasks` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from pydantic import Field

from stages.domain.core.records import Clip, Record, Reject, Sample, Subject, Timeline, Trace
from stages.domain.core.replies import Reply
from stages.domain.core.timeline import plain
from stages.domain.tasks.partners import Ring
from stages.domain.tasks.rewards import Referee, RewardRules, TaskScore


class BaseSettings(Record):
    """The base of a task's settings (``synthesize.tasks.<name>`` in ``params.yaml``)."""

    #: Samples that one clip gives, at most.
    per_clip: int = Field(gt=0)


S = TypeVar("S", bound=BaseSettings)


class Context(NamedTuple):
    """What a task may use beside the clip and its settings. ``ring``: the clips of the same split."""

    sampled_frames: int
    seed: int
    ring: Ring


#: Samples, and what had to be set aside.
Made = tuple[list[Sample], list[Reject]]


@dataclass(frozen=True)
class Part:
    """A part of a task's score, as GDPO scales it. ``most``: what it adds to the sum at most; ``title``: its name in a figure."""

    name: str
    most: Callable[[RewardRules], float] = lambda _: 1.0
    title: str = ""


@dataclass(frozen=True)
class Marking:
    """The instruction by which a language model marks an answer against the reference.

    Attributes:
        name: of the question.
        scale: ``right`` is 1 or 0, and the judge is shown the sample's question too; ``covers`` is 2, 1 or 0.
        asked: says what is marked; it stands before the notice on fenced texts.
        rule: says which answer gets which mark; it stands behind that notice.
    """

    name: str
    scale: Literal["right", "covers"]
    asked: str
    rule: str


@dataclass(frozen=True)
class TraceBrief:
    """The instruction by which a language model writes a teacher's reply. ``situation``: what the viewer sees and is asked;
    ``answer``: what the answer must be like."""

    name: str
    situation: str
    answer: str


@dataclass(frozen=True)
class Task(Generic[S]):
    """All that the program knows of a task.

    Attributes:
        name: in ``params.yaml``, in rows and in names of files.
        title: for people, and for the judge.
        settings: type of ``synthesize.tasks.<name>``.
        make: the samples of one clip. It draws from ``Random(f"{seed}/{name}/{clip_id}")``, so that a clip changes no other's samples.
        score: the score of a well-formed reply; None where the thinking is not of the form that the task asks for.
        answer: ``letter`` of an option; ``statement``, one thing in a few words; ``caption``, graded by how much of the truth it tells.
        all_or_nothing: replies earn 0 or the maximum. Divided by the spread of its group, a bonus for all right replies of such a group
            is gone.
        judge_calls: the most questions that a judge is asked about one reply; 0: the task is scored by rule.
        parts: what the score is made of; a part ``answer`` is the whole of it.
        analysed: the thinking is an analysis of subjects as JSON, and samples list ``subjects``.
        marking: of an answer by a judge that is a language model, where ``score`` asks for ``covers`` or ``right``.
        trace: how a language model writes its traces; None: none can be written.
    """

    name: str
    title: str
    settings: type[S]
    make: Callable[[Clip, S, Context], Made]
    score: Callable[[Reply, Sample, Referee, RewardRules], TaskScore | None]
    answer: Literal["letter", "statement", "caption"]
    all_or_nothing: bool
    judge_calls: Callable[[RewardRules], int]
    parts: tuple[Part, ...] = (Part("answer"),)
    analysed: bool = False
    marking: Marking | None = None
    trace: TraceBrief | None = None


def sample_of(
    task: str,
    clip: Clip,
    key: str,
    sampled_frames: int,
    question: str,
    reference: str,
    trace: Trace | None,
    *,
    timeline: Timeline | None = None,
    options: tuple[str, ...] = (),
    events: tuple[str, ...] = (),
    subjects: tuple[Subject, ...] = (),
) -> Sample:
    """A sample that asks about ``clip``. ``key``: its id behind the name of the task; ``timeline``: None shows the whole clip."""
    return Sample(
        sample_id=f"{task}/{key}",
        task=task,
        split=clip.split,
        clip_id=clip.clip_id,
        timeline=timeline or plain(clip.clip_id, clip.frames, clip.rate),
        sampled_frames=sampled_frames,
        question=question,
        options=options,
        reference=reference,
        events=events,
        subjects=subjects,
        trace=trace,
    )
