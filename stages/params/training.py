"""Parameters of training: rows of SFT and GRPO, difficulty rows that filter samples, adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.domain.rl.shaping import LengthReward, OverlongPenalty, TemporalContrast
from stages.domain.tasks import KnownTask, structured_caption, task_of
from stages.params.losses import EntropyParams, Loss, MixedPolicy, fault_of_loss
from stages.params.sampling import LiveRatio, Oversampling
from stages.params.types import Fraction01, Positive, Precision, RowName, Table, Weight
from stages.params.watching import SftWatchParams, WatchParams

#: Prefix of targets in the vision tower.
VISION_TARGET = "visual."


class LoraParams(Table):
    """Low-rank adapters (arXiv 2106.09685): for each target matrix W, ``alpha / rank * B A`` is
    trained and W is frozen."""

    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    #: Fraction of an adapter's inputs that are dropped in a training pass.
    dropout: float = Field(ge=0, lt=1)
    #: Names of linear layers of the language model, such as ``q_proj``; names in the vision tower
    #: start with ``visual.``.
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)


class LearningRates(Table):
    """Learning rates of parts of the model; null: the row's ``learning_rate``. Warm-up and schedule
    are the row's."""

    #: Vision tower, without its merger.
    vision: Positive | None
    #: Layers that pass the tower's features to the text; of Qwen3-VL also those of its deeper
    #: features.
    merger: Positive | None

    @model_validator(mode="after")
    def _names_one(self) -> LearningRates:
        if self.vision is None and self.merger is None:
            raise ValueError("learning_rates: neither vision nor merger has one of its own; write learning_rates null")
        return self


class TrainingRow(Table):
    """Settings of every training row. A row's key in the table is its name, and its folder is
    ``models/<key>``."""

    #: Policy that training starts from: ``base``, the name of an SFT row, or the name of an earlier
    #: GRPO row.
    init: RowName
    #: Mixture weight of each task.
    tasks: dict[KnownTask, Weight] = Field(min_length=1)
    steps: int = Field(gt=0)
    learning_rate: Positive
    #: Learning rates of the vision tower and its merger, where they differ; null: that of the row.
    learning_rates: LearningRates | None
    warmup_steps: int = Field(ge=0)
    schedule: Literal["linear", "cosine", "constant_with_warmup"]
    weight_decay: Weight
    #: Decay of Adam's second moment; with less than the usual 0.999, a short training adapts its
    #: step sizes in time.
    adam_beta2: float = Field(gt=0, lt=1)
    max_grad_norm: Positive
    precision: Precision
    gradient_checkpointing: bool
    #: Parts of the model that are not trained. A frozen vision tower encodes each video once, and
    #: its features are cached.
    freeze: tuple[Literal["vision"], ...]
    #: null: all weights are trained. Otherwise only adapters are trained, and saved models have
    #: them merged into their weights. A vision tower without a target is then frozen, regardless of
    #: ``freeze``.
    lora: LoraParams | None
    #: Largest number of tokens of a prompt, with those of its video. Longer ones are set aside
    #: before training, counted and listed (a prompt is never cut: that would take frames away from
    #: it); null: no bound.
    max_prompt_tokens: Annotated[int, Field(gt=0)] | None
    #: Steps between two checkpoints; the last step is always saved.
    save_steps: int = Field(gt=0)
    #: Scores on the validation split while training, and the checkpoint that is kept; null: the
    #: last one, without scores.
    watch: WatchParams | None

    @model_validator(mode="after")
    def _something_to_learn(self) -> TrainingRow:
        if not any(self.tasks.values()):
            raise ValueError("tasks: every weight is 0; set at least one weight above 0")
        return self

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> TrainingRow:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} of {self.steps} steps; the first has a learning rate of 0 and none"
                f" that of learning_rate {self.learning_rate:g}: write at most {self.steps - 1}"
            )
        return self

    @model_validator(mode="after")
    def _adapts_nothing_that_is_frozen(self) -> TrainingRow:
        in_vision = (
            [target for target in self.lora.targets if target.startswith(VISION_TARGET)]
            if self.lora is not None
            else []
        )
        if in_vision and "vision" in self.freeze:
            raise ValueError(
                f"lora.targets: {in_vision[0]!r} is in the vision tower, which `freeze` takes out of training; remove"
                " one of them"
            )
        return self

    @model_validator(mode="after")
    def _watches_what_is_saved(self) -> TrainingRow:
        if self.watch is not None:
            self.watch.check_steps(self.steps, self.save_steps)
        return self

    @model_validator(mode="after")
    def _rates_are_of_what_is_trained(self) -> TrainingRow:
        if self.learning_rates is None:
            return self
        if "vision" in self.freeze:
            raise ValueError(
                "learning_rates: of the vision tower and its merger, which `freeze` takes out of training; write"
                " learning_rates null"
            )
        if self.lora is not None and not any(target.startswith(VISION_TARGET) for target in self.lora.targets):
            raise ValueError(
                "learning_rates: lora.targets name nothing in the vision tower, which is not trained then; add a"
                f" target that starts with {VISION_TARGET!r}, or write learning_rates null"
            )
        return self

    @property
    def trained_tasks(self) -> tuple[KnownTask, ...]:
        """The tasks with a weight above 0."""
        return tuple(task for task, weight in self.tasks.items() if weight > 0)


