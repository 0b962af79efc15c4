"""The training flow: DVC's graph decides what must run, Prefect orders and shows it, MLflow gets one parent run for all of it.

A stage is submitted when what it depends on has ended and a slot is free, so that ``evaluate@bridge`` runs beside ``grpo@general``.
Training stages exclude each other. When something interrupts the flow (Ctrl-C, SIGTERM, Prefect's cancel), every stage is ended before
the flow is; after a ``kill -9`` the guards do it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.console.registry import register_table
from flows.console.results import read_scores
from flows.console.show import as_text
from flows.errors import FlowError, StageCancelled, StageFailed, UsageError
from flows.processes.lost import at_work
from flows.processes.warm_pool import warmed
from flows.repro import registered, reproduce
from flows.repro.remote import push_runs
from flows.repro.reproduce import StageResult
from flows.repro.scratch import release_scratch
from flows.repro.steps import Plan, PlanStep
from flows.repro.unchanged import Watch
from stages.errors import Terminated
from stages.params import Params, load_params
from stages.runtime import paths
from stages.tracking.lineage.commits import record_commit, stamped
from stages.tracking.lineage.uri import is_server, shown, tracking_uri
from stages.tracking.registry.register import RegisterReport, register
from stages.tracking.runs.run import pipeline_run
from stages.tracking.session import Session

#: How often the flow asks the server whether someone cancelled it.
CANCEL_POLL_S = 2.0
#: Tells stages, and the registry, which MLflow run they belong to.
PARENT = "VIDBRIDGE_PIPELINE_RUN"
#: Exit status of a stage that wants a person, not another attempt.
USAGE_STATUS = 2
_STAGE_END_S = 20.0
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PipelineReport:
    """What a run that ended well did; ``commit`` holds its ``dvc.lock`` and ``params.yaml``, on a branch ``runs/<name>`` or below HEAD."""

    ran: tuple[StageResult, ...]
    name: str
    mlflow_run: str | None
    commit: str
    registration: RegisterReport


def stage_slots() -> int:
    """``VIDBRIDGE_STAGE_SLOTS``: how many stages run side by side (2: one trains, one evaluates)."""
    text = os.environ.get("VIDBRIDGE_STAGE_SLOTS", "2")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"VIDBRIDGE_STAGE_SLOTS: {text!r} is no number of stages; set 1 or more")
    return int(text)


def _try_again(_task: object, _run: object, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, StageFailed) and error.exit_code == USAGE_STATUS)


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_try_again)
def run_stage(root: Path, step: PlanStep, env: dict[str, str], cancelled: threading.Event) -> StageResult | State[Any]:
    """One DVC stage; every line it prints goes into the log of this task's run. A cancelled one ends as that, and is not tried again."""
    if cancelled.is_set():
        return _cancelled(StageCancelled(f"stage {step.name} was cancelled before it started"))
    logger = get_run_logger()
    try:
        result = reproduce.reproduce(root, step.name, logger.info, env, timeout_s=step.meta.timeout_s, cancelled=cancelled)
    except StageCancelled as error:
        return _cancelled(error)
    if step.meta.kind == "train" and (released := release_scratch(root, step.name, env[PARENT])):
        logger.info("committed by DVC, so the state to resume from is deleted: %s", released)
    return result


def _cancelled(error: StageCancelled) -> State[Any]:
    """With its reason as the result: of a state without one Prefect makes None, which would pass for a stage that has run."""
    return Cancelled(message=str(error), data=error)


class _Board:
    """What waits, what runs, what has ended; ``start`` submits a step and must arrange that :attr:`ended` gets its name."""

    def __init__(self, steps: tuple[PlanStep, ...], slots: int) -> None:
        self.waiting = {step.name: step for step in steps}
        self.running: dict[str, PlanStep] = {}
        self.done: dict[str, StageResult] = {}
        self.failed: dict[str, BaseException] = {}
        self.skipped: list[str] = []
        self.ended: queue.Queue[str] = queue.Queue()
        self._slots = slots
        self._weight = {step.name: _downstream(step.name, steps) for step in steps}

    def startable(self) -> Iterator[PlanStep]:
        """Steps that may start now, those first that most others wait for: training before evaluation."""
        for step in sorted(self.waiting.values(), key=lambda step: -self._weight[step.name]):
            if len(self.running) >= self._slots:
                return
            if any(name in self.waiting or name in self.running for name in step.upstream):
                continue
            if step.meta.kind == "train" and any(other.meta.kind == "train" for other in self.running.values()):
                continue
            self.running[step.name] = self.waiting.pop(step.name)
            yield step

    def fail(self, name: str, error: BaseException) -> None:
        self.failed[name] = error
        lost = {name}
        # Steps are in topological order, so one pass finds all that depend on the failed one.
        for step in list(self.waiting.values()):
            if lost & set(step.upstream):
                lost.add(step.name)
                self.skipped.append(step.name)
                del self.waiting[step.name]


