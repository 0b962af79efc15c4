"""``params.yaml`` as frozen types: everything that changes a result, and nothing else.

No field has a default here: ``params.yaml`` is the only home of a value. Rules that span fields are checked at load, so that a
GRPO row that names a task nobody synthesises fails in a second and not after an hour. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Exact, Split
from stages.domain.rl.difficulty import DropRules
from stages.domain.rl.shaping import LengthReward, TemporalContrast
from stages.domain.tasks import KnownTask, mix_vid_qa, structured_caption, task_of
from stages.domain.tasks.rewards import Likeness, RewardRules
from stages.domain.tasks.synthesis import TaskSettings
from stages.errors import VidbridgeError
from stages.runtime import paths
from stages.runtime.bounded_yaml import YamlError, read_yaml
from stages.runtime.plain import one_line

#: Names of rows become parts of paths and commands, so nothing but these characters is let in.
RowName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")]
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


_MOST_COMPLAINTS = 20
_QUOTED_CHARACTERS = 300


class ParamsError(VidbridgeError, ValueError):
    """``params.yaml`` is not usable: each line says field, value and remedy."""

    status = 2


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusParams(Table):
    """The generated corpus: one coloured shape, two events in a row, ground truth for everything."""

    train_clips: int = Field(gt=0)
    validation_clips: int = Field(gt=0)
    test_clips: int = Field(gt=0)
    size_px: int = Field(ge=32, multiple_of=32)
    frames: int = Field(ge=16)
    rate: Exact
    #: Combinations of colour, shape and events that never occur in training; half of the test clips are drawn from them.
    held_out_combinations: int = Field(ge=0)
    #: Constant rate factor of x264: 0 is lossless, 51 the worst.
    crf: int = Field(ge=0, le=51)


class Tolerance(Table):
    """How far the times of an annotation may be off its file: at most so many seconds, and at most this share of the clip."""

    seconds: float = Field(ge=0)
    share: Share


class ExcludedVideo(Table):
    """A video that was removed on request: no clip is made of it, nor of the same bytes under another name."""

    #: As annotations name it, relative to the source folder.
    video: str = Field(min_length=1)
    #: Of the file's bytes; None: never ingested, and not there when it was removed.
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None


class IngestParams(Table):
    #: A folder with videos and their annotations; ``data/corpus`` is the generated one. Relative to the project or absolute.
    source: str = Field(min_length=1)
    #: How the annotations are written (:mod:`stages.lib.annotations.formats`), and in which file of the folder; None: the format's usual one.
    format: str
    annotations: str | None
    #: Shares of the source videos that go to validation and test where the annotations name no split.
    validation_share: Share
    test_share: Share
    min_frames: int = Field(ge=2)
    max_duration_s: Positive
    #: An event that reaches further beyond its clip is set aside, one that does not is cut at the clip's edge.
    tolerance: Tolerance
    #: What a clip may take to be examined; then its process is ended and the clip set aside.
    timeout_s: Positive
    #: Encode files anew that decord must not read (open GOPs, other containers, rotation …): once here, instead of slow reading for ever.
    normalise: bool
    #: Videos that were removed on request (``vidbridge data remove`` writes them); ``vidbridge recipe use`` takes them along.
    exclude: tuple[ExcludedVideo, ...]

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> IngestParams:
        held_out = self.validation_share + self.test_share
        if held_out >= 1:
            raise ValueError(f"validation_share + test_share is {held_out:g}: it must stay below 1, or nothing is left to train on")
        return self


class TowerParams(Table):
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_width: int = Field(gt=0)


class TextTowerParams(TowerParams):
    #: Base of the rotary position frequencies. Small for short texts: few frequencies then tell neighbours apart.
    rope_theta: float = Field(gt=1)
    kv_heads: int = Field(gt=0)


class VisionTowerParams(TowerParams):
    patch_px: int = Field(gt=0)
    merge: int = Field(gt=0)


#: Sizes of a head that vLLM's attention kernels take, those of the CPU and those of GPUs together (vLLM 0.22 to 0.32).
SERVED_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)

Precision = Literal["fp32", "bf16"]
Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


class TinyModelParams(Table):
    """A model of the real architecture built from a configuration, with a random start and a tokenizer trained here."""

    kind: Literal["tiny"]
    family: Family
    #: Of the saved base model, and of every policy while it is evaluated.
    precision: Precision
    vocabulary: int = Field(gt=256)
    text: TextTowerParams
    vision: VisionTowerParams

    @model_validator(mode="after")
    def _divides(self) -> TinyModelParams:
        for name, tower in (("text", self.text), ("vision", self.vision)):
            if tower.width % tower.heads:
                raise ValueError(f"{name}.heads {tower.heads} does not divide {name}.width {tower.width}: choose a divisor")
        if self.text.heads % self.text.kv_heads:
            raise ValueError(f"text.kv_heads {self.text.kv_heads} does not divide text.heads {self.text.heads}: choose a divisor")
        if (size := self.text.width // self.text.heads) not in SERVED_HEAD_SIZES:
            raise ValueError(
                f"text.heads {self.text.heads} of text.width {self.text.width} are heads of {size}, which no attention kernel of vLLM"
                f" takes: choose text.width and text.heads so that a head has one of {', '.join(map(str, SERVED_HEAD_SIZES))}"
            )
        return self


class PretrainedModelParams(Table):
    """A model from the hub, or from a folder, at a pinned revision."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1)
    revision: str = Field(min_length=1)
    precision: Precision
    #: Pixels of one frame after resizing, at most.
    max_pixels_per_frame: int = Field(gt=0)


