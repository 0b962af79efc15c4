"""Runs: what a stage says while it works, how it ends, and what happens when the store is new, busy, down, or dies."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from mlflow.entities import Run

from stages.domain.core.records import Checkpoint
from stages.params import Params, load_params
from stages.runtime.liveness import me
from stages.runtime.machine import gpus_in_use
from stages.tracking.lineage import uri
from stages.tracking.lineage.uri import (
    DATABASE,
    EXPERIMENT,
    RUN_FILES,
    NoAnswer,
    TrackingError,
    check_server,
    patiently,
    project_root,
    shown,
    tracking_uri,
)
from stages.tracking.registry.register import register
from stages.tracking.runs.heartbeats import LOST_TAG, PROCESS_TAG, Sign, Watch
from stages.tracking.runs.outbox import UNSENT, send_unsent
from stages.tracking.runs.run import TAG, _OthersRuns, pipeline_run, process_cost, stage_run
from stages.tracking.runs.store import open_client
from tests.support.checkout import ROOT


@pytest.fixture
def params(project: Path) -> Params:
    return load_params(project / "params.yaml")


def status(project: Path, run_id: str | None) -> str:
    assert run_id is not None
    return str(open_client(project).get_run(run_id).info.status)


def logged(run: Run) -> dict[str, float]:
    """The metrics of a run, less what its process cost."""
    return {name: value for name, value in run.data.metrics.items() if not name.startswith("process/")}


def test_a_run_says_what_it_is_made_of(project: Path, params: Params) -> None:
    with stage_run("grpo@bridge", params) as run:
        run.log(1, {"reward": 0.25, "loss/kl": 1.0})
        run.log(2, {"reward": 0.5})
        run.summary({"final/reward": 0.5})
    found = open_client(project).get_run(run.run_id or "")
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "grpo@bridge"
    assert logged(found) == {"reward": 0.5, "loss/kl": 1.0, "final/reward": 0.5}
    assert found.data.metrics["process/cpu_s"] > 0
    assert found.data.metrics["process/peak_gb"] > 0
    assert found.data.metrics["process/gpu_h"] == 0, "nothing here has worked on a GPU"
    assert [(point.step, point.value) for point in open_client(project).get_metric_history(run.run_id or "", "reward")] == [
        (1, 0.25),
        (2, 0.5),
    ]
    tags = {name.removeprefix(TAG): value for name, value in found.data.tags.items() if name.startswith(TAG)}
    assert (tags["kind"], tags["stage"], tags["recipe"], tags["git_dirty"]) == ("stage", "grpo@bridge", "tiny", "false")
    assert json.loads(tags["versions"])["mlflow"] == version("mlflow")
    assert set(json.loads(tags["machine"])) == {"system", "processor", "cores", "memory"}
    assert set(json.loads(tags["data"])) == {"data/samples", "models/cold-start/final", "rates.json"}
    # Only what the stage uses, by DVC's own account.
    assert found.data.params["grpo.bridge.learning_rate"] == str(params.grpo["bridge"].learning_rate)
    assert not any(name.startswith(("sft", "corpus")) for name in found.data.params)
    assert "mlflow.parentRunId" not in found.data.tags


def test_every_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine of this suite has a GPU: the library that would know of one is stood in for."""
    cuda = SimpleNamespace(is_initialized=lambda: True, get_device_name=lambda: "H200")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert gpus_in_use() == ["H200"] * 4
    cost = process_cost()
    assert cost["process/gpu_h"] == pytest.approx(4 * cost["process/wall_s"] / 3600)
    cuda.is_initialized = lambda: False
    assert gpus_in_use() == []
    assert process_cost()["process/gpu_h"] == 0


def test_the_stage_digest_is_that_of_the_lock_and_follows_parameters(project: Path, params: Params) -> None:
    with stage_run("grpo@bridge", params) as run:
        pass
    assert [version.run_id for version in register(project).created if version.stage == "grpo@bridge"] == [run.run_id] * 2
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"learning_rate: \S+", "learning_rate: 3.0e-4", text))
    with stage_run("grpo@bridge", load_params(project / "params.yaml")) as changed:
        pass
    assert changed.tags[TAG + "stage_digest"] != run.tags[TAG + "stage_digest"]


