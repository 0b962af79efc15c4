"""Address of the store: a server that is down or silent, other kinds of addresses, and the project
around the working folder."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from stages.params import Params
from stages.runtime.paths import DATABASE
from stages.runtime.project import ProjectError, project_root
from stages.tracking.lineage import uri
from stages.tracking.lineage.uri import NoAnswer, TrackingError, check_server, display_uri, patiently, tracking_uri
from stages.tracking.runs.run import stage_run


def test_patience_begins_with_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uri, "_PAUSE_S", 0.01)
    calls = []

    def ask() -> str:
        calls.append(time.monotonic())
        if len(calls) == 1:
            time.sleep(0.2)
            raise NoAnswer("store", "away", "wait")
        return "there"

    assert patiently(ask, 0.1, lambda error: isinstance(error, NoAnswer)) == "there"


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
    with pytest.raises(ProjectError, match="VIDBRIDGE_PROJECT"):
        project_root()
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(tmp_path / "nowhere"))
    with pytest.raises(ProjectError, match=r"holds no dvc\.yaml"):
        project_root()
    assert display_uri("http://host:5000/x") == "http://host:5000/x"
