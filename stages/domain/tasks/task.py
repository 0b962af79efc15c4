"""The record that describes one task. Each module of this package ends in one, and
:mod:`stages.domain.tasks` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Generic, Literal, NamedTuple, TypeVar

from pydantic import Field

from stages.domain.core.records import Clip, Record, Reject, Sample, Subject, Timeline, Trace
from stages.domain.core.replies import Reply
from stages.domain.core.timeline import SampledFrames, frame_count, plain
from stages.domain.tasks.partners import Partner, Ring
from stages.domain.tasks.rewards import Referee, RewardRules, TaskScore


class BaseSettings(Record):
    """The base of a task's settings (``synthesize.tasks.<name>`` in ``params.yaml``)."""

    #: Most samples per clip.
    per_clip: int = Field(gt=0)


S = TypeVar("S", bound=BaseSettings)


class Context(NamedTuple):
    """Inputs of a task beside the clip and its settings. ``sampled_frames``: frames of a sample;
    ``ring``: the clips of the same split."""

    sampled_frames: SampledFrames
    seed: int
    ring: Ring


#: Samples, and rejects.
TaskSamples = tuple[list[Sample], list[Reject]]


@dataclass(frozen=True)
class Part:
    """A part of a task's score, which GDPO scales by itself. ``most``: the maximum that it adds;
    ``title``: its name in figures."""

    name: str
    most: Callable[[RewardRules], float] = lambda _: 1.0
    title: str = ""


@dataclass(frozen=True)
class Marking:
    """Instruction for a language model that marks an answer against the reference.

    Attributes:
        name: name of the request.
        scale: ``right`` is 1 or 0, and the judge sees the sample's question too; ``covers`` is 2, 1
            or 0.
        preamble: describes the answers to mark; precedes the notice on fenced texts.
        rule: defines the marks; follows that notice.
    """

    name: str
    scale: Literal["right", "covers"]
    preamble: str
    rule: str


@dataclass(frozen=True)
class TraceBrief:
    """Instruction for a language model that writes a teacher's reply.

    ``situation``: the viewer's input and question; ``answer``: the form of the answer.
    """

    name: str
    situation: str
    answer: str


#: Kinds of answers; :class:`Task` says what each is.
AnswerKind = Literal["letter", "statement", "caption", "value"]


class AnswerForm(NamedTuple):
    """Form that an answer must have, as a further condition of the format gate.

    ``parse``: reads an answer; None if it does not have the form. ``about``: the form in a few
    words ("a number"), for messages.
    """

    parse: Callable[[str], object | None]
    about: str


@dataclass(frozen=True)
class Task(Generic[S]):
    """Definition of a task.

    Attributes:
        name: used in ``params.yaml``, in rows and in file names.
        title: for people, and for the judge.
        settings: type of ``synthesize.tasks.<name>``.
        make: makes the samples of one clip. It draws from ``Random(f"{seed}/{name}/{clip_id}")``,
            so a clip does not affect the samples of another.
        score: scores a well-formed reply; None if its thinking does not have the form that the task
            requires.
        answer: ``letter`` of an option; ``statement``, one fact in a few words; ``caption``, graded
            by its share of the truth; ``value``, in a form of its own (a number, spans, letters).
        all_or_nothing: replies earn 0 or the maximum. A bonus for all right replies of such a group
            vanishes once advantages are divided by the group's standard deviation.
        judge_calls: most requests to a judge per reply; 0: the task is scored by rule.
        parts: the parts of the score; a part ``answer`` is the whole score.
        analysed: the thinking is an analysis of subjects as JSON, and samples list ``subjects``.
        marking: instruction for a language model as judge, if ``score`` calls ``covers`` or
            ``right``.
        trace: instruction for a language model that writes traces; None: traces cannot be written.
        answers: type of the objects that rows may have for it in ``answers.<name>``
            (:func:`answers_of`); None: it reads none.
        form: form of its answers; None: any text.
    """

    name: str
    title: str
    settings: type[S]
    make: Callable[[Clip, S, Context], TaskSamples]
    score: Callable[[Reply, Sample, Referee, RewardRules], TaskScore | None]
    answer: AnswerKind
    all_or_nothing: bool
    judge_calls: Callable[[RewardRules], int]
    parts: tuple[Part, ...] = (Part("answer"),)
    analysed: bool = False
    marking: Marking | None = None
    trace: TraceBrief | None = None
    answers: type[Record] | None = None
    form: AnswerForm | None = None


A = TypeVar("A", bound=Record)


def answers_of(clip: Clip, task: str, kind: type[A]) -> tuple[A, ...]:
    """Read the objects that the clip's row has for the task, in their order; none if it has none.

    Raises:
        ValidationError: one is not a ``kind``. Synthesis rejects such a clip before it calls
            ``make``.
    """
    return tuple(kind.model_validate(fields) for fields in (clip.answers or {}).get(task, ()))


def drawn_numbers(rng: Random, count: int, most: int) -> list[int]:
    """Draw up to ``most`` of the numbers below ``count``, in their order."""
    return sorted(rng.sample(range(count), min(most, count)))


def sample_of(
    task: str,
    clip: Clip,
    key: str,
    sampled_frames: SampledFrames,
    question: str,
    reference: str,
    trace: Trace | None,
    *,
    timeline: Timeline | None = None,
    partner: Partner | None = None,
    options: tuple[str, ...] = (),
    events: tuple[str, ...] = (),
    subjects: tuple[Subject, ...] = (),
    truth: Record | None = None,
) -> Sample:
    """Build a sample about ``clip``, with the number of frames that ``sampled_frames`` gives it.

    Args:
        key: its id behind the task's name.
        timeline: None for the whole clip.
        partner: the timeline's other clip.
        truth: facts for the score.
    """
    timeline = timeline or plain(clip.clip_id, clip.frames, clip.rate)
    sources = {each.clip_id: each.source_id for each in (clip, partner) if each is not None}
    recordings = tuple(dict.fromkeys(sources[name] for name in timeline.clip_ids))
    if not isinstance(sampled_frames, int):
        sampled_frames = frame_count(sampled_frames, timeline.frames, timeline.rate)
    return Sample(
        sample_id=f"{task}/{key}",
        task=task,
        split=clip.split,
        clip_id=clip.clip_id,
        timeline=timeline,
        recordings=None if recordings == timeline.clip_ids else recordings,
        sampled_frames=sampled_frames,
        question=question,
        options=options,
        reference=reference,
        events=events,
        subjects=subjects,
        trace=trace,
        truth=None if truth is None else truth.model_dump(mode="json"),
    )
