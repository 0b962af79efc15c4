"""Parameters of those that read replies, and of the one that writes: judge, held-out judge, writer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.domain.tasks import KnownTask
from stages.domain.tasks.rewards import RewardRules
from stages.params.types import Fraction01, Table, Weight


class RuleJudgeParams(Table):
    """Deterministic, offline: exact on the generated corpus, a rough measure by shared words elsewhere.

    ``rule`` judges the generated corpus only. ``rule_on_real_text`` is the same judge, accepted for other videos.
    """

    kind: Literal["rule", "rule_on_real_text"]
    #: On text outside the corpus's grammar: share of the reference's content words for full and for partial marks.
    full_share: Fraction01
    partial_share: Fraction01


class OpenAIJudgeParams(Table):
    """A language model behind an OpenAI-compatible endpoint. Where that is comes from the environment (VIDBRIDGE_JUDGE_URL)."""

    kind: Literal["openai"]
    #: As the endpoint names it.
    model: str = Field(min_length=1)
    #: Which weights or release of it; not sent. Verdicts of another revision are asked anew.
    revision: str = Field(min_length=1)
    temperature: Weight
    max_tokens: int = Field(gt=0)
    seed: int = Field(ge=0)
    #: Share of a step's rollouts, or of a task's evaluated replies, that may lack a verdict before the stage stops.
    max_unavailable: float = Field(ge=0, lt=1)


JudgeParams = Annotated[RuleJudgeParams | OpenAIJudgeParams, Field(discriminator="kind")]


class HeldOutJudgeParams(Table):
    """A second judge that no reward comes from: it is asked about a share of the rollouts, to see by how much they part."""

    judge: JudgeParams
    share: float = Field(gt=0, le=1)


class TraceParams(Table):
    """Traces for SFT by rejection sampling: a written reply to a training sample is kept where it earns its reward."""

    #: Tasks whose training samples get written traces, instead of those of the annotation.
    tasks: tuple[KnownTask, ...] = Field(min_length=1)
    #: Share of the sample's maximum that a reply must earn; 1: all of it.
    least: float = Field(gt=0, le=1)
    #: The reward: the `judge` and `rewards` of the whole file. They stand here too, so that for ``dvc.yaml`` the samples depend on them
    #: only where traces are written.
    judge: JudgeParams
    rewards: RewardRules


class WriterParams(Table):
    """A language model that writes MixVidQA questions and traces. Where it is comes from the environment, as for the judge."""

    #: As the endpoint names it.
    model: str = Field(min_length=1)
    #: Which weights or release of it; not sent. What another revision would write is asked anew.
    revision: str = Field(min_length=1)
    #: Of what it writes; what it checks is asked at 0.
    temperature: Weight
    max_tokens: int = Field(gt=0)
    #: Of the first try; each later one has the next.
    seed: int = Field(ge=0)
    #: Proposals for a question, or for a trace, before it is given up.
    tries: int = Field(gt=0)
    questions: bool
    traces: TraceParams | None

    @model_validator(mode="after")
    def _writes_something(self) -> WriterParams:
        if not self.questions and self.traces is None:
            raise ValueError("questions false and traces null: nothing is written; set `writer: null`")
        return self
