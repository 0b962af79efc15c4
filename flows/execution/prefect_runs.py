"""Display of runs in Prefect: their artifacts, the states they end in, and cancellation on its
server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.console.registry import register_table
from flows.console.results import read_scores
from flows.console.show import as_text
from flows.errors import RunFailed
from flows.execution.scheduler import Board
from flows.repro.steps import Plan
from stages.runtime import paths
from stages.tracking.lineage.uri import display_uri, is_server, tracking_uri
from stages.tracking.registry.register import RegisterReport

#: Seconds between queries whether someone cancelled the flow.
CANCEL_POLL_S = 2.0
_LOGGER = logging.getLogger(__name__)


@contextmanager
def watching_for_cancel(cancelled: threading.Event) -> Iterator[None]:
    """Set ``cancelled`` when someone cancels this flow run on the server; needs no worker nearby to
    deliver it.
    """
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


def publish_plan(target: str, plan: Plan) -> None:
    """Publish the plan beside the run, as a table."""
    rows = [{"stage": step.name, "state": step.state, "why": "; ".join(step.why)} for step in plan.steps]
    create_table_artifact(key="plan", table=rows, description=f"What `{target}` needs, and why it runs")


def link_tracking(mlflow_run: str) -> None:
    """Link the run to its parent run in MLflow."""
    uri = tracking_uri()
    if is_server(uri):
        create_link_artifact(
            key="mlflow",
            link=f"{display_uri(uri).rstrip('/')}/#/runs/{mlflow_run}",
            description="The MLflow run of this pipeline run",
        )
    else:
        create_markdown_artifact(key="mlflow", markdown=f"MLflow run `{mlflow_run}`; `vidbridge ui` shows it.")


def publish_results(root: Path, policies: Sequence[str], board: Board, registration: RegisterReport) -> None:
    """Publish the outcome of each stage, the scores and the registered versions beside the run."""
    rows = [{"stage": r.stage, "outcome": r.outcome, "seconds": round(r.seconds, 1)} for r in board.done.values()]
    rows += [{"stage": name, "outcome": "failed", "seconds": None} for name in board.failed]
    rows += [{"stage": name, "outcome": "skipped", "seconds": None} for name in board.skipped]
    create_table_artifact(key="stages", table=rows, description="What the stages of this run did")
    if scores := read_scores(root, policies):
        create_table_artifact(
            key="scores", table=[{"policy": name, **row} for name, row in scores.items()], description="Held-out scores"
        )
    create_markdown_artifact(key="registration", markdown=f"```\n{as_text(register_table(registration))}\n```")
    if (root / paths.REPORTS).is_dir():
        create_link_artifact(
            key="report", link=(root / paths.REPORTS).as_uri(), description="Metrics and plots of the summary stage"
        )


def failed_state(board: Board, *reasons: str) -> State[Any]:
    """Build a failed state, with a :class:`RunFailed` that names the failed stages. An exception
    would make Prefect print the traceback of every failed stage once more.
    """
    lines = [*(str(error) for error in board.failed.values()), *reasons]
    if board.skipped:
        lines.append(f"not run because of that: {', '.join(board.skipped)}")
    error = RunFailed(lines, "what was done stays done; mend the cause and type: vidbridge run")
    return Failed(message=str(error), data=error)
