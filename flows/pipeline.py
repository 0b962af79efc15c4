"""The training flow: DVC's graph decides what must run, Prefect orders and shows it, MLflow gets one parent run for all of it.

A stage is submitted when what it depends on has ended and a slot is free, so that ``evaluate@bridge`` runs beside ``grpo@general``.
Training stages exclude each other. When something interrupts the flow (Ctrl-C, SIGTERM, Prefect's cancel), every stage is ended before
the flow is; after a ``kill -9`` the guards do it.
"""

from __future__ import annotations

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
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows import dvc
from flows.dvc import Plan, PlanStep, StageResult
from flows.errors import FlowError, StageCancelled, StageFailed, UsageError
from flows.results import read_scores
from stages import layout
from stages.params import load_params

#: How often the flow asks the server whether someone cancelled it.
CANCEL_POLL_S = 2.0
#: Exit status of a stage that wants a person, not another attempt.
USAGE_STATUS = 2
_STAGE_END_S = 20.0


@dataclass(frozen=True)
class PipelineReport:
    """What a run did. ``failed`` names stages that failed, ``skipped`` those that waited for them."""

    ran: tuple[StageResult, ...]
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    mlflow_run: str | None
    registration: str


def stage_slots() -> int:
    """``VIDBRIDGE_STAGE_SLOTS``: how many stages run side by side (2: one trains, one evaluates)."""
    text = os.environ.get("VIDBRIDGE_STAGE_SLOTS", "2")
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"VIDBRIDGE_STAGE_SLOTS: {text!r} is no number of stages; set 1 or more")
    return int(text)


def _try_again(_task: object, _run: object, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    if isinstance(error, StageCancelled):
        return False
    return not (isinstance(error, StageFailed) and error.exit_code == USAGE_STATUS)


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_try_again)
def run_stage(root: Path, step: PlanStep, env: dict[str, str], cancelled: threading.Event) -> StageResult:
    """One DVC stage; every line it prints goes into the log of this task's run."""
    if cancelled.is_set():
        raise StageCancelled(f"stage {step.name} was cancelled before it started")
    logger = get_run_logger()
    return dvc.reproduce(root, step.name, logger.info, env, timeout_s=step.meta.timeout_s, cancelled=cancelled)


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


def _run_stages(root: Path, plan: Plan, env: dict[str, str], cancelled: threading.Event) -> _Board:
    """Run every stage of the plan that must run; stages that do not depend on a failed one still run."""
    board = _Board(plan.to_run, stage_slots())
    futures: dict[str, PrefectFuture[StageResult]] = {}

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
                future = prepared.submit(root, step, env, cancelled, wait_for=before)
                futures[step.name] = future
                future.add_done_callback(tell(step.name))
            name = board.ended.get()
            del board.running[name]
            outcome = futures[name].state.result(raise_on_failure=False)
            if isinstance(outcome, BaseException):
                board.fail(name, outcome)
            else:
                board.done[name] = outcome
    except BaseException:
        cancelled.set()
        for name in board.running:
            futures[name].wait(timeout=_STAGE_END_S)
        raise
    return board


@contextmanager
def _watching_for_cancel(cancelled: threading.Event) -> Iterator[None]:
    """Set ``cancelled`` when someone cancels this flow run on the server; no worker has to be near to deliver it."""
    run_id = flow_run.id
    stop = threading.Event()

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not stop.wait(CANCEL_POLL_S):
                try:
                    state = client.read_flow_run(run_id).state
                except Exception as error:  # the server may be away for a moment; the next look decides
                    get_logger_of_module().debug("cannot ask for cancellation: %s", error)
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
def _pipeline_run(root: Path, run_name: str) -> Iterator[str | None]:
    """MLflow's parent run; it ends as KILLED when Prefect interrupts the flow."""
    from stages.tracking.runs import Terminated, pipeline_run

    try:
        with pipeline_run(load_params(root / "params.yaml"), root, {"flow_run": run_name}) as run:
            try:
                yield run.run_id
            except TerminationSignal as error:
                raise Terminated(143) from error
    except Terminated as error:
        raise error.__cause__ or error from None


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, persist_result=False, retries=1, retry_delay_seconds=2)
def register_versions(root: Path) -> str:
    """Make every committed checkpoint a model version; says what it did."""
    from stages.tracking.registry import register

    report = str(register(root))
    logger = get_run_logger()
    for line in report.splitlines():
        logger.info(line)
    return report


