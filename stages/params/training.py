"""Parameters of training: rows of SFT and GRPO, the difficulty rows that filter samples, adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.domain.rl.difficulty import DropRules
from stages.domain.rl.shaping import LengthReward, TemporalContrast
from stages.domain.tasks import KnownTask, structured_caption, task_of
from stages.params.types import Fraction01, Positive, Precision, RowName, Table, Weight

#: What opens the name of a target in the vision tower.
VISION_TARGET = "visual."


class LoraParams(Table):
    """Low-rank adapters (arXiv 2106.09685): beside each target's matrix W, ``alpha / rank * B A`` is trained and W is not."""

    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    #: Share of an adapter's inputs that are left out of a training pass.
    dropout: float = Field(ge=0, lt=1)
    #: Names of linear layers of the language model, such as ``q_proj``; those of the vision tower begin with ``visual.``.
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)


class TrainingRow(Table):
    """What every training row has. A row's key in the table is its name, and its folder is ``models/<key>``."""

    #: ``base``, the name of an SFT row, or the name of an earlier GRPO row.
    init: RowName
    #: Task to mixture weight.
    tasks: dict[KnownTask, Weight] = Field(min_length=1)
    steps: int = Field(gt=0)
    learning_rate: Positive
    warmup_steps: int = Field(ge=0)
    schedule: Literal["linear", "cosine", "constant_with_warmup"]
    weight_decay: Weight
    #: Decay of Adam's second moment; below the usual 0.999 a short training adapts its step sizes in time.
    adam_beta2: float = Field(gt=0, lt=1)
    max_grad_norm: Positive
    precision: Precision
    gradient_checkpointing: bool
    #: Parts that are not trained. A frozen vision tower sees each video once, and its features are kept.
    freeze: tuple[Literal["vision"], ...]
    #: None: all weights are trained. Else only adapters are, and what is saved has them merged into its weights. A vision tower
    #: that no target names is then frozen, whatever ``freeze`` says.
    lora: LoraParams | None
    #: Save every so many steps; the last step is always saved.
    save_steps: int = Field(gt=0)

    @model_validator(mode="after")
    def _something_to_learn(self) -> TrainingRow:
        if not any(self.tasks.values()):
            raise ValueError("tasks: every weight is 0; give at least one task a weight above 0")
        return self

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> TrainingRow:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} of {self.steps} steps; the first has a learning rate of 0 and none that of"
                f" learning_rate {self.learning_rate:g}: write at most {self.steps - 1}"
            )
        return self

    @model_validator(mode="after")
    def _adapts_nothing_that_is_frozen(self) -> TrainingRow:
        in_vision = [target for target in self.lora.targets if target.startswith(VISION_TARGET)] if self.lora is not None else []
        if in_vision and "vision" in self.freeze:
            raise ValueError(
                f"lora.targets: {in_vision[0]!r} is in the vision tower, which `freeze` takes out of training; remove one of them"
            )
        return self

    @property
    def trained_tasks(self) -> tuple[KnownTask, ...]:
        """The tasks with a weight above 0."""
        return tuple(task for task, weight in self.tasks.items() if weight > 0)


class SftRow(TrainingRow):
    #: Samples an optimiser step, over all devices.
    samples_per_step: int = Field(gt=0)
    #: Samples a device holds at once; accumulation follows.
    samples_per_device: int = Field(gt=0)
    #: Share of the teacher's answers that are right but short (first event only, a vague verb).
    careless_share: Fraction01
    #: By task, the share of the teacher's replies that think in brief (only the subject) and answer all the same; 0 where none is
    #: named. A trace that knows no brief way (a structured caption, a clip without a name) is taught as it is.
    brief_share: dict[KnownTask, Fraction01]

    @model_validator(mode="after")
    def _teaches_what_it_says(self) -> SftRow:
        for task, share in self.brief_share.items():
            if share and task not in self.trained_tasks:
                raise ValueError(
                    f"brief_share: {task!r} is not trained by this row (tasks: {', '.join(self.trained_tasks)}); remove it"
                )
            if share and task_of(task).analysed:
                raise ValueError(f"brief_share: the traces of {task!r} are analyses, of which none is brief: remove it")
        if self.careless_share and all(task_of(task).answer == "letter" for task in self.trained_tasks):
            raise ValueError(
                f"careless_share: {self.careless_share:g}, but a letter cannot be short: {', '.join(self.trained_tasks)} has no careless"
                " answers; write 0.0"
            )
        return self


class TaskScaleParams(Table):
    """Advantages of each task are divided by a moving spread of its rewards (EMA-GRPO); the spread forgets by this factor a generation,
    and a round of dynamic sampling."""

    task_decay: float = Field(gt=0, lt=1)


class DifficultyRow(DropRules):
    """Rollouts of the policy that a GRPO row starts from, to drop samples that would teach it nothing. Its key is that row's name."""

    #: The GRPO row's own ``init``; it stands here for ``dvc.yaml``, which cannot look it up there.
    init: RowName
    #: Replies to each sample.
    rollouts: int = Field(ge=2)
    temperature: Positive
    max_completion_tokens: int = Field(gt=0)
    #: Prompts at once; each is answered ``rollouts`` times.
    batch_size: int = Field(gt=0)
    #: Samples of a task that are rolled out, the others are left out of training; None: all.
    max_samples_per_task: Annotated[int, Field(gt=0)] | None


