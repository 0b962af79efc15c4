"""Runs that are killed, terminated, cancelled, or whose Prefect server stands still: how they end,
and what the next one finds."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.deployments import deploy
from flows.deployments.prefect_file import DeploymentRequest
from flows.processes import environment as project
from tests.support.projects import scheduled
from tests.support.projects.flow import knobs
from tests.support.projects.repository import commit

WAIT_S = 240


def until(happens: Callable[[], object], log: Path, wait_s: float = WAIT_S) -> Any:
    deadline = time.monotonic() + wait_s
    while not (found := happens()):
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
        time.sleep(0.2)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return scheduled.make(tmp_path / "project")


@pytest.fixture
def served(root: Path) -> Iterator[dict[str, str]]:
    with scheduled.serving(root) as (environment, _guard):
        yield environment


@contextmanager
def client_of(served: dict[str, str]) -> Iterator[Any]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    values = {PREFECT_API_URL: served["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: served["PREFECT_API_AUTH_STRING"]}
    with temporary_settings(values), get_client(sync_client=True) as client:
        yield client


def attempts(root: Path, name: str) -> int:
    file = root / ".vidbridge/attempts.txt"
    return file.read_text().split().count(name) if file.is_file() else 0


def mlflow_runs(root: Path) -> list[Any]:
    from stages.tracking.lineage.uri import experiment_name
    from stages.tracking.runs.store import open_client

    client = open_client(root)
    return list(client.search_runs([client.get_experiment_by_name(experiment_name()).experiment_id]))


def kill_tree(pid: int) -> None:
    """As power would: nothing is told to anybody. Guards are spared, as they would be: they end
    what they watch."""
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        if one.is_running() and "guard.py" not in " ".join(one.cmdline()):
            one.kill()


def test_sigterm_ends_a_run_with_143_every_stage_and_a_right_state_everywhere(
    root: Path, served: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    knobs(root, base={"seconds": 600})
    log = tmp_path / "run.log"
    process = scheduled.start(root, "run", "base", log=log, **served)
    request.addfinalizer(process.kill)
    until(lambda: attempts(root, "base"), log)
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(60) in (143, -signal.SIGTERM)
    said = log.read_text()
    assert "Traceback" not in said
    assert said.endswith("terminated; what this command had started has been ended\n")
    gone, alive = psutil.wait_procs(below, timeout=20)
    assert not alive, gone
    with client_of(served) as client:
        (run,) = [run for run in client.read_flow_runs() if run.name == "pipeline base"]
        stages = {one.name: one.state.type.value for one in client.read_task_runs() if one.flow_run_id == run.id}
    assert run.state.is_crashed(), run.state
    assert "termination signal" in run.state.message
    assert stages["base"] in ("CANCELLED", "CRASHED"), stages
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.defaults(root)["MLFLOW_TRACKING_URI"])
    assert [run.info.status for run in mlflow_runs(root)] == ["KILLED"]


def test_stages_of_a_cancelled_run_end_cancelled(
    root: Path, served: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from prefect.states import Cancelling

    knobs(root, base={"seconds": 600})
    log = tmp_path / "run.log"
    process = scheduled.start(root, "run", "base", log=log, **served)
    request.addfinalizer(process.kill)
    until(lambda: attempts(root, "base"), log)
    with client_of(served) as client:
        (run,) = [run for run in client.read_flow_runs() if run.name == "pipeline base"]
        client.set_flow_run_state(run.id, Cancelling())
        assert process.wait(60) == 130, log.read_text()
        assert client.read_flow_run(run.id).state.is_cancelled()

        def ended() -> dict[str, str]:
            found = {one.name: one.state.type.value for one in client.read_task_runs() if one.flow_run_id == run.id}
            return found if found.get("base") not in (None, "RUNNING", "PENDING") else {}

        assert until(ended, log, 30)["base"] == "CANCELLED"
    assert attempts(root, "base") == 1


def test_a_server_that_stands_still_for_a_minute_costs_a_minute(
    root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    knobs(root, corpus={"seconds": 3}, ingest={"seconds": 3})
    log = tmp_path / "run.log"
    with scheduled.serving(root) as (served, guard):
        process = scheduled.start(root, "run", "base", log=log, **served)
        request.addfinalizer(process.kill)
        until(lambda: attempts(root, "corpus"), log)
        stopped = psutil.Process(guard).children(recursive=True)
        for one in stopped:
            one.suspend()
        time.sleep(60)
        for one in stopped:
            one.resume()
        assert process.wait(WAIT_S) == 0, log.read_text()
        assert (attempts(root, "corpus"), attempts(root, "ingest"), attempts(root, "base")) == (1, 1, 1)
        with client_of(served) as client:
            (run,) = [run for run in client.read_flow_runs() if run.name == "pipeline base"]
            assert run.state.is_completed(), run.state


def test_after_kill_9_of_worker_and_flow_the_next_run_ends_what_was_lost_and_is_not_cancelled(
    root: Path, served: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    knobs(root, base={"seconds": 600})
    commit(root, "slow")
    for name, value in scheduled.environ(**served).items():
        monkeypatch.setenv(name, value)
    project.enter(root)
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(root))
    nightly = DeploymentRequest("main", "nightly")
    deploy.create(root, nightly, worker=True)

    def worker(log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            environment = {**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "2"}
            return subprocess.Popen(
                deploy.worker_command(nightly.pool), cwd=root, env=environment, stdout=out, stderr=out
            )

    def order(client: Any) -> Any:
        deployment = client.read_deployment_by_name("vidbridge-scheduled/nightly")
        return client.create_flow_run_from_deployment(deployment.id, parameters={"target": "base"})

    log = tmp_path / "worker.log"
    first = worker(log)
    request.addfinalizer(lambda: kill_tree(first.pid) if first.poll() is None else None)
    with client_of(served) as client:
        lost = order(client)
        until(lambda: any((root / ".vidbridge/scheduled").glob("**/attempts.txt")), log)
        clone = next((root / ".vidbridge/scheduled").glob("**/attempts.txt")).parents[1]
        until(lambda: attempts(clone, "base"), log)
        kill_tree(first.pid)
        first.wait()
        knobs(root, base={"seconds": 0})
        commit(root, "quick")
        second = worker(tmp_path / "worker-2.log")
        try:
            again = order(client)
            # The lost run's slot is taken until its lease at the server runs out, 5 minutes at
            # most; until then the new one waits, where nobody has ended the lost run as `vidbridge
            # deploy` does before it starts a worker.
            until(lambda: client.read_flow_run(again.id).state.is_final(), tmp_path / "worker-2.log", 500)
            state = client.read_flow_run(again.id).state
            runs = {run.id: run for run in client.read_flow_runs()}
            (subflow,) = [
                run
                for run in runs.values()
                if run.name == "pipeline base" and run.start_time < runs[again.id].start_time
            ]
        finally:
            kill_tree(second.pid)
            second.wait()
    assert state.is_completed(), (state, (tmp_path / "worker-2.log").read_text()[-3000:])
    assert runs[lost.id].state.is_crashed(), runs[lost.id].state
    assert subflow.state.is_crashed(), subflow.state
