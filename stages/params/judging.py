"""Parameters of judge, held-out judge and writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from stages.domain.tasks import KnownTask, task_of
from stages.domain.tasks.rewards import RewardRules
from stages.params.types import Fraction01, Table, Weight
from stages.runtime import paths


class KindOfJudge(Table):
    """Base of the kinds of judges: the traits that checks, plans and messages ask for, so that no
    other place tells the kinds apart."""

    #: It is a model behind an endpoint, which answers, costs and fails.
    at_endpoint: ClassVar[bool] = False
    #: It writes text, so that it can ask questions and answer them.
    writes: ClassVar[bool] = False

    @property
    def reads(self) -> bool:
        """True if it is meant for text outside the grammar of the generated corpus."""
        return True

    @property
    def weights(self) -> tuple[str, str] | None:
        """Model and revision that this process loads; None: there is none."""
        return None


class RuleJudgeParams(KindOfJudge):
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

    @property
    def reads(self) -> bool:
        return self.kind == "rule_on_real_text"


class OpenAIJudgeParams(KindOfJudge):
    """A language model behind an OpenAI-compatible endpoint. Its address comes from the environment
    (VIDBRIDGE_JUDGE_URL)."""

    at_endpoint: ClassVar[bool] = True
    writes: ClassVar[bool] = True

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


class LocalJudgeParams(KindOfJudge):
    """A model that each process loads: from the hub, its cache or a folder, safetensors only."""

    #: Name of a model on the hub, or a folder that holds one.
    model: str = Field(min_length=1)
    #: A commit of the hub's repository; for a folder a label of its weights, under which verdicts
    #: are cached.
    revision: str = Field(min_length=1)
    #: As for ``openai``: here a reply lacks a verdict if a sentence of it is longer than the model
    #: reads.
    max_unavailable: float = Field(ge=0, lt=1)

    @property
    def weights(self) -> tuple[str, str]:
        return self.model, self.revision


class SimilarityJudgeParams(LocalJudgeParams):
    """A sentence-transformers model in this process: cosine of answer and reference.

    It sees what a text is about. It does not see who does what to whom, a negation, or a second
    guess beside the right one (guide "Choosing a judge").
    """

    kind: Literal["similarity"]
    #: Cosine from which an answer earns full marks or is right, and a caption tells an event.
    full: Fraction01
    #: Cosine from which an answer earns partial marks.
    partial: Fraction01
    #: Let the rule judge refuse first: denials, alternatives, lists of guesses, and the reference's
    #: words in another order earn nothing.
    refusals: bool

    @model_validator(mode="after")
    def _thresholds_rise(self) -> SimilarityJudgeParams:
        if self.partial > self.full:
            raise ValueError(f"partial {self.partial:g} exceeds full {self.full:g}; lower it, or raise full")
        return self


class EntailmentJudgeParams(LocalJudgeParams):
    """A model of natural language inference (NLI) in this process: what follows from what.

    An answer covers the reference if the reference follows from it, and claims nothing further if
    it follows from the reference.
    """

    kind: Literal["entailment"]
    #: Probability of entailment from which a text is taken to follow from another.
    threshold: Fraction01


_OneJudge = RuleJudgeParams | OpenAIJudgeParams | SimilarityJudgeParams | EntailmentJudgeParams
OneJudgeParams = Annotated[_OneJudge, Field(discriminator="kind")]


class JudgesByTaskParams(Table):
    """Several judges, each for its tasks. Tasks with equal tables share one judge."""

    kind: Literal["by_task"]
    #: Judge of every task that ``tasks`` does not name.
    default: OneJudgeParams
    #: Judges by task.
    tasks: dict[KnownTask, OneJudgeParams] = Field(min_length=1)


JudgeParams = Annotated[_OneJudge | JudgesByTaskParams, Field(discriminator="kind")]


class PlacedJudge(NamedTuple):
    """One judge of a table. ``name``: of its counts, and in capitals of its endpoint's variables;
    ``field``: its place in ``params.yaml``; ``tasks``: those it is named for, empty for all
    others."""

    name: str
    field: str
    params: OneJudgeParams
    tasks: tuple[str, ...]

    @property
    def role(self) -> str:
        """Role of its endpoint: its variables are VIDBRIDGE_<role>_URL and VIDBRIDGE_<role>_KEY."""
        return self.name.upper()


def placed_judges(params: JudgeParams, name: str = "judge", field: str = "judge") -> tuple[PlacedJudge, ...]:
    """List the different judges of a table, the one of all other tasks first.

    Another one is named after the first of its tasks, such as ``judge_caption``.
    """
    if not isinstance(params, JudgesByTaskParams):
        return (PlacedJudge(name, field, params, ()),)
    tasks: dict[OneJudgeParams, list[str]] = {}
    for task, judge in params.tasks.items():
        if judge != params.default:
            tasks.setdefault(judge, []).append(task)
    return (
        PlacedJudge(name, f"{field}.default", params.default, ()),
        *(
            PlacedJudge(f"{name}_{named[0]}", f"{field}.tasks.{named[0]}", judge, tuple(named))
            for judge, named in tasks.items()
        ),
    )


def judge_for(task: str, params: JudgeParams, name: str = "judge", field: str = "judge") -> PlacedJudge:
    """Look up the judge of a task's replies."""
    first, *others = placed_judges(params, name, field)
    return next((place for place in others if task in place.tasks), first)