def _downstream(name: str, steps: tuple[PlanStep, ...]) -> int:
    reached = {name}
    for step in steps:
        if reached & set(step.upstream):
            reached.add(step.name)
    return len(reached) - 1


def _run_stages(root: Path, plan: Plan, env: dict[str, str], cancelled: threading.Event, watch: Watch | None = None) -> _Board:
    """Run every stage of the plan that must run; stages that do not depend on a failed one still run. ``watch`` notes what each locks."""
    board = _Board(plan.to_run, stage_slots())
    futures: dict[str, PrefectFuture[Any]] = {}

    def tell(name: str) -> Callable[[object], None]:
        return lambda _future: board.ended.put(name)

    try:
        while board.waiting or board.running:
            for step in board.startable():
                prepared = run_stage.with_options(
                    name=step.name,
                    task_run_name=step.name,
                    retries=step.meta.retries,
                    retry_delay_seconds=step.meta.retry_delay_s,
                    tags=[step.meta.kind],
                )
                before = [futures[name] for name in step.upstream if name in futures]
                future = prepared.submit(root, step, env, cancelled, wait_for=before, return_state=False)
                futures[step.name] = future
                future.add_done_callback(tell(step.name))
            name = board.ended.get()
            del board.running[name]
            outcome = futures[name].result(raise_on_failure=False)
            if isinstance(outcome, BaseException):
                board.fail(name, outcome)
            else:
                board.done[name] = outcome
                if watch is not None:
                    watch.note(name)
    except BaseException:
        cancelled.set()
        for name in board.running:
            # Ctrl-C may have come between a step's place on the board and its submission.
            if name in futures:
                futures[name].wait(timeout=_STAGE_END_S)
        raise
    return board