class GrpoRow(TrainingRow):
    #: The folder its samples come from: all of them, or those that the difficulty row of the same name has kept.
    samples: str = Field(pattern=r"^data/(samples|difficulty/[a-z0-9-]+)$")
    #: Prompts an optimiser step, over all devices (TRL counts completions; accumulation is derived or refused).
    prompts_per_step: int = Field(gt=0)
    #: Completions a device holds at once while it computes the loss.
    completions_per_device: int = Field(gt=0)
    #: G, the rollouts of one prompt.
    rollouts: int = Field(ge=2)
    temperature: Positive
    max_completion_tokens: int = Field(gt=0)
    #: What terms are divided by. ``dapo`` and ``bnpo``, two names of one loss here, take the tokens of the whole generation: TRL's
    #: ``bnpo`` takes those that one device holds at once, so that its result depends on the machine.
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo"]
    #: What a reply's advantage over its group is divided by: the spread of its group (the papers), of the batch, of its task over time, or
    #: nothing (Dr.GRPO).
    scale_rewards: Literal["group", "batch", "none"] | TaskScaleParams
    #: Probability ratios a token (GRPO) or a reply (GSPO).
    importance: Literal["token", "sequence"]
    #: KL weight; 0 loads no reference model.
    beta: Weight
    epsilon: Positive
    epsilon_high: Positive
    #: Updates on one generation.
    iterations: int = Field(gt=0)
    #: How often at most groups whose rewards are all equal are replaced by those of other prompts (dynamic sampling); 0: they stay.
    resample_rounds: int = Field(ge=0, le=10)
    #: ``sum``: the parts of a reward are added, then scaled (GRPO). ``normalise``: each part is scaled within its group, then they are
    #: added, and the sum is scaled over the batch (GDPO).
    aggregation: Literal["sum", "normalise"]
    #: Parts of the structured caption's score that this row does not pay for: the analysis (T) or the caption (E, CN). For ablations.
    leave_out: tuple[Literal["thinking", "caption"], ...]
    #: Paid beside the task; None: not. Under ``scale_rewards: group`` the contrast is gone in groups of tasks that earn 0 or 1.
    length: LengthReward | None
    temporal_contrast: TemporalContrast | None
    #: Every so many steps its prompts are asked again with a black and with a shuffled video, a reply each, for the gauges; 0: never.
    controls_every: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_scale(self) -> GrpoRow:
        if self.aggregation == "normalise" and self.scale_rewards != "group":
            raise ValueError(
                f"aggregation: 'normalise' scales each part within its group and their sum over the batch; scale_rewards"
                f" {self.scale_rewards!r} would have no effect: write group"
            )
        return self

    @model_validator(mode="after")
    def _batch_is_more_than_a_group(self) -> GrpoRow:
        if self.scale_rewards == "batch" and self.prompts_per_step == 1:
            raise ValueError(
                "scale_rewards: the 'batch' of prompts_per_step 1 is one group: write group, or prompts_per_step 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _contrast_is_not_scaled_away(self) -> GrpoRow:
        if (rule := self.temporal_contrast) is None:
            return self
        if not rule.min_share:
            raise ValueError(
                "temporal_contrast.min_share: from 0 on every reply of a prompt is paid alike, and what all have in common is in no"
                " advantage; write more than 0, 1.0 for replies that are right in full"
            )
        if (
            self.scale_rewards == "group"
            and self.aggregation == "sum"
            and self.length is None
            and all(task_of(task).all_or_nothing for task in self.trained_tasks)
        ):
            raise ValueError(
                f"temporal_contrast: cancelled by scale_rewards 'group': replies to {' and '.join(self.trained_tasks)} earn 0 or 1, and"
                f" 0 and {1 + rule.weight:g} divided by their spread are the same advantages; write scale_rewards none, batch or"
                " {task_decay: 0.99}, aggregation normalise, or temporal_contrast null"
            )
        return self

    @model_validator(mode="after")
    def _length_tells_replies_apart(self) -> GrpoRow:
        if (rule := self.length) is None:
            return self
        if rule.min_words > self.max_completion_tokens:
            raise ValueError(
                f"length.min_words: {rule.min_words} words do not fit into max_completion_tokens {self.max_completion_tokens}, so that no"
                " reply would be paid; lower it, or raise max_completion_tokens"
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
                f"leave_out: {self.leave_out[0]!r} is a part of {structured_caption.NAME}, which this row does not train; write []"
            )
        if len(set(self.leave_out)) > 1:
            raise ValueError("leave_out: thinking and caption are all that structured_caption pays for; leave out one of them")
        return self

    @model_validator(mode="after")
    def _ratio_fits_the_loss(self) -> GrpoRow:
        if self.importance == "sequence" and self.loss != "grpo":
            raise ValueError(
                f"importance: 'sequence' needs loss 'grpo', found {self.loss!r}: a reply's one ratio would be counted once a token"
            )
        return self

    @model_validator(mode="after")
    def _ratio_leaves_one(self) -> GrpoRow:
        if self.iterations > 1:
            return self
        # With one update on a generation each ratio is 1: nothing is clipped, and the gradient of a reply's ratio, divided by its tokens
        # as loss 'grpo' does, is that of its tokens' ratios.
        if self.epsilon_high != self.epsilon:
            raise ValueError(
                f"epsilon_high: {self.epsilon_high:g} beside epsilon {self.epsilon:g} has no effect with iterations 1, where every ratio"
                f" is 1 and none is clipped; write iterations 2 or more, or epsilon_high {self.epsilon:g}"
            )
        if self.importance == "sequence":
            raise ValueError(
                "importance: 'sequence' has no effect with iterations 1, where every ratio is 1 and GSPO's gradient is GRPO's; write"
                " iterations 2 or more, or importance token"
            )
        return self

    @model_validator(mode="after")
    def _samples_from_what_it_trains(self) -> GrpoRow:
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                f"lora.dropout: {self.lora.dropout:g} would sample rollouts from one thinned-out policy and take their"
                " probabilities from another; set 0.0"
            )
        return self
