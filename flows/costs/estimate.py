"""The cost of a planned run: hours, GPU hours, disk, questions to judges and a writer, and money
where rates are declared.

Time comes from earlier runs of the same stage (``measured``; ``scaled`` where only the number of
steps differs), else from declared rates (:mod:`flows.costs.rates`). Without either it is unknown:
no figure is made up. Questions are counted from parameters and samples (:mod:`flows.costs.calls`).
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flows.costs.calls import Calls, calls_of
from flows.costs.rates import Rates, StageRate, Who, load_rates
from flows.params_file.sizes import model_gb, tells_size
from flows.repro.preflight import GB
from flows.repro.steps import Plan, PlanStep
from stages.params import Params
from stages.runtime import paths
from stages.runtime.bounded_yaml import MOST_LOCK_BYTES, YamlError, read_yaml
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.runs.run import flat
from stages.tracking.runs.spending import Spent, spent_by_stage

Basis = Literal["measured", "scaled", "declared"]
#: A plan waits no longer for what earlier runs cost.
DEADLINE_S = 10.0
#: Parameters, by their last name, that change what is learned and not how long it takes.
_NO_TIME = frozenset(
    (
        *(
            "seed",
            "recipe",
            "learning_rate",
            "warmup_steps",
            "schedule",
            "weight_decay",
            "adam_beta2",
            "max_grad_norm",
            "epsilon",
        ),
        *(
            "epsilon_high",
            "loss",
            "scale_rewards",
            "task_decay",
            "importance",
            "careless_share",
            "confidence",
            "alpha",
            "dropout",
            "exclude",
        ),
        *(
            "learning_rates",
            "vision",
            "merger",
            "delta",
            "cispo_ceiling",
            "sapo_positive",
            "sapo_negative",
            "bonus",
            "mask_truncated",
            "overlong",
            "margin_tokens",
            "gamma",
        ),
    )
)
_NAMED = 3
#: Stages whose time depends on the model, whatever parameters they name.
_WITH_MODEL = frozenset(("sft", "grpo", "difficulty", "evaluate"))


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage; None: unknown. ``basis``: the source of the time, ``disk_basis``: that of
    the disk space. ``why``: what the time rests on, or why it is unknown.
    """

    stage: str
    hours: float | None
    gpu_hours: float | None
    basis: Basis | None
    why: str
    disk_gb: float | None
    disk_basis: Literal["measured", "scaled", "declared", "computed"] | None
    calls: tuple[Calls, ...]
    money: float | None


@dataclass(frozen=True)
class RunCost:
    """Cost of a plan's stages, in its order. Totals count what is known; ``unknown``: the stages
    whose time is not.
    """

    stages: tuple[StageCost, ...]
    currency: str
    note: str

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(one.stage for one in self.stages if one.hours is None)

    def total(self, what: Literal["hours", "gpu_hours", "disk_gb", "money"]) -> tuple[float, bool] | None:
        """Sum of what is known, and whether that is all; None if no stage's value is known."""
        values = [getattr(one, what) for one in self.stages]
        known = [value for value in values if value is not None]
        return (sum(known), len(known) == len(values)) if known else None

    def calls(self) -> dict[Who, tuple[int, bool, bool]]:
        """Questions by recipient: the sum of what is known, whether that is all, and whether it is
        only an expected number.
        """
        found: dict[Who, tuple[int, bool, bool]] = {}
        for one in self.stages:
            for call in one.calls:
                count, whole, about = found.get(call.who, (0, True, False))
                found[call.who] = (count + (call.at_most or 0), whole and call.at_most is not None, about or call.about)
        return found


def cost_of(root: Path, params: Params, plan: Plan) -> RunCost:
    """Estimate the stages of ``plan`` that will run.

    Raises:
        UsageError: the declared rates cannot be read.
    """
    rates = load_rates(root)
    if not plan.to_run:
        return RunCost((), rates.currency, "")
    spent, note = _spent(root)
    current = flat(read_yaml(root / paths.PARAMS_FILE))
    sizes = _sizes(root)
    calls = calls_of(root, params, plan)
    return RunCost(
        tuple(
            _stage(step, params, rates, spent, current, sizes, calls.get(step.name, ()), note) for step in plan.to_run
        ),
        rates.currency,
        note,
    )