ModelParams = Annotated[TinyModelParams | PretrainedModelParams, Field(discriminator="kind")]


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
    careless_share: Share
    #: By task, the share of the teacher's replies that think in brief (only the subject) and answer all the same; 0 where none is
    #: named. A trace that knows no brief way (a structured caption, a clip without a name) is taught as it is.
    brief_share: dict[KnownTask, Share]

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


class RuleJudgeParams(Table):
    """Deterministic, offline: exact on the generated corpus, a rough measure by shared words elsewhere.

    ``rule`` judges the generated corpus only. ``rule_on_real_text`` is the same judge, accepted for other videos.
    """

    kind: Literal["rule", "rule_on_real_text"]
    #: On text outside the corpus's grammar: share of the reference's content words for full and for partial marks.
    full_share: Share
    partial_share: Share


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


class SynthesizeParams(Table):
    sampled_frames: int = Field(ge=2, multiple_of=2)
    contact_sheet_samples: int = Field(ge=1, le=32)
    #: Share of dark events that may be told from words alone (class, other events) before synthesis fails.
    max_text_only: Share
    #: None: questions and traces are made from the annotation by templates.
    writer: WriterParams | None
    tasks: TaskSettings

    @model_validator(mode="after")
    def _writes_what_is_made(self) -> SynthesizeParams:
        if self.writer is None:
            return self
        if self.writer.questions and self.tasks.of(mix_vid_qa.TASK) is None:
            raise ValueError(
                f"writer.questions: {mix_vid_qa.NAME} is not synthesised, so there is none to write; name it in tasks, or set false"
            )
        for task in self.writer.traces.tasks if self.writer.traces else ():
            if task not in self.tasks.named:
                raise ValueError(f"writer.traces.tasks: {task!r} is not synthesised (tasks: {', '.join(self.tasks.named)})")
            if task_of(task).trace is None:
                raise ValueError(f"writer.traces.tasks: {task!r} has no instruction for a writer (Task.trace); remove it")
        return self


class EvaluationParams(Table):
    #: Which policies are scored: ``base`` and any rows.
    of: tuple[RowName, ...] = Field(min_length=1)
    split: Split
    samples_per_task: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    confidence: float = Field(gt=0.5, lt=1)


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
    max_task_drop: Share
    min_format: Share
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


