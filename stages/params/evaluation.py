"""Parameters of evaluation, the gate and the ablation grid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from stages.domain.core.records import Split
from stages.params.types import Fraction01, ModelName, RowName, Table


class EvaluationParams(Table):
    #: Policies to score: ``base`` and any training rows.
    of: tuple[RowName, ...] = Field(min_length=1)
    split: Split
    samples_per_task: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    confidence: float = Field(gt=0.5, lt=1)


#: Gauges of rollouts (:data:`stages.domain.rl.gauges.GAUGES`). The last one is measured on held-out
#: samples: the score on black video as a fraction of the score on the video.
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
    """Limits of the gauges of reward hacking (:mod:`stages.domain.rl.gauges`) for a candidate
    trained by GRPO."""

    #: Number of last logged values over which a gauge is averaged (some gauges are logged only
    #: every few steps).
    last: int = Field(gt=0, le=100)
    #: Decision on a GRPO candidate for which a gauge of ``at_most`` was not measured. Some gauges
    #: need a task (``enumeration`` a proxy task, ``keyword_stuffing`` captions) or
    #: ``controls_every``: list only those that the candidate's row can measure.
    unmeasured: Literal["refuse", "allow"]
    #: Largest value that passes, by gauge.
    at_most: dict[GaugeName, float]


class GateParams(Table):
    """Rules by which a candidate replaces the champion."""

    registered_model: ModelName
    #: Another registered model that receives a copy of every champion; null: there is none.
    production: ModelName | None
    #: Tasks over which the compared mean score is taken.
    scores: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)]
    #: Least amount by which the candidate's mean score must exceed the champion's.
    min_gain: float
    #: true: the confidence interval of the gain, paired by sample with recordings as units, must
    #: lie above ``min_gain``.
    significant: bool
    #: Largest loss allowed on any task, whether it is among ``scores`` or not.
    max_task_drop: Fraction01
    #: Least fraction of well-formed replies.
    min_format: Fraction01
    #: Least amount by which the first champion's mean must exceed that of every trivial baseline
    #: (below 0 lets a worse one pass).
    min_over_baselines: float
    gauges: GaugeLimits

    @model_validator(mode="after")
    def _names_differ(self) -> GateParams:
        if self.production in (self.registered_model, self.ledger):
            raise ValueError(f"production: {self.production!r} is taken; set another name, or null")
        return self

    @property
    def ledger(self) -> str:
        """Name of the registered model whose versions are the gate's decisions."""
        return f"{self.registered_model}.gate"


Axis = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(/[a-z0-9_]+)?$")]


class AblationVariant(Table):
    """One variant of an ablation grid: a row of this recipe with some settings changed."""

    #: Name in tables and figures.
    title: str = Field(min_length=1)
    #: The ``sft`` or ``grpo`` row whose settings the variant starts from.
    like: RowName
    #: Settings that replace those of that row; they take precedence over those in ``shared``.
    changes: dict[str, Any]


class AblationParams(Table):
    """A grid of training variants, each run from one start with several seeds. Written down before
    its first run."""

    #: Seeds of the grid; each has its own data, model and start.
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    #: Settings that every variant changes in the row named by ``like``.
    shared: dict[str, Any]
    variants: dict[RowName, AblationVariant] = Field(min_length=1)
    #: Axes of the figure, such as answering questions and describing videos: two tasks, or parts of
    #: their scores (``structured_caption/thinking``).
    axes: tuple[Axis, Axis]
    #: Pairs of variants whose difference is reported, the first minus the second; the start may be
    #: one of a pair.
    contrasts: tuple[tuple[RowName, RowName], ...]

    @model_validator(mode="after")
    def _no_seed_twice(self) -> AblationParams:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} contains a seed twice; a seed is one observation")
        return self