def test_a_stage_is_the_child_of_the_pipelines_run(project: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    with pipeline_run(params, tags={"trigger": "schedule"}) as parent:
        monkeypatch.setenv("VIDBRIDGE_PIPELINE_RUN", parent.run_id or "")
        with stage_run("base", params) as child:
            pass
    client = open_client(project)
    assert client.get_run(child.run_id or "").data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(parent.run_id or "").data.tags[TAG + "trigger"] == "schedule"
    assert status(project, parent.run_id) == status(project, child.run_id) == "FINISHED"


@pytest.mark.parametrize(("raised", "expected"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FAILED")])
def test_how_a_stage_ended_is_seen(project: Path, params: Params, raised: type[BaseException], expected: str) -> None:
    with pytest.raises(raised), stage_run("base", params) as run:  # noqa: PT012
        run.log(1, {"loss": 1.0})
        raise raised
    assert status(project, run.run_id) == expected
    assert logged(open_client(project).get_run(run.run_id or "")) == {"loss": 1.0}


def test_a_checkpoint_is_there_at_once(project: Path, params: Params) -> None:
    with stage_run("grpo@bridge", params) as run:
        checkpoint = Checkpoint(stage="grpo@bridge", step=25, path="checkpoint-25", final=False, metrics={"reward": 0.5})
        run.log(25, {"loss": 0.1})
        run.checkpoint(checkpoint, project / "models/bridge/checkpoint-5")
        found = open_client(project).get_run(run.run_id or "")
        # Without waiting for the next batch (2 s).
        deadline = time.monotonic() + 1.5
        while f"{TAG}checkpoint.00000025" not in found.data.tags:
            assert time.monotonic() < deadline
            found = open_client(project).get_run(run.run_id or "")
    row = json.loads(found.data.tags[f"{TAG}checkpoint.00000025"])
    assert row == {"step": 25, "path": "checkpoint-25", "final": False, "location": str(project / "models/bridge/checkpoint-5")}
    assert found.data.metrics == {"loss": 0.1, "checkpoint/reward": 0.5}
    assert found.info.status == "RUNNING"


def test_a_page_is_among_the_files_of_its_run(project: Path, params: Params) -> None:
    with stage_run("grpo@bridge", params) as run:
        run.page("rollouts/step-00000025.html", "<p>Größe ✓</p>")
        assert run.flush()
        client, run_id = open_client(project), run.run_id or ""
        assert [file.path for file in client.list_artifacts(run_id, "rollouts")] == ["rollouts/step-00000025.html"]
        assert (
            Path(client.download_artifacts(run_id, "rollouts/step-00000025.html")).read_text(encoding="utf-8") == "<p>Größe ✓</p>"
        )


def test_where_no_file_can_be_put_metrics_are_kept_and_the_stage_ends_well(
    project: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage_run("grpo@bridge", params) as run:
        run_id = run.run_id or ""
        in_the_way = project / RUN_FILES / run_id
        in_the_way.parent.mkdir(parents=True, exist_ok=True)
        in_the_way.write_text("a file where the folder should be")
        run.page("rollouts/step-00000025.html", "<p>seen</p>")
        run.log(25, {"reward": 0.5})
    client = open_client(project)
    assert status(project, run_id) == "FINISHED"
    assert logged(client.get_run(run_id)) == {"reward": 0.5}
    said = capsys.readouterr().err
    assert "artifact rollouts/step-00000025.html: " in said
    assert f"1 entries of run {run_id} could not be sent" in said
    with pytest.raises(TrackingError, match=r"artifact rollouts/step-00000025.html: .*run vidbridge register again"):
        register(project)
    in_the_way.unlink()
    assert register(project).unsent == 1
    assert Path(client.download_artifacts(run_id, "rollouts/step-00000025.html")).read_text() == "<p>seen</p>"


def test_what_can_never_be_sent_holds_up_nothing(project: Path, params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    client = open_client(project)
    runs = []
    for _ in range(2):
        with stage_run("base", params) as run:
            runs.append(run.run_id or "")
    client.delete_run(runs[0])
    folder = project / UNSENT
    folder.mkdir(parents=True, exist_ok=True)
    tag = json.dumps(["tag", "late", "yes"]) + "\n"
    page = json.dumps(["text", "page.html", "<p></p>"]) + "\n"
    poisoned = {runs[0]: tag, "0" * 32: page, "1" * 32: tag, "2" * 32: tag + '["metric", "rew', "3" * 32: '["metric", 1]\n'}
    for name, text in poisoned.items() | {(runs[1], tag)}:
        (folder / f"{name}.jsonl").write_text(text)
    assert send_unsent(client, project) == 1
    assert client.get_run(runs[1]).data.tags["late"] == "yes"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.jsonl.refused" for name in poisoned)
    assert capsys.readouterr().err.count("can never be sent") == len(poisoned)


def test_patience_begins_with_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uri, "_PAUSE_S", 0.01)
    calls = []

    def ask() -> str:
        calls.append(time.monotonic())
        if len(calls) == 1:
            time.sleep(0.2)
            raise NoAnswer("away")
        return "there"

    assert patiently(ask, 0.1, lambda error: isinstance(error, NoAnswer)) == "there"


def test_only_the_first_rank_writes(project: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with stage_run("base", params) as run:
        run.log(1, {"loss": 1.0})
        run.checkpoint(Checkpoint(stage="base", step=0, path="final", final=True), project)
        run.page("page.html", "<p></p>")
    assert run.run_id is None
    assert open_client(project).get_experiment_by_name(EXPERIMENT) is None


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
    return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
    assert all(len(client.get_metric_history(run.info.run_id, name)) == 200 for run in runs for name in "ab")


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
    assert {run.data.tags["vidbridge.stage"]: run.info.status for run in runs if "vidbridge.stage" in run.data.tags} == {
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
    # It was not lost: its machine had been asleep. It says so itself.
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
        assert watch.look({"run": Sign("7"), "other": Sign("1", note="1 280")}, now_s) == (["other"] if now_s > 15 else [])
    # The store was down for an hour: neither the run nor this watcher could reach it.
    assert watch.look({"run": Sign("7")}, 3630.0) == []
    for step in range(1, 18):
        assert watch.look({"run": Sign("7")}, 3630.0 + 15 * step) == []
    assert watch.notes() == {"run": "7 285"}
    assert watch.look({"run": Sign("8")}, 3900.0) == []
    assert watch.notes() == {}


@pytest.mark.slow
def test_metrics_are_seen_on_a_server_while_the_stage_works(
    project: Path, params: Params, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    with stage_run("base", params) as run:
        for step in range(1500):
            run.log(step, {"reward": step / 1500})
        deadline = time.monotonic() + 10
        while "reward" not in open_client(project).get_run(run.run_id or "").data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert status(project, run.run_id) == "RUNNING"
        run.page("rollouts/step-00000025.html", "<p>seen</p>")
    files = open_client(project).list_artifacts(run.run_id or "", "rollouts")
    assert [file.path for file in files] == ["rollouts/step-00000025.html"]
    assert len(open_client(project).get_metric_history(run.run_id or "", "reward")) == 1500


class Wire:
    """A TCP relay to a server that a test can cut and mend: the real server is 'down' for whoever goes through it."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 0)
        self._sockets: list[socket.socket] = []
        self._port = 0
        self.mend()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def mend(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self._port))
        self._port = self._server.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, args=(self._server,), daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        if not self._accepting.is_alive():
            return
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._accepting.join()
        for connection in self._sockets:
            with suppress(OSError):  # It had ended by itself.
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._sockets.clear()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, target), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def wire(mlflow_server: str) -> Iterator[Wire]:
    wire = Wire(mlflow_server)
    yield wire
    wire.cut()


@pytest.mark.slow
def test_a_server_that_dies_costs_no_training_and_no_metrics(
    project: Path, params: Params, wire: Wire, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wire.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with stage_run("base", params) as run:
        run.log(1, {"reward": 0.1})
        assert run.flush()
        wire.cut()
        run.log(2, {"reward": 0.2})
        run.checkpoint(Checkpoint(stage="base", step=2, path="final", final=True), project)
    kept = project / UNSENT / f"{run.run_id}.jsonl"
    assert [json.loads(line)[0] for line in kept.read_text().splitlines()] == ["metric", "tag", *["metric"] * 4, "end"]
    assert "vidbridge register" in capsys.readouterr().err
    wire.mend()
    assert status(project, run.run_id) == "RUNNING"
    assert register(project).unsent == 7
    assert not kept.exists()
    found = open_client(project).get_run(run.run_id or "")
    assert logged(found) == {"reward": 0.2}
    assert found.info.status == "FINISHED"
    assert f"{TAG}checkpoint.00000002" in found.data.tags


def test_a_server_that_is_down_stops_the_stage_at_once(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{closed.getsockname()[1]}")
        start = time.monotonic()
        with (
            pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI: http://ann:\*\*\*@.*no answer.*start the server"),
            stage_run("base", params),
        ):
            pytest.fail("the stage must not start")
    assert time.monotonic() - start < 5


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(TrackingError, match="no answer within 2 s"):
            check_server(timeout_s=1)
    assert time.monotonic() - start < 4


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("postgresql://u:p@127.0.0.1:9/db", r"u:\*\*\*@.*start the database"),
        ("./mlruns", "unknown kind of store"),
        ("http://[oops", "."),
    ],
)
def test_other_addresses_are_named(monkeypatch: pytest.MonkeyPatch, uri: str, said: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=said):
        check_server(timeout_s=1)


def test_a_file_that_is_no_database_is_named(project: Path) -> None:
    (project / DATABASE).write_text("not a database, but long enough to be taken for one" * 40)
    with pytest.raises(TrackingError, match="file is not a database; move the file away"):
        check_server()


def test_the_project_is_found_upward(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIDBRIDGE_PROJECT")
    monkeypatch.chdir(project / "data")
    assert project_root() == project
    assert tracking_uri() == f"sqlite:///{project}/.vidbridge/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri() == f"sqlite:///{project}/other.db"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match="VIDBRIDGE_PROJECT"):
        project_root()
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(tmp_path / "nowhere"))
    with pytest.raises(TrackingError, match="is no folder"):
        project_root()
    assert shown("http://host:5000/x") == "http://host:5000/x"