class Params(Table):
    recipe: RowName
    #: As numpy's generators take it.
    seed: int = Field(ge=0, lt=2**32)
    corpus: CorpusParams
    ingest: IngestParams
    synthesize: SynthesizeParams
    prompt: PromptTexts
    model: ModelParams
    sft: dict[RowName, SftRow]
    difficulty: dict[RowName, DifficultyRow]
    grpo: dict[RowName, GrpoRow]
    rewards: RewardRules
    judge: JudgeParams
    held_out_judge: HeldOutJudgeParams | None
    evaluation: EvaluationParams
    gate: GateParams
    #: What `vidbridge ablate` runs; None: nothing. No stage of the pipeline reads it.
    ablation: AblationParams | None

    @model_validator(mode="after")
    def _rows_fit_together(self) -> Params:
        made = self.synthesize.tasks.named
        clashes = (set(self.sft) & set(self.grpo)) | ({"base"} & (set(self.sft) | set(self.grpo)))
        if clashes:
            raise ValueError(f"sft/grpo: {sorted(clashes)[0]!r} names two things; row names are unique and 'base' is the start")
        known: list[str] = ["base"]
        for table, rows in (("sft", self.sft), ("grpo", self.grpo)):
            for name, row in rows.items():
                for task in row.tasks:
                    if task not in made:
                        raise ValueError(f"{table}.{name}.tasks: {task!r} is not synthesised (synthesize.tasks: {', '.join(made)})")
                if row.init not in known:
                    raise ValueError(f"{table}.{name}.init: {row.init!r} is not an earlier row (known here: {', '.join(known)})")
                known.append(name)
        inits = {row.init for row in (*self.sft.values(), *self.grpo.values())}
        leaves = [name for name in known if name not in inits]
        if len(leaves) != 1:
            raise ValueError(
                f"grpo: {len(leaves)} rows are nobody's init ({', '.join(leaves)}); the candidate is the table's only leaf, so chain"
                " them through `init` or delete what is not wanted"
            )
        for name in self.evaluation.of:
            if name not in known:
                raise ValueError(f"evaluation.of: {name!r} is no row (known: {', '.join(known)})")
        if leaves[0] not in self.evaluation.of:
            raise ValueError(f"evaluation.of: the candidate {leaves[0]!r} is missing; the gate needs its scores")
        if len(set(self.evaluation.of)) != len(self.evaluation.of):
            raise ValueError("evaluation.of: a name stands twice")
        for compared in () if self.gate.scores == "all" else self.gate.scores:
            if compared not in made:
                raise ValueError(f"gate.scores: {compared!r} is not synthesised (synthesize.tasks: {', '.join(made)})")
        return self

    @model_validator(mode="after")
    def _filters_fit_their_rows(self) -> Params:
        everything = paths.SAMPLES.as_posix()
        for name, row in self.grpo.items():
            own, filtered = paths.difficulty(name).as_posix(), row.samples != everything
            if filtered and row.samples != own:
                raise ValueError(
                    f"grpo.{name}.samples: {row.samples!r} was chosen for another row's start; name {own}, or {everything} for all"
                )
            if filtered and name not in self.difficulty:
                known = ", ".join(self.difficulty) or "none"
                raise ValueError(
                    f"grpo.{name}.samples: {row.samples!r} is made by no row (difficulty: {known}); add difficulty.{name}, or name"
                    f" {everything}"
                )
        for name, rolled in self.difficulty.items():
            if name not in self.grpo:
                raise ValueError(
                    f"difficulty.{name}: no grpo row has that name (grpo: {', '.join(self.grpo)}); correct or delete it"
                )
            starts = self.grpo[name]
            if starts.samples == everything:
                raise ValueError(
                    f"difficulty.{name}: nothing reads what it keeps (grpo.{name}.samples: {everything!r}); name"
                    f" {paths.difficulty(name).as_posix()} there, or delete this row"
                )
            drops = {
                f"drop_always_right: {str(rolled.drop_always_right).lower()}": rolled.drop_always_right
                and any(task_of(task).answer != "caption" for task in starts.trained_tasks),
                f"min_spread: {rolled.min_spread:g}": rolled.min_spread > 0
                and any(task_of(task).answer == "caption" for task in starts.trained_tasks),
            }
            if rolled.max_samples_per_task is None and not any(drops.values()):
                raise ValueError(
                    f"difficulty.{name}: {' and '.join(drops)} drop no sample of {', '.join(starts.trained_tasks)} (the first is for"
                    " other tasks than captions, the second for captions); change one of them, or delete this row and write"
                    f" grpo.{name}.samples: {everything}"
                )
            if rolled.init != starts.init:
                raise ValueError(f"difficulty.{name}.init: {rolled.init!r}, but grpo.{name} starts from {starts.init!r}; name that")
        return self

    @model_validator(mode="after")
    def _open_answers_have_a_reader(self) -> Params:
        """On sentences of people a judge by shared words pays negations, guesses and swapped roles: that must be wanted."""
        read = [task for task in self.synthesize.tasks.named if task_of(task).judge_calls(self.rewards)]
        if Path(self.ingest.source) == paths.CORPUS or not read:
            return self
        judges = {"judge": self.judge}
        if self.held_out_judge is not None:
            judges["held_out_judge.judge"] = self.held_out_judge.judge
        for name, judge in judges.items():
            if judge.kind == "rule":
                raise ValueError(
                    f"{name}.kind: 'rule' reads the sentences of {paths.CORPUS} only, and ingest.source is {self.ingest.source!r}: on real"
                    f" text it would judge {', '.join(read)} by shared words. Name a model that reads (kind: openai, see infra/recipes/"
                    f"vidbridge-r1.yaml and VIDBRIDGE_JUDGE_URL), or accept the rough measure with {name}.kind: rule_on_real_text"
                )
        return self

    @model_validator(mode="after")
    def _traces_earn_the_reward(self) -> Params:
        traces = self.synthesize.writer.traces if self.synthesize.writer else None
        for name in ("judge", "rewards"):
            if traces is not None and getattr(traces, name) != getattr(self, name):
                raise ValueError(
                    f"synthesize.writer.traces.{name}: differs from `{name}`, and traces are kept by the reward that is trained on; write"
                    f" the same there (`{name}: &{name} {{...}}` here, `{name}: *{name}` below)"
                )
        return self

    @model_validator(mode="after")
    def _grid_can_be_run(self) -> Params:
        if self.ablation is None:
            return self
        made, variants = self.synthesize.tasks.named, self.variants
        starts = {name: row.init for name, row in variants.items()}
        if len(set(starts.values())) != 1:
            raise ValueError(f"ablation.variants: they start from different rows ({starts}); give all of them one `init`")
        start = next(iter(starts.values()))
        if start not in ("base", *self.rows):
            raise ValueError(
                f"ablation: the variants start from {start!r}, which is no row (known: base, {', '.join(self.rows)}); name one of them as"
                " `init`, or write `ablation: null`"
            )
        if clash := {start, "base", *self.rows} & set(variants):
            raise ValueError(f"ablation.variants.{sorted(clash)[0]}: a row of the recipe has that name; choose another")
        for name, row in variants.items():
            if unmade := [task for task in row.tasks if task not in made]:
                raise ValueError(
                    f"ablation.variants.{name}.tasks: {unmade[0]!r} is not synthesised (synthesize.tasks: {', '.join(made)})"
                )
        budgets = {n: r.steps * r.prompts_per_step * r.rollouts for n, r in variants.items() if isinstance(r, GrpoRow)}
        if len(set(budgets.values())) > 1:
            raise ValueError(f"ablation.variants: unequal numbers of rollouts ({budgets}); a comparison needs one budget")
        if missing := [axis for axis in self.ablation.axes if axis.split("/")[0] not in made]:
            raise ValueError(f"ablation.axes: {missing[0]!r} is not synthesised (synthesize.tasks: {', '.join(made)})")
        for name in {name for pair in self.ablation.contrasts for name in pair} - {start, *variants}:
            raise ValueError(f"ablation.contrasts: {name!r} is no variant (known: {', '.join((start, *variants))})")
        return self

    @property
    def variants(self) -> dict[str, SftRow | GrpoRow]:
        """Every row of the ablation grid, with its changes made.

        Raises:
            ValueError: a variant is like no row, or its changes are none that such a row can have.
        """
        found: dict[str, SftRow | GrpoRow] = {}
        if self.ablation is None:
            return found
        for name, variant in self.ablation.variants.items():
            if (row := self.rows.get(variant.like)) is None:
                raise ValueError(
                    f"ablation.variants.{name}.like: {variant.like!r} is no row (known: {', '.join(self.rows)}); name one of them, or"
                    " write `ablation: null`"
                )
            table = row.model_dump() | self.ablation.shared | variant.changes
            if isinstance(row, GrpoRow) and row.samples != paths.SAMPLES.as_posix():
                table["samples"] = paths.difficulty(name).as_posix()
            try:
                found[name] = type(row).model_validate(table)
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(f"ablation.variants.{name}.changes: {_field(first['loc'])}{_complaint(first)}") from error
        return found

    @property
    def rows(self) -> dict[str, SftRow | GrpoRow]:
        """Every training row, in an order in which each stands after its ``init``."""
        return {**self.sft, **self.grpo}

    @property
    def candidate(self) -> str:
        """The only row that no other starts from: what the gate looks at."""
        inits = {row.init for row in self.rows.values()}
        return next(name for name in ("base", *self.rows) if name not in inits)