class SftRow(TrainingRow):
    #: As in GRPO rows, with ``judge`` and ``rewards`` equal to the recipe's; null: the last
    #: checkpoint, without scores.
    watch: SftWatchParams | None
    #: Samples per optimiser step, over all devices.
    samples_per_step: int = Field(gt=0)
    #: Samples of a shard: the part of a step that passes through the model at once. A process takes
    #: its shards of a step in turn (gradient accumulation). Where a step has two, one process and
    #: two give the same weights to the last bit. With more processes than shards, a shard has fewer
    #: samples.
    samples_per_device: int = Field(gt=0)
    #: Fraction of the teacher's answers that are right but short (first event only, a vague verb).
    careless_share: Fraction01
    #: By task, the fraction of the teacher's replies with brief thinking (only the subject) and the
    #: full answer; 0 for tasks not listed. A trace without a brief form (a structured caption, a
    #: clip without a name) is taught unchanged.
    brief_share: dict[KnownTask, Fraction01]

    @model_validator(mode="after")
    def _teaches_what_it_says(self) -> SftRow:
        for task, share in self.brief_share.items():
            if share and task not in self.trained_tasks:
                raise ValueError(
                    f"brief_share: {task!r} is not trained by this row (tasks: {', '.join(self.trained_tasks)}); remove"
                    " it"
                )
            if share and task_of(task).analysed:
                raise ValueError(f"brief_share: the traces of {task!r} are analyses, of which none is brief: remove it")
        if self.careless_share and all(task_of(task).answer == "letter" for task in self.trained_tasks):
            raise ValueError(
                f"careless_share: {self.careless_share:g}, but a letter cannot be short:"
                f" {', '.join(self.trained_tasks)} has no careless answers; write 0.0"
            )
        return self

    @property
    def shards(self) -> int:
        """Number of shards of an optimiser step."""
        return max(1, self.samples_per_step // self.samples_per_device)


class TaskScaleParams(Table):
    """Division of each task's advantages by a moving spread of its rewards (EMA-GRPO).

    The spread decays by this factor per generation, and per round of dynamic sampling.
    """

    task_decay: float = Field(gt=0, lt=1)


class GrpoRow(TrainingRow):
    #: Folder of the training samples: all of them, or those kept by the difficulty row of the same
    #: name.
    samples: str = Field(pattern=r"^data/(samples|difficulty/[a-z0-9-]+)$")
    #: Prompts per optimiser step, over all devices (TRL counts completions; accumulation is
    #: derived, or an error is raised).
    prompts_per_step: int = Field(gt=0)
    #: Largest number of completions that a device processes at once while it computes the loss.
    completions_per_device: int = Field(gt=0)
    #: G, the number of rollouts of each prompt.
    rollouts: int = Field(ge=2)
    temperature: Positive
    max_completion_tokens: int = Field(gt=0)
    #: Normalisation of the loss. ``dapo`` and ``bnpo`` are the same loss here: both divide by the
    #: tokens of the whole generation. TRL's ``bnpo`` divides by those that one device holds at
    #: once, so that its result depends on the machine. Losses without clipping are tables:
    #: ``{cispo_ceiling: 5.0}`` and ``{sapo_positive: 1.0, sapo_negative: 1.05}``.
    loss: Loss
    #: Divisor of a reply's advantage: the spread of its group (GRPO), of the batch, of its task
    #: over time, or nothing (Dr.GRPO).
    scale_rewards: Literal["group", "batch", "none"] | TaskScaleParams
    #: Probability ratios per token (GRPO) or per reply (GSPO).
    importance: Literal["token", "sequence"]
    #: Weight of the KL term; with 0 no reference model is loaded.
    beta: Weight
    #: Ratios are clipped to 1 - ``epsilon`` and 1 + ``epsilon_high``; null under losses without
    #: clipping.
    epsilon: Positive | None
    epsilon_high: Positive | None
    #: Upper bound of the ratio where the advantage is below 0, which ``epsilon_high`` leaves
    #: unbounded (two-sided clipping, arXiv 2505.07291); null: none.
    delta: Positive | None
    #: Entropy bonus, and training of the tokens with the highest entropy alone; null: neither.
    entropy: EntropyParams | None
    #: Take replies that were cut off at ``max_completion_tokens`` out of the loss. Their rewards
    #: stay in the mean of their group.
    mask_truncated: bool
    #: Optimiser steps on one generation.
    iterations: int = Field(gt=0)
    #: Largest number of rounds in which groups with equal rewards are replaced by groups of other
    #: prompts (dynamic sampling); 0: none.
    resample_rounds: int = Field(ge=0, le=10)
    #: ``sum``: the parts of a reward are added, then scaled (GRPO). ``normalise``: each part is
    #: scaled within its group, then they are added, and the sum is scaled over the batch (GDPO).
    aggregation: Literal["sum", "normalise"]
    #: Parts of the structured caption's score that this row does not reward: the analysis (T) or
    #: the caption (E, CN). For ablations.
    leave_out: tuple[Literal["thinking", "caption"], ...]
    #: Length reward, added to the task reward; null: none.
    length: LengthReward | None
    #: Frame-order reward, added to the task reward; null: none. With ``scale_rewards: group`` it
    #: has no effect in groups of tasks that earn 0 or 1.
    temporal_contrast: TemporalContrast | None
    #: Penalty for replies whose length comes close to ``max_completion_tokens``, in tokens; null:
    #: none. Replies that ``mask_truncated`` takes out of the loss get none.
    overlong: OverlongPenalty | None
    #: One written reply in each group, where a sample has a trace; null: all are rollouts.
    mixed: MixedPolicy | None
    #: Steps between two measurements of the gauges on changed videos: one reply to each prompt with
    #: a black and one with a shuffled video; 0: never.
    controls_every: int = Field(ge=0)
    #: Share of each task in the prompts: ``mixture``, its weight; or such that its live groups are
    #: in proportion to its weight (``{live_decay: 0.9, least_live: 0.25}``).
    sampler: Literal["mixture"] | LiveRatio
    #: Rounds of dynamic sampling that draw as many prompts as the live share asks for, and may keep
    #: live groups that they do not need; null: a round draws a prompt for each missing group.
    oversample: Oversampling | None
    #: Number of generations that rollouts are drawn ahead of the steps that train on them, by the
    #: policy in force then; 0: each generation samples with the present policy, as the papers do.
    staleness: int = Field(ge=0, le=8)
    #: Largest weight of a token's advantage where the policy that sampled it is not the one that
    #: trains: under ``staleness``, or where an engine draws the rollouts (truncated importance
    #: sampling).
    sampling_ratio_cap: float = Field(ge=1, allow_inf_nan=False)
    #: Steps between two measurements of the gauges by task, which take one more forward pass over
    #: the rollouts; with any number but 0 the share of dead groups of each task is logged at every
    #: step. 0: never.
    gauges_every: int = Field(ge=0)
    #: Steps between two measurements of the cosines between the tasks' gradients, which take one
    #: more forward and backward pass over the live rollouts; 0: never.
    gradients_every: int = Field(ge=0)

    @model_validator(mode="after")
    def _has_tasks_to_choose_among(self) -> GrpoRow:
        if isinstance(self.sampler, LiveRatio) and len(self.trained_tasks) == 1:
            raise ValueError(
                f"sampler: keeps the ratio between tasks, but this row trains {self.trained_tasks[0]} alone; write"
                " mixture"
            )
        return self

    @model_validator(mode="after")
    def _surplus_has_a_use(self) -> GrpoRow:
        if (rule := self.oversample) is None:
            return self
        if not self.resample_rounds:
            raise ValueError(
                "oversample: resample_rounds 0 draws no further prompts; set resample_rounds 1 or more, or oversample"
                " null"
            )
        if 0 < rule.max_lag < self.iterations:
            raise ValueError(
                f"oversample.max_lag: {rule.max_lag} steps, but the next generation is {self.iterations} steps later"
                f" (iterations), so nothing that is kept could be used; write 0, or {self.iterations} or more"
            )
        return self

    @model_validator(mode="after")
    def _one_scale(self) -> GrpoRow:
        if self.aggregation == "normalise" and self.scale_rewards != "group":
            raise ValueError(
                "aggregation: 'normalise' scales each part within its group and their sum over the batch;"
                f" scale_rewards {self.scale_rewards!r} would have no effect: write group"
            )
        return self

    @model_validator(mode="after")
    def _batch_is_more_than_a_group(self) -> GrpoRow:
        if self.scale_rewards == "batch" and self.prompts_per_step == 1:
            raise ValueError(
                "scale_rewards: the 'batch' of prompts_per_step 1 is one group: write group, or prompts_per_step 2 or"
                " more"
            )
        return self

    @model_validator(mode="after")
    def _contrast_is_not_scaled_away(self) -> GrpoRow:
        if (rule := self.temporal_contrast) is None:
            return self
        if not rule.min_share:
            raise ValueError(
                "temporal_contrast.min_share: with 0 every reply to a prompt gets the same reward, which changes no"
                " advantage; set"
                " more than 0, such as 1.0 for replies that are right in full"
            )
        if (
            self.scale_rewards == "group"
            and self.aggregation == "sum"
            and self.length is None
            and self.overlong is None
            and all(task_of(task).all_or_nothing for task in self.trained_tasks)
        ):
            raise ValueError(
                f"temporal_contrast: cancelled by scale_rewards 'group': replies to {' and '.join(self.trained_tasks)}"
                f" earn 0 or 1, and 0 and {1 + rule.weight:g} divided by their spread are the same advantages; write"
                " scale_rewards none, batch or {task_decay: 0.99}, aggregation normalise, or temporal_contrast null"
            )
        return self

    @model_validator(mode="after")
    def _length_tells_replies_apart(self) -> GrpoRow:
        if (rule := self.length) is None:
            return self
        if rule.min_words > self.max_completion_tokens:
            raise ValueError(
                f"length.min_words: {rule.min_words} words do not fit into max_completion_tokens"
                f" {self.max_completion_tokens}, so"
                " that no reply would be rewarded; lower it, or raise max_completion_tokens"
            )
        if rule.min_words <= 1 and rule.max_words >= self.max_completion_tokens:
            raise ValueError(
                f"length: {rule.min_words} to {rule.max_words} words holds every reply of max_completion_tokens"
                f" {self.max_completion_tokens}, so that length decides nothing; narrow it, or write length null"
            )
        return self

    @model_validator(mode="after")
    def _something_is_paid(self) -> GrpoRow:
        if self.leave_out and structured_caption.NAME not in self.trained_tasks:
            raise ValueError(
                f"leave_out: {self.leave_out[0]!r} is a part of {structured_caption.NAME}, which this row does not"
                " train; write []"
            )
        if len(set(self.leave_out)) > 1:
            raise ValueError(
                "leave_out: thinking and caption are all that structured_caption pays for; leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _loss_does_what_it_says(self) -> GrpoRow:
        if (fault := fault_of_loss(self)) is not None:
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _samples_from_what_it_trains(self) -> GrpoRow:
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                f"lora.dropout: {self.lora.dropout:g} would sample rollouts from one thinned-out policy and take their"
                " probabilities from another; set 0.0"
            )
        return self
