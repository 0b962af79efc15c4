"""MLflow runs of stages: record parameters, metrics, checkpoints and the final status.

with stage_run("grpo@bridge", params) as run:
    run.log(step, {"reward": 0.4})
    run.checkpoint(checkpoint, folder)
    run.page("rollouts/step-00000025.html", html)
    run.summary({"final/reward": 0.7})
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from stages.domain.core.digest import digest
from stages.domain.core.records import Checkpoint
from stages.errors import Terminated
from stages.params import Params
from stages.runtime.liveness import lost_after_s, me, parse, process_state
from stages.runtime.machine import gpus_in_use, machine, versions
from stages.runtime.project import project_root
from stages.tracking.lineage import lockfile
from stages.tracking.lineage.cache_folder import is_cache
from stages.tracking.lineage.git import head, is_dirty, is_repository
from stages.tracking.lineage.uri import PARENT_VARIABLE, experiment_name, patience_of_run_s, patience_s, patiently
from stages.tracking.runs.heartbeats import COUNT_TAG, LOST_TAG, NOTE_TAG, PROCESS_TAG, Sign, watching
from stages.tracking.runs.outbox import Outbox
from stages.tracking.runs.store import experiment_id, is_away, is_denied, is_first_rank, open_client, store_error

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

#: Prefix of all our tags.
TAG = "vidbridge."
#: Tag of a stage's run: parameters of the model that the project trains, by name, as JSON.
MODEL_TAG = TAG + "model_params"
PARENT_TAG = "mlflow.parentRunId"
#: Limits of an MLflow batch and of a parameter's value.
BATCH_PARAMS = 100
PARAM_CHARACTERS = 6000


class StageRun:
    """One run in MLflow; nothing here waits for the network. On ranks other than the first nothing
    is written and ``run_id`` is None."""

    def __init__(self, client: MlflowClient | None, run: Run | None, root: Path) -> None:
        self.run_id: str | None = run.info.run_id if run else None
        #: CPU seconds of the stage's other processes, which are no children of this one.
        self.cpu_s_elsewhere = 0.0
        self.tags: dict[str, str] = dict(run.data.tags) if run else {}
        self._outbox = Outbox(client, run.info.run_id, root) if client and run else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of one step; visible in MLflow within about 2 s."""
        if self._outbox:
            self._outbox.metrics(step, metrics)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the whole stage (step 0 is their only step)."""
        self.log(0, metrics)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags now, each with the prefix ``vidbridge.``."""
        if self._outbox:
            named = {TAG + name: value for name, value in tags.items()}
            self._outbox.tags(named)
            self.tags |= named

    def checkpoint(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Record a saved checkpoint at once: step and path in the tag
        ``vidbridge.checkpoint.<step>``, metrics as ``checkpoint/<name>``.

        ``folder`` is its present path; it becomes a model version when DVC has committed the stage
        and `register` runs.
        """
        self.log(checkpoint.step, {f"checkpoint/{name}": value for name, value in checkpoint.metrics.items()})
        row = {
            "step": checkpoint.step,
            "path": checkpoint.path,
            "final": checkpoint.final,
            "location": str(folder.resolve()),
        }
        self.tag({f"checkpoint.{checkpoint.step:08d}": json.dumps(row)})

    def page(self, file: str, html: str) -> None:
        """Add a page to the run's artefacts, such as ``rollouts/step-00000025.html``."""
        if self._outbox:
            self._outbox.text(file, html)

    def flush(self) -> bool:
        """Wait until everything is sent. Returns False if the store refuses it."""
        return self._outbox is None or self._outbox.flush()

    def close(self, status: str) -> None:
        """Send the remaining entries and end the run with ``status`` (FINISHED, FAILED or
        KILLED)."""
        if self._outbox:
            self._outbox.close(status)


@contextmanager
def stage_run(stage: str, params: Params, root: Path | None = None) -> Iterator[StageRun]:
    """Open the run of one stage. It ends FINISHED, FAILED on an exception, or KILLED on Ctrl-C and
    SIGTERM (the exception propagates).

    Under the flow (``VIDBRIDGE_PIPELINE_RUN``) it is a child of the pipeline's run, else a run of
    its own. Its tags hold stage, recipe, commit, and digests of the stage, its parameters and its
    data, all computed from ``dvc.yaml``.

    Raises:
        TrackingError: the store does not answer: soon where a person waits, after
            ``VIDBRIDGE_MLFLOW_PATIENCE_S`` under the flow.
    """
    root = root or project_root()
    if not is_first_rank():
        yield StageRun(None, None, root)
        return
    wait_s = patience_of_run_s()
    client = open_client(root, wait_s)
    record = lockfile.current_stage(root, stage)
    tags = _tags(root, params) | {TAG + "kind": "stage", TAG + "stage": stage} | _record_tags(record)
    # A training's own parameters do not say which model it trains.
    tags[MODEL_TAG] = json.dumps(flat({"model": params.model.model_dump(mode="json")}))
    if parent := os.environ.get(PARENT_VARIABLE):
        tags[PARENT_TAG] = parent
    used = flat(record.params) if record else flat(params.model_dump(mode="json"))
    with _recorded(client, root, stage, tags, used, wait_s) as run:
        try:
            yield run
        finally:
            run.summary(process_cost(run.cpu_s_elsewhere))
            if gpus := gpus_in_use():
                run.tag({"gpus": json.dumps(gpus)})


@contextmanager
def pipeline_run(params: Params, root: Path | None = None, tags: Mapping[str, str] | None = None) -> Iterator[StageRun]:
    """Open the parent run of a pipeline; pass ``run.run_id`` to the stages as
    ``VIDBRIDGE_PIPELINE_RUN``. Ends like :func:`stage_run`."""
    root = root or project_root()
    client = open_client(root, patience_s())
    named = {TAG + name: value for name, value in (tags or {}).items()}
    all_tags = _tags(root, params) | {TAG + "kind": "pipeline", TAG + "params_digest": digest(params)} | named
    used = flat(params.model_dump(mode="json"))
    with (
        _lost_runs_ended(client, root),
        _recorded(client, root, f"pipeline {params.recipe}", all_tags, used, patience_s()) as run,
    ):
        yield run


@contextmanager
def ablation_run(params: Params, root: Path, commit: str) -> Iterator[StageRun]:
    """Open the parent run of an ablation: the stages of every seed's clone are its children. Ends
    like :func:`stage_run`."""
    client = open_client(root, patience_s())
    tags = _tags(root, params) | {
        TAG + "kind": "ablation",
        TAG + "params_digest": digest(params),
        TAG + "ablation_commit": commit,
    }
    used = flat(params.ablation.model_dump(mode="json")) if params.ablation else {}
    with (
        _lost_runs_ended(client, root),
        _recorded(client, root, f"ablation {params.recipe}", tags, used, patience_s()) as run,
    ):
        yield run


@contextmanager
def benchmark_run(
    params: Params, name: str, tags: Mapping[str, str], used: Mapping[str, Any], root: Path | None = None
) -> Iterator[StageRun]:
    """Open the run of an evaluation on a benchmark, which is not a stage. ``used``: the settings
    its replies depend on. Ends like :func:`stage_run`."""
    root = root or project_root()
    named = {TAG + key: value for key, value in tags.items()}
    with _recorded(
        open_client(root), root, name, _tags(root, params) | {TAG + "kind": "benchmark"} | named, flat(used)
    ) as run:
        yield run


#: Rights that recording runs requires.
_RIGHTS = "EDIT on the experiment {!r}, or name another: MLFLOW_EXPERIMENT_NAME"


@contextmanager
def _recorded(
    client: MlflowClient, root: Path, name: str, tags: Mapping[str, str], used: Mapping[str, str], wait_s: float = 0.0
) -> Iterator[StageRun]:
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    lost_after_s()  # an invalid setting is reported before there is a run that would stay open
    # A server may have created the run and gone away before it answered: this tag finds it, so that
    # it is not created twice.
    opened = TAG + "opened"
    marked = {**tags, opened: uuid.uuid4().hex}
    tries = 0

    def create() -> Run:
        nonlocal tries
        tries += 1
        experiment = experiment_id(client, root)
        runs = client.search_runs([experiment], f"tags.`{opened}` = '{marked[opened]}'") if tries > 1 else []
        return runs[0] if runs else client.create_run(experiment, run_name=name, tags=marked)

    def describe() -> None:
        for start in range(0, len(items), BATCH_PARAMS):
            client.log_batch(record.info.run_id, params=items[start : start + BATCH_PARAMS], synchronous=True)

    items = [Param(key, value) for key, value in used.items()]
    try:
        record = patiently(create, wait_s, is_away)
        patiently(describe, wait_s, is_away)
    except MlflowException as error:
        raise store_error(f"MLflow run {name!r} cannot be opened", error, _RIGHTS.format(experiment_name())) from error
    run = StageRun(client, record, root)
    status = "FAILED"
    try:
        with _termination_raises():
            yield run
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated):
        status = "KILLED"
        raise
    finally:
        run.close(status)