def load_params(path: Path | str = paths.PARAMS_FILE) -> Params:
    """Read and check ``params.yaml``.

    Raises:
        ParamsError: the file is missing, no YAML, or breaks a rule; the message lists field, value and remedy, a line each.
    """
    path = Path(path)
    try:
        raw = read_yaml(path)
    except FileNotFoundError as error:
        raise ParamsError(
            f"{path}: no such file; run from the project's folder, or take a recipe: vidbridge recipe use tiny"
        ) from error
    except YamlError as error:
        raise ParamsError(str(error)) from error
    return parse_params(raw, str(path))


def parse_params(raw: object, name: str = "params") -> Params:
    """Check parameters that are already in memory; ``name`` opens each line of the error.

    Raises:
        ParamsError: it is no table, or breaks a rule.
    """
    if not isinstance(raw, Mapping):
        found = "it is empty" if raw is None else f"found {type(raw).__name__}"
        raise ParamsError(f"{name}: expected a table of parameters, {found}; take a recipe: vidbridge recipe use tiny --force")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [f"{name}: {_field(e['loc'])}{_complaint(e)}" for e in error.errors()]
        if len(lines) > _MOST_COMPLAINTS:
            lines[_MOST_COMPLAINTS:] = [f"{name}: and {len(lines) - _MOST_COMPLAINTS:,} more like these"]
        raise ParamsError("\n".join(lines)) from error


