"""Parameters of judge, held-out judge and writer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.domain.tasks import KnownTask
from stages.domain.tasks.rewards import RewardRules
from stages.params.types import Fraction01, Table, Weight


class RuleJudgeParams(Table):
    """A deterministic offline judge: exact on the generated corpus, a rough measure by shared words
    elsewhere.

    ``rule`` judges the generated corpus only. ``rule_on_real_text`` is the same judge, accepted for
    other videos.
    """

    kind: Literal["rule", "rule_on_real_text"]
    #: For text outside the grammar of the corpus: fraction of the reference's content words
    #: required for full and for partial marks.
    full_share: Fraction01
    partial_share: Fraction01


class OpenAIJudgeParams(Table):
    """A language model behind an OpenAI-compatible endpoint. Its address comes from the environment
    (VIDBRIDGE_JUDGE_URL)."""

    kind: Literal["openai"]
    #: Name of the model at the endpoint.
    model: str = Field(min_length=1)
    #: Weights or release of the model; not sent. A new revision discards the cached verdicts of the
    #: old one.
    revision: str = Field(min_length=1)
    temperature: Weight
    max_tokens: int = Field(gt=0)
    seed: int = Field(ge=0)
    #: Largest fraction of a step's rollouts, or of a task's evaluated replies, that may lack a
    #: verdict before the stage stops.
    max_unavailable: float = Field(ge=0, lt=1)


JudgeParams = Annotated[RuleJudgeParams | OpenAIJudgeParams, Field(discriminator="kind")]


class HeldOutJudgeParams(Table):
    """A second judge that is not used for rewards. It judges a fraction of the rollouts to measure
    how far the two judges differ."""

    judge: JudgeParams
    #: Fraction of the rollouts that it judges.
    share: float = Field(gt=0, le=1)


class TraceParams(Table):
    """Traces for SFT by rejection sampling: a written reply to a training sample is kept if it
    earns its reward."""

    #: Tasks whose training samples get written traces instead of those of the annotation.
    tasks: tuple[KnownTask, ...] = Field(min_length=1)
    #: Fraction of the sample's maximum that a reply must earn; 1: all of it.
    least: float = Field(gt=0, le=1)
    #: Judge and rules of the reward, equal to `judge` and `rewards` of the whole file. They are
    #: repeated here so that in ``dvc.yaml`` the samples depend on them only where traces are
    #: written.
    judge: JudgeParams
    rewards: RewardRules


class EventParams(Table):
    """Events of clips whose annotation has none, told by the writer's model from pictures, which it
    must accept.

    An event is kept if a second reading, which is shown only its own pictures and nothing of the
    first one, tells the same event.
    """

    #: Number of pictures of a clip in the first reading, and largest number of an event in the
    #: second.
    frames: int = Field(ge=4)
    #: Largest size of a picture; larger frames are scaled down.
    max_pixels: int = Field(ge=4096)
    #: Largest number of events of a clip.
    most: int = Field(gt=0)
    #: Shortest event, in seconds.
    min_s: float = Field(gt=0)


class WriterParams(Table):
    """A language model that writes MixVidQA questions and traces, and tells events. Its address
    comes from the environment, as for the judge."""

    #: Name of the model at the endpoint.
    model: str = Field(min_length=1)
    #: Weights or release of the model; not sent. A new revision discards the cached answers of the
    #: old one.
    revision: str = Field(min_length=1)
    #: Sampling temperature of proposals; checks are sampled at 0.
    temperature: Weight
    max_tokens: int = Field(gt=0)
    #: Seed of the first proposal; each further proposal uses the next number.
    seed: int = Field(ge=0)
    #: Largest number of proposals for a question, a trace or the events of a clip.
    tries: int = Field(gt=0)
    questions: bool
    traces: TraceParams | None
    #: null: clips without events stay so.
    events: EventParams | None

    @model_validator(mode="after")
    def _writes_something(self) -> WriterParams:
        if not self.questions and self.traces is None and self.events is None:
            raise ValueError("questions false, traces null and events null: nothing is written; set `writer: null`")
        return self
