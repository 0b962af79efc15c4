"""``params.yaml`` as frozen types: everything that changes a result, and nothing else.

No field has a default here: every value comes from ``params.yaml``. Rules across fields are checked
at load, so that a GRPO row with a task that is not synthesised fails in a second and not after an
hour. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, cast

from pydantic import BaseModel, Field, ValidationError, model_validator

from stages.domain.core.prompts import PromptTexts
from stages.domain.core.records import Record
from stages.domain.tasks import UNKNOWN_TASK, mix_vid_qa, task_of
from stages.domain.tasks.rewards import RewardRules
from stages.errors import Fault
from stages.params.data import CorpusParams, IngestParams, SynthesizeParams
from stages.params.difficulty import DifficultyRow
from stages.params.evaluation import AblationParams, EvaluationParams, GateParams
from stages.params.judging import HeldOutJudgeParams, JudgeParams, Judges
from stages.params.models import ModelParams
from stages.params.own_tasks import TasksParams, load_own_tasks, own_modules
from stages.params.training import GrpoRow, SftRow
from stages.params.types import ParamsError, RowName, Table
from stages.runtime import paths
from stages.runtime.bounded_yaml import YamlError, read_yaml
from stages.runtime.plain import one_line
from stages.runtime.project import find_project

_MOST_ERRORS = 20
_QUOTED_CHARACTERS = 300
#: The tasks of a project are those of the process while its parameters are checked.
_LOADING = RLock()


class Params(Table):
    recipe: RowName
    #: Seed of everything random, in the range of numpy's generators.
    seed: int = Field(ge=0, lt=2**32)
    corpus: CorpusParams
    ingest: IngestParams
    tasks: TasksParams
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
    #: Grid of `vidbridge ablate`; null: there is none. No stage of the pipeline reads it.
    ablation: AblationParams | None

    @model_validator(mode="after")
    def _rows_fit_together(self) -> Params:
        synthesised = self.synthesize.tasks.named
        clashes = (set(self.sft) & set(self.grpo)) | ({"base"} & (set(self.sft) | set(self.grpo)))
        if clashes:
            raise ValueError(
                f"sft/grpo: {sorted(clashes)[0]!r} names two things; row names are unique and 'base' is the start"
            )
        earlier: list[str] = ["base"]
        for table, rows in (("sft", self.sft), ("grpo", self.grpo)):
            for name, row in rows.items():
                for task in row.tasks:
                    if task not in synthesised:
                        raise ValueError(
                            f"{table}.{name}.tasks: {task!r} is not synthesised (synthesize.tasks:"
                            f" {', '.join(synthesised)})"
                        )
                if row.init not in earlier:
                    raise ValueError(
                        f"{table}.{name}.init: {row.init!r} is not an earlier row (known here: {', '.join(earlier)})"
                    )
                earlier.append(name)
        inits = {row.init for row in (*self.sft.values(), *self.grpo.values())}
        leaves = [name for name in earlier if name not in inits]
        if len(leaves) != 1:
            raise ValueError(
                f"grpo: {len(leaves)} rows are nobody's init ({', '.join(leaves)}); the candidate is the table's"
                " only leaf, so"
                " chain them through `init` or delete what is not wanted"
            )
        for name in self.evaluation.of:
            if name not in earlier:
                raise ValueError(f"evaluation.of: {name!r} is not a row (known: {', '.join(earlier)})")
        if leaves[0] not in self.evaluation.of:
            raise ValueError(f"evaluation.of: the candidate {leaves[0]!r} is missing; the gate needs its scores")
        if len(set(self.evaluation.of)) != len(self.evaluation.of):
            raise ValueError("evaluation.of: a name is listed twice; remove one")
        for compared in () if self.gate.scores == "all" else self.gate.scores:
            if compared not in synthesised:
                raise ValueError(
                    f"gate.scores: {compared!r} is not synthesised (synthesize.tasks: {', '.join(synthesised)})"
                )
        return self

    @model_validator(mode="after")
    def _filters_fit_their_rows(self) -> Params:
        everything = paths.SAMPLES.as_posix()
        for name, row in self.grpo.items():
            own, filtered = paths.difficulty(name).as_posix(), row.samples != everything
            if filtered and row.samples != own:
                raise ValueError(
                    f"grpo.{name}.samples: {row.samples!r} was chosen for another row's start; name {own}, or"
                    f" {everything} for all"
                )
            if filtered and name not in self.difficulty:
                row_names = ", ".join(self.difficulty) or "none"
                raise ValueError(
                    f"grpo.{name}.samples: {row.samples!r} is made by no row (difficulty: {row_names}); add"
                    f" difficulty.{name}, or name {everything}"
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
                    f"difficulty.{name}: {' and '.join(drops)} drop no sample of {', '.join(starts.trained_tasks)} (the"
                    " first is for other tasks than captions, the second for captions); change one of them, or delete"
                    f" this row and write grpo.{name}.samples: {everything}"
                )
            if rolled.init != starts.init:
                raise ValueError(
                    f"difficulty.{name}.init: {rolled.init!r}, but grpo.{name} starts from {starts.init!r}; name that"
                )
        return self

    @model_validator(mode="after")
    def _judges_fit_their_tasks(self) -> Params:
        generated = Path(self.ingest.source) == paths.CORPUS
        self.judges.check(self.synthesize.tasks.named, self.rewards, None if generated else self.ingest.source)
        return self

    @property
    def judges(self) -> Judges:
        """The judges of the rewards, and those that are held out of them."""
        return Judges(self.judge, None if self.held_out_judge is None else self.held_out_judge.judge)

    @model_validator(mode="after")
    def _shots_are_known(self) -> Params:
        mixing = self.synthesize.tasks.of(mix_vid_qa.TASK)
        if mixing is not None and mixing.one_shot and not self.ingest.curate:
            raise ValueError(
                f"synthesize.tasks.{mix_vid_qa.NAME}.one_shot: true, and ingest.curate is false, so that no clip's"
                " shots are known; set ingest.curate: true, or one_shot: false"
            )
        return self

    @model_validator(mode="after")
    def _traces_earn_the_reward(self) -> Params:
        traces = self.synthesize.writer.traces if self.synthesize.writer else None
        for name in ("judge", "rewards"):
            if traces is not None and getattr(traces, name) != getattr(self, name):
                raise ValueError(
                    f"synthesize.writer.traces.{name}: differs from `{name}`, and traces are kept by the reward that is"
                    f" trained on; write the same there (`{name}: &{name} {{...}}` here, `{name}: *{name}` below)"
                )
        return self

    @model_validator(mode="after")
    def _watches_by_the_same_scores(self) -> Params:
        for name, row in self.sft.items():
            if row.watch is not None:
                row.watch.check_same(name, row.trained_tasks, self.judge, self.rewards)
        return self

    @model_validator(mode="after")
    def _grid_can_be_run(self) -> Params:
        if self.ablation is None:
            return self
        synthesised, variants = self.synthesize.tasks.named, self.variants
        starts = {name: row.init for name, row in variants.items()}
        if len(set(starts.values())) != 1:
            raise ValueError(
                f"ablation.variants: they start from different rows ({starts}); set one `init` for all of them"
            )
        start = next(iter(starts.values()))
        if start not in ("base", *self.rows):
            raise ValueError(
                f"ablation: the variants start from {start!r}, which is not a row (known: base,"
                f" {', '.join(self.rows)}); set one of"
                " them as `init`, or write `ablation: null`"
            )
        if clash := {start, "base", *self.rows} & set(variants):
            raise ValueError(f"ablation.variants.{sorted(clash)[0]}: a row of the recipe has that name; choose another")
        for name, row in variants.items():
            if missing_tasks := [task for task in row.tasks if task not in synthesised]:
                raise ValueError(
                    f"ablation.variants.{name}.tasks: {missing_tasks[0]!r} is not synthesised"
                    f" (synthesize.tasks: {', '.join(synthesised)})"
                )
        budgets = {n: r.steps * r.prompts_per_step * r.rollouts for n, r in variants.items() if isinstance(r, GrpoRow)}
        if len(set(budgets.values())) > 1:
            raise ValueError(
                f"ablation.variants: unequal numbers of rollouts ({budgets}); a comparison needs one budget"
            )
        if missing := [axis for axis in self.ablation.axes if axis.split("/")[0] not in synthesised]:
            raise ValueError(
                f"ablation.axes: {missing[0]!r} is not synthesised (synthesize.tasks: {', '.join(synthesised)})"
            )
        for name in {name for pair in self.ablation.contrasts for name in pair} - {start, *variants}:
            raise ValueError(f"ablation.contrasts: {name!r} is not a variant (known: {', '.join((start, *variants))})")
        return self

    @property
    def variants(self) -> dict[str, SftRow | GrpoRow]:
        """Training rows of the ablation grid, with the changes of each variant applied.

        Raises:
            ValueError: the ``like`` of a variant is not a row, or its changes are not valid in such
                a row.
        """
        variants: dict[str, SftRow | GrpoRow] = {}
        if self.ablation is None:
            return variants
        for name, variant in self.ablation.variants.items():
            if (row := self.rows.get(variant.like)) is None:
                raise ValueError(
                    f"ablation.variants.{name}.like: {variant.like!r} is not a row (known: {', '.join(self.rows)});"
                    " set one of"
                    " them, or write `ablation: null`"
                )
            changes = self.ablation.shared | variant.changes
            table = row.model_dump() | {"watch": None} | changes
            if isinstance(row, GrpoRow) and "sampler" not in changes and _trains_one(table["tasks"]):
                table["sampler"] = "mixture"  # of one task there is no ratio to keep
            if isinstance(row, GrpoRow) and row.samples != paths.SAMPLES.as_posix():
                table["samples"] = paths.difficulty(name).as_posix()
            try:
                variants[name] = type(row).model_validate(table)
            except ValidationError as error:
                first = error.errors()[0]
                where = [f"ablation.variants.{name}.changes", *_field(first, table)]
                raise ValueError(f"{': '.join(where)}: {_fault(first)}") from error
        return variants

    @property
    def rows(self) -> dict[str, SftRow | GrpoRow]:
        """Training rows by name, each after its ``init``."""
        return {**self.sft, **self.grpo}

    @property
    def candidate(self) -> str:
        """Name of the only row that no other starts from: the row that the gate decides on."""
        inits = {row.init for row in self.rows.values()}
        return next(name for name in ("base", *self.rows) if name not in inits)


def _trains_one(tasks: object) -> bool:
    return isinstance(tasks, Mapping) and sum(map(bool, tasks.values())) == 1


def load_params(path: Path | str = paths.PARAMS_FILE) -> Params:
    """Read and check ``params.yaml``.

    Raises:
        ParamsError: the file is missing, is not YAML, or breaks a rule; each line of the message
            names field, value and remedy.
    """
    path = Path(path)
    try:
        raw = read_yaml(path)
    except FileNotFoundError as error:
        raise ParamsError(
            str(path), "no such file", "run from the project's folder, or take a recipe: vidbridge recipe use tiny"
        ) from error
    except YamlError as error:
        raise ParamsError.from_error(error) from error
    return parse_params(raw, str(path), path.parent if (path.parent / paths.PIPELINE_FILE).is_file() else None)


def parse_params(raw: object, name: str = "params", root: Path | None = None) -> Params:
    """Check parameters that are already in memory; each line of the error starts with ``name``.

    The tasks of the project's own that they name are loaded, and are those of this process until
    other parameters are read. ``root``: folder of the project whose they are; None: the project of
    the working directory.

    Raises:
        ParamsError: ``raw`` is not a table, or breaks a rule.
    """
    if not isinstance(raw, Mapping):
        actual = "it is empty" if raw is None else f"found {type(raw).__name__}"
        raise ParamsError(
            name, f"expected a table of parameters, {actual}", "take a recipe: vidbridge recipe use tiny --force"
        )
    try:
        with _LOADING:
            modules = own_modules(raw)
            load_own_tasks(root or (find_project() if modules else None) or Path(), modules)
            return Params.model_validate(raw)
    except ValidationError as error:
        found = error.errors()
        if any(e["loc"][:1] == ("tasks",) for e in found):
            # Modules that cannot be read define no task, so that each name of theirs would be a
            # fault, too.
            found = [e for e in found if e["type"] != UNKNOWN_TASK]
        errors = [ParamsError(": ".join([name, *_field(e, raw)]), *_fault(e)) for e in found]
        if len(errors) > _MOST_ERRORS:
            errors[_MOST_ERRORS:] = [
                ParamsError(name, f"and {len(errors) - _MOST_ERRORS:,} more like these", "correct these first")
            ]
        raise ParamsError.joined(errors) from error


def _field(error: Any, raw: object) -> list[str]:
    """Name the field of ``raw`` that an error is about, by its keys; Pydantic's location also
    contains members of unions."""
    names = []
    node = raw
    for number, part in enumerate(error["loc"], 1):
        if isinstance(node, Mapping):
            if part not in node and not (error["type"] == "missing" and number == len(error["loc"])):
                continue
            node = node.get(part)
        elif isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        else:
            continue
        names.append(_quoted(part, str))
    return [".".join(names)] if names else []


def _quoted(value: object, form: Callable[[object], str] = repr) -> str:
    """Format a value for a message: at most a line or two, without control characters."""
    try:
        text = one_line(form(value))
    except ValueError:  # an integer with more digits than Python writes
        text = f"a number of {cast(int, value).bit_length():,} bits"
    return text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}…"


def _fault(error: Any) -> Fault:
    if error["type"] == "extra_forbidden":
        return Fault(f"unknown key (value {_quoted(error['input'])})", "remove it or correct its spelling")
    if error["type"] == "missing":
        return Fault("missing", "every value is set in params.yaml; vidbridge recipe show tiny prints an example")
    if error["type"] == "model_type":
        keys = ", ".join(f"{key}: …" for key in _keys_of(error["ctx"]["class_name"]))
        return Fault(f"not a table (value {_quoted(error['input'])})", f"write {{{keys or 'KEY: VALUE'}}}")
    # Pydantic hands on the text of a validator's error, and nothing else of it.
    problem, semicolon, remedy = error["msg"].removeprefix("Value error, ").rpartition("; ")
    value = "" if isinstance(error["input"], Mapping | Params) else f" (value {_quoted(error['input'])})"
    return Fault(f"{problem}{value}", remedy) if semicolon else Fault(f"{remedy}{value}", "correct it")


def _keys_of(name: str) -> list[str]:
    """Keys of the table whose type has this name, which is all that an error says of it; none if
    several types have it."""
    types: list[type[BaseModel]] = [Table, Record]
    for kind in types:
        types += kind.__subclasses__()
    found = [list(kind.model_fields) for kind in types if kind.__name__ == name]
    return found[0] if len(found) == 1 else []
