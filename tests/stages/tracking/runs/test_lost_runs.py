"""Runs of several processes: two that begin together, and one that is terminated, killed, or on a
host that went silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run

from stages.params import Params
from stages.runtime.liveness import me
from stages.runtime.paths import DATABASE
from stages.tracking.lineage.uri import EXPERIMENT
from stages.tracking.runs.heartbeats import LOST_TAG, PROCESS_TAG, Sign, Watch
from stages.tracking.runs.run import _OthersRuns, pipeline_run
from stages.tracking.runs.store import open_client
from tests.support.checkout import ROOT
from tests.support.tracking.runs import status

WRITER = """
import sys, time
from pathlib import Path
from stages.params import load_params
from stages.tracking.runs.run import stage_run
with stage_run(sys.argv[1], load_params("params.yaml")) as run:
    print("open", flush=True)
    for step in range(200):
        run.log(step, {"a": step, "b": step})
        time.sleep(float(sys.argv[2]))
"""


def writer(project: Path, stage: str, sleep_s: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", WRITER, stage, str(sleep_s)]
    return subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_processes_may_create_the_store_together(project: Path) -> None:
    (project / DATABASE).unlink()
    both = [writer(project, stage, 0.001) for stage in ("base", "evaluate@base")]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert err == ""
        assert out == "open\n"
    client = open_client(project)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert [
        (run, name) for run in runs for name in "ab" if len(client.get_metric_history(run.info.run_id, name)) != 200
    ] == []


def test_sigterm_ends_the_run_as_killed(project: Path) -> None:
    process = writer(project, "base", 0.2)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    client = open_client(project)
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.info.status == "KILLED"


def test_a_run_whose_process_was_killed_is_ended_by_the_next_pipeline_run_and_a_living_one_is_not(
    project: Path, params: Params
) -> None:
    both = [writer(project, stage, 0.5) for stage in ("base", "summary")]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    both[0].kill()
    both[0].communicate()
    with pipeline_run(params, project):
        pass
    client = open_client(project)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert {
        run.data.tags["vidbridge.stage"]: run.info.status for run in runs if "vidbridge.stage" in run.data.tags
    } == {
        "base": "KILLED",
        "summary": "RUNNING",
    }
    both[1].terminate()
    both[1].communicate(timeout=60)
    # It ended after it was listed, and before it was to be ended as lost.
    living = next(run.info.run_id for run in runs if run.data.tags.get("vidbridge.stage") == "summary")
    client.set_terminated(living, "FINISHED")
    _OthersRuns(client, project).end(living)
    assert status(project, living) == "FINISHED"
    assert LOST_TAG not in client.get_run(living).data.tags


@pytest.mark.slow
def test_a_run_of_another_host_is_judged_by_its_sign_of_life(
    project: Path, params: Params, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("VIDBRIDGE_LOST_AFTER_S", "2")
    process = writer(project, "base", 0.5)
    request.addfinalizer(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    client = open_client(project)

    def found() -> Run:
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
        return client.search_runs([experiment], "tags.`vidbridge.stage` = 'base'", max_results=1)[0]

    # As if it were process 1 of another pod: it cannot be looked up from here.
    run_id = found().info.run_id
    client.set_tag(run_id, PROCESS_TAG, str(replace(me(), namespace="1", pid=1)))
    with pipeline_run(params, project):
        time.sleep(2.5)
    assert found().info.status == "RUNNING"
    process.send_signal(signal.SIGSTOP)
    for _ in range(4):  # no look is as long as the time that is waited for; they add up
        with pipeline_run(params, project):
            time.sleep(0.9)
    assert found().info.status == "KILLED"
    assert "no sign of life for 2 s while the store could be reached" in found().data.tags[LOST_TAG]
    # It was not lost: its machine had been asleep. It corrects its status itself.
    process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 10
    while (run := found()).info.status != "RUNNING" or LOST_TAG in run.data.tags:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert found().info.status == "KILLED"


def test_nothing_is_learned_of_a_run_while_the_store_is_away() -> None:
    watch = Watch(patience_s=300, every_s=15)
    for now_s in (0.0, 15.0, 30.0):
        assert watch.look({"run": Sign("7"), "other": Sign("1", note="1 280")}, now_s) == (
            ["other"] if now_s > 15 else []
        )
    # The store was down for an hour: neither the run nor this watcher could reach it.
    assert watch.look({"run": Sign("7")}, 3630.0) == []
    for step in range(1, 18):
        assert watch.look({"run": Sign("7")}, 3630.0 + 15 * step) == []
    assert watch.notes() == {"run": "7 285"}
    assert watch.look({"run": Sign("8")}, 3900.0) == []
    assert watch.notes() == {}
