"""History of runs in MLflow: volatile facts that no DVC out may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.runs.run import PARENT_TAG, TAG
from stages.tracking.runs.store import experiment_id

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

#: Counters of an endpoint that answers questions, as ``<who>/<count>`` among a run's metrics.
REQUEST_COUNTS = ("questions", "cache_hits", "requests", "prompt_tokens", "completion_tokens")

#: Runs that a search returns at most.
_RUNS = 1000
#: Runs of a stage that an estimate of a grid rests on at most.
GRID_COSTS = 5


@dataclass(frozen=True)
class Cost:
    """Cost of one stage: wall and CPU seconds, with imports unless a warm process had done them,
    peak resident memory, and GPU hours of all ranks together (None: recorded before GPUs were
    counted)."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    gpu_h: float | None


@dataclass(frozen=True)
class PastRun:
    """A finished run of a stage.

    Attributes:
        started: start time, UTC.
        requests: requests to each endpoint (judge, held_out_judge, writer), by
            :data:`REQUEST_COUNTS`; empty if a rule judges.
        commit: the commit it ran on, None outside git; ``dirty``: tracked files differed from it.
        machine, versions: its hardware and software; empty if recorded before these were. ``gpus``:
            their names.
    """

    cost: Cost
    started: datetime
    requests: Mapping[str, Mapping[str, float]]
    commit: str | None
    dirty: bool
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    gpus: tuple[str, ...]


def latest_costs(client: MlflowClient, root: Path) -> dict[str, Cost]:
    """Cost of the latest finished run of each stage, by the stage's name. Stages that never ran
    here are missing.

    Raises:
        TrackingError: the store does not answer.
    """
    return {stage: run.cost for stage, run in latest_runs(client, root).items()}


def latest_runs(client: MlflowClient, root: Path) -> dict[str, PastRun]:
    """Finished run of each stage that produced the result in ``dvc.lock``, else its latest run, by
    the stage's name.

    Stages that never ran here are missing. Trainings of an ablation have other seeds and are
    excluded.

    Raises:
        TrackingError: the store does not answer, or ``dvc.lock`` is damaged.
    """
    locked = read_lock(root)
    experiment = experiment_id(client, root)
    grids = {grid.info.run_id for grid in _grids(client, experiment)}
    runs = _finished(client, experiment)
    runs_of_stage: dict[str, PastRun] = {}
    exact: set[str] = set()
    for run in runs:
        figures, tags = run.data.metrics, run.data.tags
        if "process/wall_s" not in figures or tags.get(PARENT_TAG) in grids:
            continue
        stage = tags[TAG + "stage"]
        made_it = stage in locked and tags.get(TAG + "stage_digest") == locked[stage].digest
        if stage in exact or (stage in runs_of_stage and not made_it):
            continue
        if made_it:
            exact.add(stage)
        runs_of_stage[stage] = PastRun(
            cost=_cost(figures),
            started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            requests=_requests(figures),
            commit=tags.get(TAG + "git_commit"),
            dirty=tags.get(TAG + "git_dirty") == "true",
            machine=_read(run, "machine", dict[str, Any], "{}"),
            versions=_read(run, "versions", dict[str, str], "{}"),
            gpus=tuple(_read(run, "gpus", list[str], "[]")),
        )
    return runs_of_stage


def grid_costs(client: MlflowClient, root: Path, recipe: str) -> dict[str, list[Cost]]:
    """Costs of the finished stages of a recipe's ablation grids, by the stage's name, the newest
    first, at most :data:`GRID_COSTS` of each. Empty if none has run.

    Raises:
        TrackingError: the store does not answer.
    """
    experiment = experiment_id(client, root)
    grids = {grid.info.run_id for grid in _grids(client, experiment) if grid.data.tags.get(TAG + "recipe") == recipe}
    costs: dict[str, list[Cost]] = {}
    for run in _finished(client, experiment) if grids else ():
        if run.data.tags.get(PARENT_TAG) in grids and "process/wall_s" in run.data.metrics:
            found = costs.setdefault(run.data.tags[TAG + "stage"], [])
            if len(found) < GRID_COSTS:
                found.append(_cost(run.data.metrics))
    return costs


def _grids(client: MlflowClient, experiment: str) -> Sequence[Run]:
    return client.search_runs([experiment], f"tags.`{TAG}kind` = 'ablation'", max_results=_RUNS)


def _finished(client: MlflowClient, experiment: str) -> Sequence[Run]:
    """Finished runs of stages, the newest first."""
    return client.search_runs(
        [experiment],
        f"tags.`{TAG}kind` = 'stage' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=_RUNS,
    )


def _cost(figures: Mapping[str, float]) -> Cost:
    return Cost(
        figures["process/wall_s"], figures["process/cpu_s"], figures["process/peak_gb"], figures.get("process/gpu_h")
    )


def _read(run: Run, name: str, kind: Any, empty: str) -> Any:
    try:
        return TypeAdapter(kind).validate_json(run.data.tags.get(TAG + name, empty))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise TrackingError(
            f"run {run.info.run_id}", f"tag {TAG}{name}: {first}", "delete the tag, or the run"
        ) from error


def _requests(figures: Mapping[str, float]) -> dict[str, dict[str, float]]:
    counts: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        who, _, what = name.rpartition("/")
        if what in REQUEST_COUNTS:
            counts.setdefault(who, {})[what] = value
    return counts
