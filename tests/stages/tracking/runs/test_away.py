"""Servers and remotes that do not answer, refuse, or do not exist: one sentence with the remedy,
and retries where hours depend on it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.project.diagnosis.project import check_git
from flows.project.diagnosis.services import check_remote
from flows.repro.preflight import git_problems, mlflow_problems, remote_problems
from stages.params import load_params
from stages.runtime.paths import DATABASE
from stages.tracking.lineage.remote import remote_error
from stages.tracking.lineage.uri import (
    NoAnswer,
    TrackingError,
    check_driver,
    check_server,
    experiment_name,
    patience_of_run_s,
    tracking_uri,
)
from stages.tracking.registry.register import register
from stages.tracking.runs.foreign import sentence_of
from stages.tracking.runs.run import stage_run
from stages.tracking.runs.store import experiment_id, open_client, store_error
from stages.tracking.session import Session

CANARY = "CANARY7value"


@contextmanager
def answering(*statuses: int, after_s: float = 0.0) -> Iterator[tuple[str, list[int]]]:
    """Run a server that gives these answers in turn, the last one for ever, each after a delay.
    Yields its URI and its log of answers."""
    given: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.append(statuses[min(len(given), len(statuses) - 1)])
            if len(given) == 1:
                time.sleep(after_s)
            try:
                self.send_response(given[-1])
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")
            except OSError:
                pass  # the client has given up

        def log_message(self, format: str, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", given
        finally:
            server.shutdown()
            thread.join()


def test_a_first_answer_that_is_slow_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_MLFLOW_TIMEOUT_S", "1")
    with answering(200, after_s=1.5) as (uri, given):
        assert check_server(uri) == uri
    assert len(given) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_is_refused_is_told_at_once(status: int) -> None:
    start = time.monotonic()
    with answering(status, 200) as (uri, given), pytest.raises(TrackingError, match=f"answers {status}") as caught:
        check_server(uri, timeout_s=1, wait_s=60)
    assert not isinstance(caught.value, NoAnswer)
    assert given == [status]
    assert time.monotonic() - start < 5


def test_a_server_that_comes_back_is_waited_for_as_long_as_was_said(capfd: pytest.CaptureFixture[str]) -> None:
    with answering(503, 502, 503, 200) as (uri, given):
        assert check_server(uri, timeout_s=1, wait_s=30) == uri
        assert given == [503, 502, 503, 200]
        assert capfd.readouterr().err.count("asking again for up to 30 s") == 1
    with answering(503) as (uri, given), pytest.raises(NoAnswer, match="answers 503"):
        check_server(uri, timeout_s=0.1)
    assert len(given) == 2, "a person waits: twice, and no more"


def test_only_the_stages_of_a_run_are_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience_of_run_s() == 0
    monkeypatch.setenv("VIDBRIDGE_PIPELINE_RUN", "0" * 32)
    assert patience_of_run_s() == 300
    monkeypatch.setenv("VIDBRIDGE_MLFLOW_PATIENCE_S", "7.5")
    assert patience_of_run_s() == 7.5
    monkeypatch.setenv("VIDBRIDGE_MLFLOW_PATIENCE_S", "long")
    with pytest.raises(
        TrackingError, match=r"VIDBRIDGE_MLFLOW_PATIENCE_S: 'long' is not a number of seconds; set a number >= 0, or"
    ):
        patience_of_run_s()


def test_a_database_that_another_process_holds_is_not_to_be_moved_away(project: Path) -> None:
    with closing(sqlite3.connect(project / DATABASE)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(NoAnswer, match=r"another process holds it for .*; wait for that one or end it"):
            check_server(timeout_s=0.1)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (f"mysql://ann:{CANARY}@h/db", r"its driver, MySQLdb, is not installed; uv pip install 'mysqlclient'"),
        (f"mssql+pyodbc://ann:{CANARY}@h/db", r"its driver, pyodbc, is not installed; uv pip install 'pyodbc'"),
        (f"postgresql+oracle://ann:{CANARY}@h/db", r"no driver 'postgresql\+oracle'"),
    ],
)
def test_the_driver_of_a_database_is_named(uri: str, said: str) -> None:
    with pytest.raises(TrackingError, match=said) as caught:
        check_driver(uri)
    assert CANARY not in str(caught.value)


def test_postgresql_has_its_driver() -> None:
    check_driver("postgresql://ann@h/db")


def test_the_experiment_is_the_one_that_the_environment_names(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team-b")
    assert experiment_name() == "team-b"
    client = open_client(project)
    with stage_run("base", load_params(project / "params.yaml")) as run:
        assert (
            client.get_run(run.run_id or "").info.experiment_id == client.get_experiment_by_name("team-b").experiment_id
        )
    assert client.get_experiment_by_name("vidbridge") is None
    client.delete_experiment(experiment_id(client, project))
    with pytest.raises(
        TrackingError,
        match=r"'team-b' was deleted; restore it: mlflow experiments restore -x \d+, or name another: MLFLOW",
    ):
        experiment_id(client, project)


def test_what_mlflow_refuses_is_told_from_what_it_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, UNAUTHENTICATED

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "dev")
    # MLflow's own text, from a server with basic auth.
    denied = MlflowException(
        "API request to endpoint /x failed with error code 403 != 200. Response body: 'Permission denied'",
        PERMISSION_DENIED,
    )
    said = str(store_error("m", denied, "EDIT on the registered model 'm'"))
    assert said.startswith(
        "m: no permission: the MLflow user 'dev' may not; ask who owns it, or administers the server, for EDIT on the"
    )
    assert "MLFLOW_TRACKING_PASSWORD" in str(store_error("m", MlflowException("401", UNAUTHENTICATED), ""))
    away = MlflowException("API request to http://h/x failed with exception HTTPConnectionPool(host='h')")
    assert "stopped answering" in str(store_error("m", away, ""))
    assert "refused: no such name" in str(store_error("m", MlflowException("no such name"), ""))


@pytest.fixture
def s3(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The project with an S3 remote, on a machine without keys, where nothing listens."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("VIDBRIDGE_DVC_REMOTE", "s3://team/dvc")
    return project


def test_missing_keys_and_a_dead_endpoint_are_one_sentence(s3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = "Unable to locate credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    with pytest.raises(TrackingError, match=f"^DVC remote 's3://team/dvc': dvc push: {keys}$"):
        register(Session(s3))
    assert list(map(str, remote_problems(s3))) == [f"DVC remote 's3://team/dvc': a probe cannot be written: {keys}"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-ann")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    (said,) = map(str, remote_problems(s3))
    assert "Could not connect to the endpoint URL" in said
    assert "start that server, or correct its address: AWS_ENDPOINT_URL" in said
    found = check_remote(s3)
    assert found.state == "missing"
    assert "endpoint" in found.found
    assert CANARY not in said + found.found + found.todo


def test_errors_of_other_libraries_are_told_with_a_remedy() -> None:
    import aiohttp
    from botocore.exceptions import ProfileNotFound, SSLError

    assert "correct AWS_PROFILE" in str(remote_error("r", "x", ProfileNotFound(profile="ann")))
    assert "AWS_CA_BUNDLE" in str(remote_error("r", "x", SSLError(endpoint_url="https://h", error="bad")))
    assert "start that server" in str(remote_error("r", "x", aiohttp.ServerDisconnectedError()))
    assert "the disk is full" in str(remote_error("r", "x", OSError(28, "No space left on device")))


def test_a_remote_is_tried_before_a_run_and_keeps_nothing_of_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    monkeypatch.setenv("VIDBRIDGE_DVC_REMOTE", str(remote))
    assert remote_problems(project) == []
    assert [path for path in remote.rglob("*") if path.name not in ("files", "md5")] == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDBRIDGE_DVC_REMOTE", str(tmp_path / "file/below"))
    (said,) = map(str, remote_problems(project))
    assert said.startswith(f"DVC remote '{tmp_path}/file/below': a probe cannot be written: ")


def test_a_run_asks_for_a_commit_and_for_a_repository_that_git_reads(
    project: Path, monkeypatch: pytest.MonkeyPatch, git_output: Callable[..., str]
) -> None:
    assert git_problems(project) == []
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to try it
    trust = f"git config --global --add safe.directory {project}"
    assert git_problems(project)[0].remedy.endswith(f"type: {trust}")
    assert check_git(project).todo == f"type: {trust}"
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    git_output(project, "update-ref", "-d", "HEAD")
    assert "has no commit yet" in git_problems(project)[0].problem


def test_a_store_that_is_down_is_a_problem_of_the_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (said,) = map(str, mlflow_problems(Session(project)))
    assert "no answer" in said
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mlflow_problems(Session(project)) == []
    assert tracking_uri(project).startswith("sqlite:///")


def test_git_that_is_not_there_is_to_be_installed(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        subprocess.run(["git"], check=False)
    found = check_git(project)
    assert (found.state, found.found) == ("missing", "git: not found")
    assert found.todo.startswith("install it")


def test_errors_of_the_layers_below_are_sentences_and_defects_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("PREFECT_API_URL", f"http://ann:{CANARY}@h/api")
    with pytest.raises(httpx.ConnectError) as refused:
        httpx.get("http://127.0.0.1:9", trust_env=False)
    said = sentence_of(refused.value) or ""
    assert said.startswith("PREFECT_API_URL: http://ann:***@h/api: stopped answering (")
    answer = httpx.Response(401, request=httpx.Request("GET", "http://h"))
    assert "PREFECT_API_AUTH_STRING" in (
        sentence_of(httpx.HTTPStatusError("no", request=answer.request, response=answer)) or ""
    )
    away = MlflowException("API request to http://h/x failed with exception HTTPConnectionPool(host='h')")
    assert "MLFLOW_TRACKING_URI" in (sentence_of(away) or "")
    assert "another process holds" in (sentence_of(sqlite3.OperationalError("database is locked")) or "")
    for defect in (
        MlflowException("no such column"),
        KeyError("x"),
        sqlite3.OperationalError("near SELECT: syntax error"),
    ):
        assert sentence_of(defect) is None