class _OthersRuns:
    """The RUNNING runs of the experiment, as :func:`stages.tracking.runs.heartbeats.watching` needs
    them."""

    def __init__(self, client: MlflowClient, root: Path) -> None:
        self._client, self._root = client, root

    def signs(self) -> dict[str, Sign]:
        """Signs of runs whose process cannot be looked up; of the others, those whose process has
        ended are ended."""
        from mlflow.exceptions import MlflowException

        signs_of = {}
        for run in self._client.search_runs([experiment_id(self._client, self._root)], "attributes.status = 'RUNNING'"):
            # A run without a process is not ours, whatever its tags.
            process = parse(run.data.tags.get(PROCESS_TAG, ""))
            state = process_state(process) if process is not None else None
            if state == "gone":
                try:
                    self._end(run.info.run_id, "its process was gone when another pipeline run looked")
                except MlflowException as error:
                    if not is_denied(error):
                        raise  # else it is another account's, and stays
            elif state == "elsewhere":
                signs_of[run.info.run_id] = Sign(run.data.tags.get(COUNT_TAG, ""), run.data.tags.get(NOTE_TAG, ""))
        return signs_of

    def note(self, run: str, text: str) -> None:
        self._client.set_tag(run, NOTE_TAG, text)

    def end(self, run: str) -> None:
        self._end(run, f"it gave no sign of life for {lost_after_s():g} s while the store could be reached")

    def _end(self, run: str, why: str) -> None:
        if self._client.get_run(run).info.status != "RUNNING":
            return  # it has ended by itself since the runs were listed
        self._client.set_tag(run, LOST_TAG, why)
        self._client.set_terminated(run, "KILLED")