def _spent(root: Path) -> tuple[Mapping[str, Sequence[Spent]], str]:
    """Cost of earlier runs, or the reason why it is not known. Does not wait for a store that
    hangs.
    """
    spent: dict[str, list[Spent]] = {}
    fault = [f"MLflow does not answer within {DEADLINE_S:g} s"]

    def ask() -> None:
        from mlflow.exceptions import MlflowException

        try:
            spent.update(spent_by_stage(root))
            fault[0] = ""
        except TrackingError as error:
            fault[0] = f"MLflow does not answer: {redacted(one_line(str(error)))}"
        except MlflowException as error:
            fault[0] = f"MLflow refuses: {redacted(one_line(str(error)))}"

    thread = threading.Thread(target=ask, name="costs", daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    return ({}, fault[0]) if fault[0] else (spent, "")


def _stage(
    step: PlanStep,
    params: Params,
    rates: Rates,
    spent: Mapping[str, Sequence[Spent]],
    current: Mapping[str, str],
    sizes: Mapping[str, float],
    calls: tuple[Calls, ...],
    note: str,
) -> StageCost:
    rate = rates.of(step.name)
    time = _time(step, spent.get(step.name, ()), current)
    declared = None if rate is None else _declared(rate, _steps(params, step.name))
    if time.basis is None and rate is not None and declared is not None:
        time = _Time(declared, declared * rate.gpus, "declared", "rates.yaml", {})
    why = time.why or ("MLflow does not answer" if note else "no earlier run, no declared rate")
    questions = tuple(replace(call, measured=time.questions.get(call.who)) for call in calls)
    disk, disk_basis = _disk(step, params, rate, sizes)
    money = _money(rates, time.gpu_hours, questions)
    return StageCost(step.name, time.hours, time.gpu_hours, time.basis, why, disk, disk_basis, questions, money)


@dataclass(frozen=True)
class _Time:
    """``why``: what it rests on, or why it is unknown. ``questions``: by who is asked."""

    hours: float | None
    gpu_hours: float | None
    basis: Basis | None
    why: str
    questions: Mapping[str, int]


def _time(step: PlanStep, runs: Sequence[Spent], current: Mapping[str, str]) -> _Time:
    """Time of the newest run with the same parameters, else of the newest with another number of
    steps. Ignores parameters that cost no time.
    """
    own = f"{step.name.replace('@', '.')}.steps"
    others = ""
    scaled: _Time | None = None
    trains = step.name.partition("@")[0] in _WITH_MODEL
    for run in runs:
        # A run that did not record its model cannot be matched with this one.
        model = {"model": "unknown"} if run.model is None else run.model
        differing = _differing(step, {**run.params, **model} if trains else run.params, current, model=trains)
        day = f"{run.started:%Y-%m-%d}{_on(run.gpus)}"
        if not differing:
            return _measured(run, 1, "measured", f"run of {day}")
        if (
            differing == [own]
            and scaled is None
            and (share := _ratio(current.get(own), run.params.get(own))) is not None
        ):
            scaled = _measured(run, share, "scaled", f"run of {day} with {run.params[own]} steps")
        elif not others:
            named = ", ".join(differing[:_NAMED]) + (
                f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
            )
            others = f"the run of {day} took {in_words(run.cost.wall_s / 3600)} with other {named}"
    return scaled or _Time(None, None, None, others, {})


def _measured(run: Spent, share: float, basis: Basis, why: str) -> _Time:
    gpu_hours = None if run.cost.gpu_h is None else run.cost.gpu_h * share
    questions = {who: math.ceil(count * share) for who, count in run.questions.items()}
    return _Time(run.cost.wall_s / 3600 * share, gpu_hours, basis, why, questions)


def in_words(hours: float) -> str:
    """Format hours for display: ``40 s``, ``25 min``, ``3.2 h``."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _on(gpus: str) -> str:
    """Describe the GPUs of a run: those of this machine may be others."""
    try:
        names = Counter(map(str, json.loads(gpus)))
    except (ValueError, TypeError):
        return ""
    return f" on {', '.join(f'{count} x {name}' for name, count in names.items())}" if names else ""


def _differing(step: PlanStep, past: Mapping[str, str], current: Mapping[str, str], *, model: bool) -> list[str]:
    """Names of parameters that differ from a past run's, or that it lacked, among those that decide
    how long this stage takes; ``model``: the model's too, though DVC does not have the stage depend
    on them.
    """
    row = step.name.partition("@")[2]
    rows = tuple(f"{table}.{row}." for table in ("sft", "grpo", "difficulty"))

    def counts(name: str) -> bool:
        if model and (name == "model" or name.startswith("model.")):
            return True
        if name.rpartition(".")[2] in _NO_TIME or not any(
            name == key or name.startswith(f"{key}.") for key in step.params
        ):
            return False
        # Other rows only add to a table of all results, which takes a second.
        return not name.startswith(("sft.", "grpo.", "difficulty.")) or name.startswith(rows)

    return sorted(
        name for name in past.keys() | current.keys() if counts(name) and not _same(past.get(name), current.get(name))
    )


def _same(one: str | None, other: str | None) -> bool:
    if one == other:
        return True
    try:
        return one is not None and other is not None and math.isclose(float(one), float(other), rel_tol=1e-12)
    except ValueError:
        return False


def _ratio(now: str | None, then: str | None) -> float | None:
    try:
        return int(now or "") / int(then or "")
    except (ValueError, ZeroDivisionError):
        return None


def _steps(params: Params, stage: str) -> int | None:
    table, _, name = stage.partition("@")
    row = {"sft": params.sft, "grpo": params.grpo}.get(table, {}).get(name)  # type: ignore[attr-defined]
    return None if row is None else int(row.steps)


def _declared(rate: StageRate, steps: int | None) -> float | None:
    if rate.hours is not None:
        return rate.hours
    return None if rate.seconds_per_step is None or steps is None else rate.seconds_per_step * steps / 3600


def _disk(
    step: PlanStep, params: Params, rate: StageRate | None, sizes: Mapping[str, float]
) -> tuple[float | None, Literal["measured", "scaled", "declared", "computed"] | None]:
    """GB in place and in DVC's cache: of a pretrained model from its name's size, else as large as
    the last result, else as declared.
    """
    if tells_size(params) and (weights := model_gb(params, step.name)) is not None:
        return sum(weights), "computed"
    if (size := sizes.get(step.name)) is not None:
        return size, "measured"
    return (rate.gb, "declared") if rate is not None and rate.gb is not None else (None, None)


def _sizes(root: Path) -> dict[str, float]:
    """Map stage to GB of its last result as ``dvc.lock`` has it, in place and in the cache."""
    try:
        table = read_yaml(root / paths.LOCK_FILE, MOST_LOCK_BYTES)
        return {
            stage: sum(2 * float(out.get("size") or 0) for out in entry.get("outs") or ()) / GB
            for stage, entry in (table.get("stages") or {}).items()
        }
    except (FileNotFoundError, YamlError, AttributeError, TypeError, ValueError):
        return {}  # The plan itself says what is wrong with the lock.


def _money(rates: Rates, gpu_hours: float | None, calls: Sequence[Calls]) -> float | None:
    """Money for GPU hours and calls. None: nothing is declared, or the quantity it is declared for
    is unknown.
    """
    total, known = 0.0, False
    if rates.gpu_hour is not None:
        if gpu_hours is None:
            return None
        total, known = gpu_hours * rates.gpu_hour, True
    for call in calls:
        if (price := rates.price(call.who)) is not None:
            if call.at_most is None:
                return None
            total, known = total + call.at_most * price / 1000, True
    return total if known else None


def plain(cost: RunCost) -> dict[str, Any]:
    """Plain values of a cost, for programs."""
    totals = {what: cost.total(what) for what in ("hours", "gpu_hours", "disk_gb", "money")}
    return {
        "stages": [asdict(one) for one in cost.stages],
        "total": {
            **{
                what: None if found is None else {"known": found[0], "complete": found[1]}
                for what, found in totals.items()
            },
            "calls": {
                who: {"at_most": count, "complete": whole, "about": about}
                for who, (count, whole, about) in cost.calls().items()
            },
        },
        "unknown": cost.unknown,
        "currency": cost.currency,
        "note": cost.note,
    }
