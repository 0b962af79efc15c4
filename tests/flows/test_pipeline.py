"""The flow on a real Prefect server, with real DVC stages and a real MLflow store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.processes import environment, prefect_server
from tests.support.checkout import ROOT
from tests.support.processes.commands import vidbridge
from tests.support.projects.flow import all_gone, children, knobs
from tests.support.projects.repository import git


@pytest.fixture(scope="session")
def reaching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment in which clients find one server with its schedules, and its key; one for all
    tests.
    """
    home = tmp_path_factory.mktemp("prefect")
    before = {name: os.environ.pop(name, None) for name in ("PREFECT_HOME", "PREFECT_API_URL")}
    os.environ["PREFECT_HOME"] = str(home)
    try:
        with prefect_server.serving(home, 0) as running:
            yield {"PREFECT_API_URL": running.url(), "PREFECT_API_AUTH_STRING": running.key}
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _client(reaching: dict[str, str]) -> Iterator[Any]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    values = {
        PREFECT_API_URL: reaching["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: reaching["PREFECT_API_AUTH_STRING"],
    }
    with temporary_settings(values), get_client(sync_client=True) as client:
        yield client


def start(root: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli.main", "run", *arguments]
    # A shell starts background jobs with SIGINT ignored, and children inherit that; at a terminal
    # it is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, cwd=root, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)


def lock(root: Path) -> Any:
    return yaml.safe_load((root / "dvc.lock").read_text())


def attempts(root: Path, name: str) -> int:
    return (root / ".vidbridge/attempts.txt").read_text().split().count(name)


def with_work_below(root: Path) -> list[int]:
    """Ids of all processes that work inside the project."""
    found = []
    for process in psutil.process_iter(["pid", "cwd"]):
        if process.info["pid"] != os.getpid() and str(process.info["cwd"] or "").startswith(str(root)):
            found.append(process.info["pid"])
    return found


def versions(root: Path) -> list[tuple[str, int]]:
    from mlflow.tracking import MlflowClient

    uri = environment.defaults(root)["MLFLOW_TRACKING_URI"]
    found = MlflowClient(tracking_uri=uri, registry_uri=uri).search_model_versions()
    return sorted((version.tags["vidbridge.stage"], int(version.tags["vidbridge.step"])) for version in found)


def test_a_run_from_scratch_equals_dvc_repro_and_registers_and_promotes(
    project: Path, done_template: Path, reaching: dict[str, str]
) -> None:
    shown = vidbridge("run", cwd=project, **reaching)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert lock(project) == lock(done_template)
    assert "general done" in shown.stdout + shown.stderr  # the live log
    assert "held-out scores" in shown.stdout
    controls = shown.stdout.partition("without looking")[2]
    assert re.search(r"bridge +│ +0\.700 +│ +0\.100 +│ +0\.300", controls), "its video, a black one, a shuffled one"
    assert versions(project) == [("base", 3), ("grpo@bridge", 3), ("grpo@general", 3), ("sft@cold-start", 3)]
    promoted = vidbridge("promote", cwd=project, **reaching)
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    assert "is champion" in promoted.stdout
    (decided,) = json.loads(vidbridge("history", "--json", cwd=project).stdout)
    assert (decided["action"], decided["author"], decided["done"]) == ("promote", "tester <tester@localhost>", True)
    _check_artifacts(reaching)
    (artefact,) = _artifacts_of(reaching, "vidbridge-promotion")
    assert artefact.data == decided["verdict"]
    with _client(reaching) as client:
        # With its process, else nobody could end it when that is lost.
        tags = client.read_flow_run(artefact.flow_run_id).tags
        assert any(tag.startswith("process:") for tag in tags), tags


def _artifacts_of(reaching: dict[str, str], flow: str) -> list[Any]:
    """Artifacts of a flow's runs on Prefect's pages."""
    with _client(reaching) as client:
        flows = {one.id for one in client.read_flows() if one.name == flow}
        runs = {run.id for run in client.read_flow_runs() if run.flow_id in flows}
        return [one for one in client.read_artifacts() if one.flow_run_id in runs]


def _check_artifacts(reaching: dict[str, str]) -> None:
    with _client(reaching) as client:
        (run,) = [run for run in client.read_flow_runs() if run.name == "pipeline summary"]
        artifacts = {one.key: one for one in client.read_artifacts() if one.flow_run_id == run.id}
        tasks = {one.name: one for one in client.read_task_runs() if one.flow_run_id == run.id}
    assert set(artifacts) >= {"plan", "stages", "scores", "registration", "report", "mlflow"}
    rows = json.loads(str(artifacts["scores"].data))
    assert {row["policy"] for row in rows} == {"random", "constant", "base", "cold-start", "bridge", "general"}
    assert set(tasks) >= {"corpus", "sft@cold-start", "grpo@bridge", "evaluate@general", "record", "register"}
    # evaluation runs beside the next training stage
    beside, trained = tasks["evaluate@bridge"], tasks["grpo@bridge"]
    assert beside.start_time is not None
    assert trained.end_time is not None
    assert beside.start_time >= trained.end_time
    assert [one for one in tasks.values() if not (one.state is not None and one.state.is_completed())] == []


def test_a_failing_stage_is_tried_again_and_what_does_not_need_it_still_runs(
    done: Path, reaching: dict[str, str]
) -> None:
    (done / "learning.py").write_text("rate = 2\n")
    knobs(done, bridge={"failures": 99})
    before = attempts(done, "bridge")
    shown = vidbridge("run", cwd=done, **reaching)
    assert shown.returncode == 1
    assert attempts(done, "bridge") - before == 2
    assert "error: stage grpo@bridge failed with exit status 1" in shown.stderr
    assert "not run because of that: evaluate@bridge, grpo@general" in shown.stderr
    # The next run goes on, and a failure that passes is got over.
    knobs(done, bridge={"failures": before + 3})
    shown = vidbridge("run", "grpo@bridge", cwd=done, **reaching)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert attempts(done, "bridge") - before == 4
    assert "held-out scores" not in shown.stdout, "those that lie there are of another policy"


@pytest.mark.slow
def test_a_stage_that_wants_a_person_is_not_tried_again(done: Path, reaching: dict[str, str]) -> None:
    (done / "learning.py").write_text("rate = 3\n")
    knobs(done, bridge={"failures": 99, "status": 2})
    before = attempts(done, "bridge")
    assert vidbridge("run", "grpo@bridge", cwd=done, **reaching).returncode == 1
    assert attempts(done, "bridge") - before == 1


def _interrupted(done: Path, how: signal.Signals, **env: str) -> tuple[subprocess.Popen[str], list[int]]:
    (done / "learning.py").write_text(f"rate = '{how.name}'\n")
    knobs(done, bridge={"seconds": 600, "children": 2})
    process = start(done, **env)
    pids = children(done, 2, 60) + with_work_below(done)
    process.send_signal(how)
    return process, pids


@pytest.mark.slow
def test_after_kill_9_of_the_flow_no_process_is_left_and_the_next_run_goes_on(done: Path) -> None:
    # With a server of its own: that must go, too.
    process, pids = _interrupted(done, signal.SIGKILL)
    process.communicate()
    assert len(pids) > 5
    assert all_gone(pids)
    assert with_work_below(done) == []
    knobs(done)
    shown = vidbridge("run", "grpo@bridge", cwd=done)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    # What was killed does not stay "running" for ever on the pages of Prefect.
    with contextlib.closing(sqlite3.connect(done / ".vidbridge/prefect/prefect.db")) as database:
        ended = [state for (state,) in database.execute("select state_type from flow_run order by start_time")]
    assert ended[-2:] == ["CRASHED", "COMPLETED"]


def test_ctrl_c_ends_everything_at_once(done: Path, reaching: dict[str, str]) -> None:
    before = attempts(done, "bridge")
    process, pids = _interrupted(done, signal.SIGINT, **reaching)
    said, _ = process.communicate(timeout=40)
    assert process.returncode == 130, said
    assert all_gone(pids, 2)
    assert "Go on where it stopped: vidbridge run" in said
    assert attempts(done, "bridge") - before == 1


@pytest.mark.slow
def test_cancelled_in_prefect_the_stage_ends_and_is_not_tried_again(done: Path, reaching: dict[str, str]) -> None:
    from prefect.states import Cancelling

    before = attempts(done, "bridge")
    process, pids = _interrupted(done, signal.SIGCONT, **reaching)
    with _client(reaching) as client:
        (run,) = [run for run in client.read_flow_runs() if run.state is not None and run.state.is_running()]
        client.set_flow_run_state(run.id, Cancelling())
        started = time.monotonic()
        said, _ = process.communicate(timeout=40)
        assert time.monotonic() - started < 20
        final = client.read_flow_run(run.id).state
    assert process.returncode == 130, said
    assert final is not None
    assert final.is_cancelled()
    assert all_gone(pids, 2)
    assert attempts(done, "bridge") - before == 1


@pytest.mark.slow
def test_a_cron_deployment_fires_by_itself_notices_a_clip_and_reports(
    done: Path, tmp_path: Path, reaching: dict[str, str]
) -> None:
    from flows.deployments import deploy
    from flows.deployments.prefect_file import DeploymentRequest
    from flows.processes.stream import guarded

    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "annotations.jsonl").write_text("{}\n")
    params = (done / "params.yaml").read_text()
    assert "judge: {kind: rule," in params
    (done / "params.yaml").write_text(params.replace("judge: {kind: rule,", "judge: {kind: rule_on_real_text,"))
    (done / "infra").mkdir()
    for name in ("prefect.yaml", "work-pool.json"):
        shutil.copy(ROOT / "infra" / name, done / "infra" / name)
    git(done, "add", "-A")
    git(done, "commit", "-qm", "a lock")
    environment.enter(done)
    os.environ.update(reaching)
    os.environ["PREFECT_WORKER_QUERY_SECONDS"] = "2"
    deploy.create(done, DeploymentRequest("main", "nightly", cron="* * * * *", source=str(videos)))
    seen: list[Any] = []
    with (
        (tmp_path / "worker.log").open("wb") as log,
        guarded(deploy.worker_command(), done, os.environ, log),
        _client(reaching) as client,
    ):
        deadline = time.monotonic() + 240
        while len(seen) < 2 and time.monotonic() < deadline:
            time.sleep(1)
            runs = [run for run in client.read_flow_runs() if run.deployment_id and run.state and run.state.is_final()]
            seen = sorted(
                (run for run in runs if not run.state.is_cancelled()), key=lambda run: run.expected_start_time
            )
        artifacts = [str(one.data) for one in client.read_artifacts() if one.key in ("scheduled", "verdict")]
    assert [run.state.is_completed() for run in seen] == [True, True], (tmp_path / "worker.log").read_text()
    assert all(run.auto_scheduled for run in seen)
    first, second = seen
    assert "stages" in str(first.state.message)
    assert second.state.name == "NothingNew"
    assert any(": champion\n" in text for text in artifacts)
    (branch,) = [name for name in git(done, "branch", "--format=%(refname:short)").split() if name.startswith("runs/")]
    assert str(videos) in git(done, "show", f"{branch}:params.yaml")
    assert str(videos) in git(done, "show", f"{branch}:dvc.lock")
    # The person's own work tree was not touched.
    assert git(done, "status", "--porcelain") == ""


def test_a_run_that_ended_by_itself_is_not_ended_as_lost(reaching: dict[str, str]) -> None:
    from prefect import flow
    from prefect.states import Completed, Running

    from flows.processes.lost import _OthersRuns

    @flow(name="ends-by-itself")
    def one() -> None: ...

    with _client(reaching) as client:
        ended, at_work = (client.create_flow_run(one, state=state).id for state in (Completed(), Running()))
        for run in (ended, at_work):
            _OthersRuns(client).end(str(run))
        assert [client.read_flow_run(run).state_type.value for run in (ended, at_work)] == ["COMPLETED", "CRASHED"]


@pytest.mark.slow
def test_a_unit_of_a_grid_that_failed_is_told_from_one_that_ran(reaching: dict[str, str]) -> None:
    from prefect import flow, task
    from prefect.client.schemas.objects import State
    from prefect.states import Cancelled, Failed

    from flows.ablation.flow import _outcome
    from flows.ablation.schedule import Unit
    from flows.errors import FlowError, StageCancelled

    @task(persist_result=False)
    def unit(how: str) -> int | State[Any]:
        if how == "failed":
            return Failed(message="of the unit", data=FlowError("unit", "of the unit", ""))
        if how == "cancelled":
            return Cancelled(message="by hand", data=StageCancelled("unit", "by hand", ""))
        if how == "defect":
            raise ZeroDivisionError
        return 2

    @flow(persist_result=False)
    def grid() -> dict[str, Any]:
        futures = {how: unit.submit(how) for how in ("ran", "failed", "cancelled", "defect")}
        for future in futures.values():
            future.wait()
        return {how: _outcome(Unit(1, "variant", how), future.state) for how, future in futures.items()}

    with _client(reaching):
        found = grid()
    assert found["ran"] == 2
    assert {how: type(found[how]) for how in found if how != "ran"} == {
        "failed": FlowError,
        "cancelled": StageCancelled,
        "defect": ZeroDivisionError,
    }