@contextmanager
def _lost_runs_ended(client: MlflowClient, root: Path) -> Iterator[None]:
    """End as KILLED the runs that dead processes left RUNNING (``kill -9``, power).

    Those of this machine end at once, others when their sign of life has stood still for long
    enough, watched for the duration of this block.
    """
    with watching(_OthersRuns(client, root)):
        yield


def process_cost(cpu_s_elsewhere: float = 0.0) -> dict[str, float]:
    """Measure the cost of this process since it started: child processes included, and imports
    unless a warm process had done them. CPU seconds of other processes are added.

    Wall and CPU time in seconds; GPU hours of all its ranks together; the peak of resident memory,
    in GB, of this process or of its largest finished child.
    """
    import psutil

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    wall_s = time.time() - psutil.Process().create_time()
    return {
        "process/wall_s": wall_s,
        "process/gpu_h": len(gpus_in_use()) * wall_s / 3600,
        "process/cpu_s": sum(usage.ru_utime + usage.ru_stime for usage in usages) + cpu_s_elsewhere,
        # Linux counts in KiB, macOS in bytes.
        "process/peak_gb": max(usage.ru_maxrss for usage in usages) * (1 if sys.platform == "darwin" else 1024) / 1e9,
    }


@contextmanager
def _termination_raises() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated` in the main thread, unless another handler is set."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tags(root: Path, params: Params) -> dict[str, str]:
    tags = {TAG + "recipe": params.recipe, TAG + "host": socket.gethostname(), PROCESS_TAG: str(me()), COUNT_TAG: "0"}
    # A cache folder is not a checkout, and where models are only read there may be no git.
    if not is_cache(root) and is_repository(root) and (commit := head(root)):
        tags |= {TAG + "git_commit": commit, TAG + "git_dirty": str(is_dirty(root)).lower()}
    return tags | {TAG + "machine": json.dumps(machine()), TAG + "versions": json.dumps(versions())}


def _record_tags(record: lockfile.StageRecord | None) -> dict[str, str]:
    if record is None:
        return {}
    tags = {TAG + "stage_digest": record.digest, TAG + "params_digest": record.params_digest}
    # Folders and JSON are data; the hashes of code are in the stage digest.
    data = {path: value for path, value in record.deps.items() if not path.endswith((".py", ".yaml"))}
    return tags | {TAG + "data": json.dumps(data, sort_keys=True)}


def kept_tag(summary: Mapping[str, Any]) -> dict[str, str]:
    """Tag of a run and of a version: which checkpoint a watched training kept, and its score. Empty
    if it was not watched."""
    return {"kept": json.dumps(summary["kept"], sort_keys=True)} if "kept" in summary else {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten ``{"grpo": {"bridge": {"steps": 50}}}`` to ``{"grpo.bridge.steps": "50"}``, the form
    of MLflow's parameters."""
    named: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}".removeprefix("params.yaml.")
        if isinstance(value, Mapping) and value:
            named |= flat(value, f"{name}.")
        else:
            named[name] = (value if isinstance(value, str) else json.dumps(value))[:PARAM_CHARACTERS]
    return named
