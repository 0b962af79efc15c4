"""Parameters of evaluation, the gate and the ablation grid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from stages.domain.core.records import Split
from stages.params.types import Fraction01, ModelName, RowName, Table


class EvaluationParams(Table):
    #: Which policies are scored: ``base`` and any rows.
    of: tuple[RowName, ...] = Field(min_length=1)
    split: Split
    samples_per_task: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    confidence: float = Field(gt=0.5, lt=1)


#: Measured on rollouts (:data:`stages.domain.rl.gauges.GAUGES`); the last one on held-out samples: what is scored on black video, as a share.
GaugeName = Literal[
    "length_reward_correlation",
    "empty_thinking",
    "enumeration",
    "keyword_stuffing",
    "zero_variance_groups",
    "judge_gap",
    "blank_video",
    "shuffled_video",
    "held_out_blank_video",
]


class GaugeLimits(Table):
    """Gauges of reward hacking (:mod:`stages.domain.rl.gauges`) that a candidate of GRPO must keep below."""

    #: A gauge's value is its mean over so many of its last logged values (some are logged every few steps only).
    last: int = Field(gt=0, le=100)
    #: What a gauge that is named below and was not measured does to a candidate of GRPO. Some need a task to be measured on
    #: (``enumeration`` a proxy task, ``keyword_stuffing`` captions) or ``controls_every``: name what the candidate's row can measure.
    unmeasured: Literal["refuse", "allow"]
    #: Gauge to the greatest value that passes.
    at_most: dict[GaugeName, float]


class GateParams(Table):
    """When a candidate replaces the champion."""

    registered_model: ModelName
    #: Another registered model, which is given a copy of every champion; None: there is none.
    production: ModelName | None
    #: Tasks whose mean is compared.
    scores: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)]
    #: The candidate's mean score must exceed the champion's by at least this.
    min_gain: float
    #: Whether chance must be ruled out: the interval of the gain, paired by sample and drawn by clip, must lie above ``min_gain``.
    significant: bool
    #: No task may lose more, whether it is among ``scores`` or not.
    max_task_drop: Fraction01
    min_format: Fraction01
    #: By how much the first champion's mean must exceed that of every trivial baseline (below 0 lets a worse one pass).
    min_over_baselines: float
    gauges: GaugeLimits

    @model_validator(mode="after")
    def _names_differ(self) -> GateParams:
        if self.production in (self.registered_model, self.ledger):
            raise ValueError(f"production: {self.production!r} is taken; name a model of its own, or null")
        return self

    @property
    def ledger(self) -> str:
        """The registered model whose versions are the gate's decisions."""
        return f"{self.registered_model}.gate"


Axis = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(/[a-z0-9_]+)?$")]


class AblationVariant(Table):
    """One row of an ablation grid: a row of this recipe with something changed."""

    #: How tables and figures call it.
    title: str = Field(min_length=1)
    #: The ``sft`` or ``grpo`` row whose settings it has.
    like: RowName
    #: Keys of that row, each with its other value; they go before those that all variants share.
    changes: dict[str, Any]


class AblationParams(Table):
    """A grid of variants of training, each run from one start with several seeds. Written down before its first run."""

    #: Each has data, model and start of its own.
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    #: What every variant changes of the row that it is like.
    shared: dict[str, Any]
    variants: dict[RowName, AblationVariant] = Field(min_length=1)
    #: What the figure sets against each other, such as answering questions and describing videos: two tasks, or parts of their scores
    #: (``structured_caption/thinking``).
    axes: tuple[Axis, Axis]
    #: Pairs of variants (the start may be one) whose difference is reported, the first less the second.
    contrasts: tuple[tuple[RowName, RowName], ...]

    @model_validator(mode="after")
    def _no_seed_twice(self) -> AblationParams:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} has one twice; a seed is one observation")
        return self