class Judges(NamedTuple):
    """The tables of judges of a whole file. ``held_out``: None if there are none."""

    rewards: JudgeParams
    held_out: JudgeParams | None

    @property
    def all(self) -> tuple[PlacedJudge, ...]:
        """The different judges, those of the rewards first."""
        return tuple(place for table in self._tables for place in placed_judges(*table))

    def of(self, task: str) -> tuple[PlacedJudge, ...]:
        """Judges of a task's replies: that of the rewards, then the one that is held out."""
        return tuple(judge_for(task, *table) for table in self._tables)

    def check(self, synthesised: Sequence[str], rules: RewardRules, source: str | None) -> None:
        """Check that each judge is asked, and can do what it is asked for.

        Args:
            synthesised: names of tasks.
            source: folder of videos; None: the generated corpus, whose sentences the rule judge
                reads exactly. On real text, a judge by shared words rewards negations, guesses and
                swapped roles, so it must be chosen explicitly.

        Raises:
            ValueError: one is not, or cannot; with field, problem and remedy.
        """
        judged = [task for task in synthesised if task_of(task).judge_calls(rules)]
        for table, _, field in self._tables:
            for task in table.tasks if isinstance(table, JudgesByTaskParams) else ():
                if task not in synthesised:
                    raise ValueError(
                        f"{field}.tasks: {task!r} is not synthesised (synthesize.tasks: {', '.join(synthesised)});"
                        " remove it, or synthesise it"
                    )
                if task not in judged:
                    raise ValueError(f"{field}.tasks: {task!r} is scored by rule, no judge reads it; remove it")
        for place in self.all if source is not None else ():
            read = [task for task in judged if place in self.of(task)]
            if read and not place.params.reads:
                raise ValueError(
                    f"{place.field}.kind: 'rule' reads the sentences of {paths.CORPUS} only, and ingest.source is"
                    f" {source!r}: on real text it would judge {', '.join(read)} by shared words. Name a"
                    " model that reads (kind: openai, see infra/recipes/vidbridge-r1.yaml and VIDBRIDGE_JUDGE_URL), or"
                    f" accept the rough measure with {place.field}.kind: rule_on_real_text"
                )
        captions = [task for task in judged if task_of(task).answer == "caption"]
        for task in captions if rules.caption_scorer == "qa_utility" else ():
            for place in self.of(task):
                if not place.params.writes:
                    raise ValueError(
                        f"rewards.caption_scorer: 'qa_utility' asks questions about {task} and answers them, which"
                        f" {place.field} (kind {place.params.kind}) cannot; name a model there (kind: openai), or"
                        " another caption_scorer"
                    )

    @property
    def _tables(self) -> list[tuple[JudgeParams, str, str]]:
        held_out = [] if self.held_out is None else [(self.held_out, "held_out_judge", "held_out_judge.judge")]
        return [(self.rewards, "judge", "judge"), *held_out]


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