def _field(loc: tuple[int | str, ...]) -> str:
    # Pydantic puts the tag of a discriminated union into the location; a reader looks for the key.
    loc = tuple(part for n, part in enumerate(loc) if n == 0 or part not in _TAGS.get(str(loc[n - 1]), ()))
    return ".".join(_quoted(part, str) for part in loc) + (": " if loc else "")


def _kinds(union: Any) -> frozenset[str]:
    members = get_args(get_args(union)[0])
    return frozenset(kind for member in members for kind in get_args(member.model_fields["kind"].annotation))


_TAGS = {"model": _kinds(ModelParams), "judge": _kinds(JudgeParams), "embedder": _kinds(Likeness)}


def _quoted(value: object, form: Callable[[object], str] = repr) -> str:
    """A value as a message shows it: not longer than a line or two, and without what a terminal would obey."""
    try:
        told = one_line(form(value))
    except ValueError:  # a whole number of more digits than Python writes
        told = f"a number of {cast(int, value).bit_length():,} bits"
    return told if len(told) <= _QUOTED_CHARACTERS else f"{told[:_QUOTED_CHARACTERS]}…"


def _complaint(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key (value {_quoted(error['input'])}); remove it or correct its spelling"
    if error["type"] == "missing":
        return "missing; every value stands in params.yaml, see infra/recipes/tiny.yaml for one"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error["input"], Mapping | Params) else f" (value {_quoted(error['input'])})"
    return f"{message}{shown}"
