"""Cost and parameters of earlier runs of a stage, from which the cost of a planned run is
estimated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stages.tracking.lineage.uri import check_server, experiment_name, sqlite_path, tracking_uri
from stages.tracking.runs.history import Cost
from stages.tracking.runs.run import MODEL_TAG, PARENT_TAG, TAG
from stages.tracking.runs.store import open_client

#: A plan waits this long, at most, for a store that does not answer.
PATIENCE_S = 2.0
QUESTIONS_SUFFIX = "/questions"
#: Number of runs that are searched, the newest first.
_RUNS = 500
#: Tag of a run: the step at which its training resumed; its cost is then not that of a whole
#: training.
RESUMED_FROM = TAG + "resumed_from"


@dataclass(frozen=True)
class Spent:
    """One finished run of a stage: its cost, start time (UTC), parameters as MLflow has them, GPUs
    (JSON), and the number of questions to each endpoint (judge, held_out_judge, writer), those that
    a cache answered included.

    ``model``: the parameters ``model.*`` of its project then; None: not recorded.
    """

    cost: Cost
    started: datetime
    params: Mapping[str, str]
    gpus: str
    questions: Mapping[str, float]
    model: Mapping[str, str] | None


def spent_by_stage(root: Path) -> dict[str, list[Spent]]:
    """Finished runs of each stage, the newest first.

    Without those that resumed midway, and without trainings of an ablation, which share their
    machine. Empty if no stage has run yet; nothing is created.

    Raises:
        TrackingError: the store does not answer.
    """
    uri = tracking_uri(root)
    database = sqlite_path(uri)
    if database is not None and not database.exists():
        return {}
    check_server(uri, PATIENCE_S)
    client = open_client(root)
    experiment = client.get_experiment_by_name(experiment_name())
    if experiment is None:
        return {}
    where = [experiment.experiment_id]
    grids = {run.info.run_id for run in client.search_runs(where, f"tags.`{TAG}kind` = 'ablation'", max_results=_RUNS)}
    runs = client.search_runs(
        where,
        f"tags.`{TAG}kind` = 'stage' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=_RUNS,
    )
    by_stage: dict[str, list[Spent]] = {}
    # Runs of earlier releases lack that tag: they use the model that `base` had produced last.
    bases = [run for run in runs if run.data.tags.get(f"{TAG}stage") == "base"]
    for run in runs:
        figures, tags = run.data.metrics, run.data.tags
        if "process/wall_s" not in figures or tags.get(PARENT_TAG) in grids or tags.get(RESUMED_FROM, "0") != "0":
            continue
        cost = Cost(
            figures["process/wall_s"],
            figures["process/cpu_s"],
            figures["process/peak_gb"],
            figures.get("process/gpu_h"),
        )
        started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        questions = {
            name.removesuffix(QUESTIONS_SUFFIX): count
            for name, count in figures.items()
            if name.endswith(QUESTIONS_SUFFIX)
        }
        base = next((base_run for base_run in bases if base_run.info.start_time <= run.info.start_time), None)
        model = _model(tags.get(MODEL_TAG), base.data.params if base else {})
        spent = Spent(cost, started, dict(run.data.params), tags.get(f"{TAG}gpus", "[]"), questions, model)
        by_stage.setdefault(tags.get(f"{TAG}stage", ""), []).append(spent)
    return by_stage


def _model(recorded: str | None, base: Mapping[str, str]) -> dict[str, str] | None:
    """Model parameters of a run, from its own tag, else from the run that produced its base."""
    try:
        table = json.loads(recorded) if recorded else base
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, Mapping):
        return None
    return {str(name): str(value) for name, value in table.items() if str(name).startswith("model.")} or None
