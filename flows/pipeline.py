"""The training flow: DVC's graph decides what must run, Prefect orders and shows it, MLflow gets
one parent run for all of it.

Order of the stages: :mod:`flows.execution.scheduler`; their display in Prefect:
:mod:`flows.execution.prefect_runs`. When something interrupts the flow (Ctrl-C, SIGTERM, Prefect's
cancel), every stage is ended before the flow is; after a ``kill -9`` the guards do it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner

from flows.console.registry import register_table
from flows.console.show import as_text
from flows.content.remote import push_runs
from flows.errors import StageCancelled
from flows.execution.prefect_runs import failed_state, link_tracking, publish_plan, publish_results, watching_for_cancel
from flows.execution.scheduler import run_stages
from flows.processes.environment import exported
from flows.processes.lost import at_work
from flows.processes.warm_pool import warmed
from flows.repro import registered, reproduce
from flows.repro.plan import TARGET, make_plan
from flows.repro.reproduce import StageResult
from flows.repro.steps import Plan, verify_answer
from flows.repro.unchanged import Watch
from stages.errors import Terminated
from stages.params import Params, load_params
from stages.runtime import paths
from stages.tracking.lineage.commits import record_commit, stamped
from stages.tracking.lineage.uri import PARENT_VARIABLE
from stages.tracking.registry.register import RegisterReport, register
from stages.tracking.runs.run import pipeline_run
from stages.tracking.session import Session


@dataclass(frozen=True)
class PipelineReport:
    """Result of a run that ended well. ``commit`` holds its ``dvc.lock`` and ``params.yaml``, on a
    branch ``runs/<name>`` or below HEAD.
    """

    ran: tuple[StageResult, ...]
    name: str
    mlflow_run: str | None
    commit: str
    registration: RegisterReport


@contextmanager
def _pipeline_run(root: Path, params: Params, run_name: str) -> Iterator[str]:
    """Open MLflow's parent run; it ends as KILLED when Prefect interrupts the flow."""
    try:
        with pipeline_run(params, root, {"pipeline_run": run_name}) as run:
            assert run.run_id is not None  # a flow has no ranks
            try:
                yield run.run_id
            except TerminationSignal as error:
                raise Terminated(143) from error
    except Terminated as error:
        raise error.__cause__ or error from None


@task(name="record", task_run_name="record", cache_policy=NO_CACHE, persist_result=False)
def record(root: Path, run_name: str) -> str:
    """Commit ``dvc.lock`` and ``params.yaml`` on a branch of this run, beside the work tree;
    returns the commit.
    """
    sha = record_commit(root, run_name)
    get_run_logger().info("dvc.lock is held by commit %s", sha[:12])
    return sha


@task(
    name="register",
    task_run_name="register",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=2,
)
def register_versions(root: Path, mlflow_run: str, push: bool) -> RegisterReport:
    """Register every committed checkpoint as a model version; the parent run keeps ``dvc.lock`` and
    ``params.yaml``.

    ``push``: hand DVC's run cache to the remote as well, so that other hosts need not run what this
    one did.
    """
    logger = get_run_logger()
    with exported(PARENT_VARIABLE, mlflow_run), Session(root) as session:
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
def pipeline(root: Path, target: str = TARGET, push: bool = False) -> PipelineReport | State[Any]:
    """Bring ``target`` up to date and register its results. Fetches what the remote holds instead
    of running it.

    ``push``: hand DVC's run cache to the remote, with the outs.

    Ends as failed, with a :class:`FlowError`, when a stage failed for good: every stage that did
    not depend on it has run, and what was done stays done. So it ends, too, when someone changed
    ``params.yaml`` or ``dvc.lock`` meanwhile, or when checkpoints that the target needs could not
    be registered. Ends as cancelled when someone cancels it on the server.
    """
    root = Path(root)
    params = load_params(root / paths.PARAMS_FILE)
    run_name = stamped(params.recipe, str(flow_run.id)[:4])
    watch = Watch.start(root)
    cancelled = threading.Event()
    # From here on, not from the first stage on: what is fetched may take hours, and another host
    # counts who gives no sign of life as lost.
    with at_work(), watching_for_cancel(cancelled):
        try:
            plan = bring(root, target, cancelled)
        except StageCancelled as error:
            return Cancelled(message=str(error))
        watch.note(*(step.name for step in plan.steps))
        publish_plan(target, plan)
        with warmed(root, params, plan.to_warm) as environ, _pipeline_run(root, params, run_name) as mlflow_run:
            link_tracking(mlflow_run)
            board = run_stages(root, plan, {PARENT_VARIABLE: mlflow_run, **environ}, cancelled, watch)
            if cancelled.is_set():
                return Cancelled(
                    message="cancelled; every stage has been ended, the next run goes on from the last checkpoints"
                )
            if board.failed and not board.done:
                return failed_state(board)
            if changed := watch.changes(board.failed):
                return failed_state(board, *changed, "so nothing was recorded or registered")
            commit = record(root, run_name)
            registration = register_versions(root, mlflow_run, push)
            publish_results(root, params.evaluation.of, board, registration)
            if board.failed:
                return failed_state(board)
            if left := [reason for step in plan.steps if (reason := registration.unregistered.get(step.name))]:
                return failed_state(board, *(f"not registered: {reason}" for reason in dict.fromkeys(left)))
    return PipelineReport(tuple(board.done.values()), run_name, mlflow_run, commit, registration)


def bring(root: Path, target: str, cancelled: threading.Event) -> Plan:
    """Fetch and check out what need not run; returns the plan of the remaining stages.

    Raises:
        DvcError: the remote does not answer, and stages would run whose outputs it may hold.
        StageCancelled: ``cancelled`` was set.
    """
    plan = make_plan(root, target)
    verify_answer(plan)
    return reproduce.bring(root, plan, get_run_logger().info, cancelled)