@contextmanager
def watching_for_cancel(cancelled: threading.Event) -> Iterator[None]:
    """Set ``cancelled`` when someone cancels this flow run on the server; no worker has to be near to deliver it."""
    run_id = flow_run.id
    stop = threading.Event()

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not stop.wait(CANCEL_POLL_S):
                try:
                    state = client.read_flow_run(run_id).state
                except Exception as error:  # the server may be away for a moment; the next look decides
                    _LOGGER.debug("cannot ask for cancellation: %s", error)
                    continue
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    cancelled.set()
                    return

    thread = threading.Thread(target=watch, name="cancel-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(CANCEL_POLL_S * 2)


@contextmanager
def _pipeline_run(root: Path, params: Params, run_name: str) -> Iterator[str]:
    """MLflow's parent run; it ends as KILLED when Prefect interrupts the flow."""
    try:
        with pipeline_run(params, root, {"pipeline_run": run_name}) as run:
            assert run.run_id is not None  # a flow has no ranks
            try:
                yield run.run_id
            except TerminationSignal as error:
                raise Terminated(143) from error
    except Terminated as error:
        raise error.__cause__ or error from None


@contextmanager
def exported(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@task(name="record", task_run_name="record", cache_policy=NO_CACHE, persist_result=False)
def record(root: Path, run_name: str) -> str:
    """Commit ``dvc.lock`` and ``params.yaml`` on a branch of this run, beside the work tree; returns the commit."""
    sha = record_commit(root, run_name)
    get_run_logger().info("dvc.lock is held by commit %s", sha[:12])
    return sha


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, persist_result=False, retries=1, retry_delay_seconds=2)
def register_versions(root: Path, mlflow_run: str, push: bool) -> RegisterReport:
    """Make every committed checkpoint a model version; the parent run keeps ``dvc.lock`` and ``params.yaml``.

    ``push``: hand DVC's run cache to the remote as well, so that other hosts need not run what this one did.
    """
    logger = get_run_logger()
    with exported(PARENT, mlflow_run), Session(root) as session:
        report = register(session)
        if push:
            new, notes = push_runs(session)
            logger.info("%d entries of the run cache are new in the remote", new)
            for note in notes:
                logger.warning("%s", note)
    registered.write(session, report)
    for line in as_text(register_table(report)).splitlines():
        logger.info(line)
    return report


@flow(
    name="vidbridge-pipeline",
    flow_run_name="pipeline {target}",
    task_runner=ThreadPoolTaskRunner(max_workers=32),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=False,
)
def pipeline(root: Path, target: str = reproduce.TARGET, push: bool = False) -> PipelineReport | State[Any]:
    """Bring ``target`` up to date and register what came of it. What the remote holds is fetched, not run.

    ``push``: hand DVC's run cache to the remote, with the outs.

    Ends as failed, with a :class:`FlowError`, when a stage failed for good: every stage that did not depend on it has run, and what
    was done stays done. So it ends, too, when someone changed ``params.yaml`` or ``dvc.lock`` meanwhile, or when checkpoints that the
    target needs could not be registered. Ends as cancelled when someone cancels it on the server.
    """
    root = Path(root)
    params = load_params(root / paths.PARAMS_FILE)
    run_name = stamped(params.recipe, str(flow_run.id)[:4])
    watch = Watch.start(root)
    cancelled = threading.Event()
    # From here on, not from the first stage on: what is fetched may take hours, and another host counts who gives no sign of life as lost.
    with at_work(), watching_for_cancel(cancelled):
        try:
            plan = bring(root, target, cancelled)
        except StageCancelled as error:
            return Cancelled(message=str(error))
        watch.note(*(step.name for step in plan.steps))
        create_table_artifact(key="plan", table=plan_table(plan), description=f"What `{target}` needs, and why it runs")
        with warmed(root, params, plan.to_warm) as environ, _pipeline_run(root, params, run_name) as mlflow_run:
            _link_tracking(mlflow_run)
            board = _run_stages(root, plan, {PARENT: mlflow_run, **environ}, cancelled, watch)
            if cancelled.is_set():
                return Cancelled(message="cancelled; every stage has been ended, the next run goes on from the last checkpoints")
            if board.failed and not board.done:
                return _failure(board)
            if changed := watch.changes(board.failed):
                return _failure(board, *changed, "so nothing was recorded or registered")
            commit = record(root, run_name)
            registration = register_versions(root, mlflow_run, push)
            _publish(root, params, board, registration)
            if board.failed:
                return _failure(board)
            if left := [reason for step in plan.steps if (reason := registration.unregistered.get(step.name))]:
                return _failure(board, *(f"not registered: {reason}" for reason in dict.fromkeys(left)))
    return PipelineReport(tuple(board.done.values()), run_name, mlflow_run, commit, registration)


def bring(root: Path, target: str, cancelled: threading.Event) -> Plan:
    """Fetch and check out what need not run; returns the plan of what is left.

    Raises:
        DvcError: the remote does not answer, and stages would run whose outputs it may hold.
        StageCancelled: ``cancelled`` was set.
    """
    plan = reproduce.plan(root, target)
    reproduce.insist_on_answer(plan)
    return reproduce.bring(root, plan, get_run_logger().info, cancelled)


def plan_table(plan: Plan) -> list[dict[str, str]]:
    return [{"stage": step.name, "state": step.state, "why": "; ".join(step.why)} for step in plan.steps]


def _failure(board: _Board, *reasons: str) -> State[Any]:
    """A state and not an exception: Prefect would print the traceback of every failed stage once more."""
    lines = [*(str(error) for error in board.failed.values()), *reasons]
    if board.skipped:
        lines.append(f"not run because of that: {', '.join(board.skipped)}")
    lines.append("what was done stays done; mend the cause and type: vidbridge run")
    message = "\n".join(lines)
    return Failed(message=message, data=FlowError(message))


def _link_tracking(mlflow_run: str) -> None:
    uri = tracking_uri()
    if is_server(uri):
        create_link_artifact(
            key="mlflow", link=f"{shown(uri).rstrip('/')}/#/runs/{mlflow_run}", description="The MLflow run of this pipeline run"
        )
    else:
        create_markdown_artifact(key="mlflow", markdown=f"MLflow run `{mlflow_run}`; `vidbridge ui` shows it.")


def _publish(root: Path, params: Params, board: _Board, registration: RegisterReport) -> None:
    rows = [{"stage": r.stage, "outcome": r.outcome, "seconds": round(r.seconds, 1)} for r in board.done.values()]
    rows += [{"stage": name, "outcome": "failed", "seconds": None} for name in board.failed]
    rows += [{"stage": name, "outcome": "skipped", "seconds": None} for name in board.skipped]
    create_table_artifact(key="stages", table=rows, description="What the stages of this run did")
    if scores := read_scores(root, params.evaluation.of):
        create_table_artifact(
            key="scores", table=[{"policy": name, **row} for name, row in scores.items()], description="Held-out scores"
        )
    create_markdown_artifact(key="registration", markdown=f"```\n{as_text(register_table(registration))}\n```")
    if (root / paths.REPORTS).is_dir():
        create_link_artifact(
            key="report", link=(root / paths.REPORTS).as_uri(), description="Metrics and plots of the summary stage"
        )