@flow(
    name="vidbridge-pipeline",
    flow_run_name="{target}",
    task_runner=ThreadPoolTaskRunner(max_workers=32),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=False,
)
def pipeline(root: Path, target: str = dvc.TARGET) -> PipelineReport | State[Any]:
    """Bring ``target`` up to date and register what came of it.

    Raises:
        FlowError: a stage failed for good; every stage that did not depend on it has run, and what was done stays done.
    """
    root = Path(root)
    logger = get_run_logger()
    restored = dvc.plan(root, target)
    if restored.to_restore:
        dvc.restore(root, restored.to_restore)
    plan = dvc.plan(root, target)
    create_table_artifact(key="plan", table=plan_table(plan), description=f"What `{target}` needs, and why it runs")
    cancelled = threading.Event()
    with _watching_for_cancel(cancelled), _pipeline_run(root, str(flow_run.name)) as mlflow_run:
        env = {"VIDBRIDGE_PIPELINE_RUN": mlflow_run} if mlflow_run else {}
        _link_tracking(mlflow_run)
        board = _run_stages(root, plan, env, cancelled)
        if cancelled.is_set():
            return Cancelled(message="cancelled; every stage has been ended, the next run goes on from the last checkpoints")
        report = register_versions(root) if board.done or not board.failed else "nothing was registered"
        _publish(root, board, report)
        if board.failed:
            raise FlowError(_failure(board))
    logger.info("%d stages ran, %d up to date", len(board.done), len(plan.steps) - len(plan.to_run))
    return PipelineReport(tuple(board.done.values()), tuple(board.failed), tuple(board.skipped), mlflow_run, report)


def plan_table(plan: Plan) -> list[dict[str, str]]:
    return [{"stage": step.name, "state": step.state, "why": "; ".join(step.why)} for step in plan.steps]


def _failure(board: _Board) -> str:
    lines = [str(error) for error in board.failed.values()]
    if board.skipped:
        lines.append(f"not run because of that: {', '.join(board.skipped)}")
    lines.append("what was done stays done; mend the cause and type: vidbridge run")
    return "\n".join(lines)


def _link_tracking(mlflow_run: str | None) -> None:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if mlflow_run and uri.startswith(("http://", "https://")):
        create_link_artifact(key="mlflow", link=f"{uri.rstrip('/')}/#/runs/{mlflow_run}", description="The MLflow run of this pipeline run")
    elif mlflow_run:
        create_markdown_artifact(key="mlflow", markdown=f"MLflow run `{mlflow_run}`; `vidbridge ui` shows it.")


def _publish(root: Path, board: _Board, registration: str) -> None:
    rows = [{"stage": r.stage, "outcome": r.outcome, "seconds": round(r.seconds, 1)} for r in board.done.values()]
    rows += [{"stage": name, "outcome": "failed", "seconds": None} for name in board.failed]
    rows += [{"stage": name, "outcome": "skipped", "seconds": None} for name in board.skipped]
    create_table_artifact(key="stages", table=rows, description="What the stages of this run did")
    if scores := read_scores(root):
        create_table_artifact(key="scores", table=[{"policy": name, **row} for name, row in scores.items()], description="Held-out scores")
    create_markdown_artifact(key="registration", markdown=f"```\n{registration}\n```")
    if (root / layout.REPORTS).is_dir():
        create_link_artifact(key="report", link=(root / layout.REPORTS).as_uri(), description="Metrics and plots of the summary stage")
