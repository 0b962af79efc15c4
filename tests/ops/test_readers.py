"""A reader of the registry, a stranger's ledger, servers that go away at a bad moment, and
PostgreSQL without a server before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from flows.repro.preflight import mlflow_problems, remote_problems
from stages.params import load_params
from stages.tracking.gate.promote import history, promote, rollback
from stages.tracking.lineage import cache
from stages.tracking.lineage.uri import NoAnswer, TrackingError, check_server
from stages.tracking.registry.ledger import DONE, ENTRY, VERDICT, Decided, now_ms
from stages.tracking.registry.register import register
from stages.tracking.registry.versions import find_version
from stages.tracking.runs.run import stage_run
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session
from tests.support.checkout import ROOT
from tests.support.projects import small
from tests.support.projects.small import ROWS
from tests.support.servers.stack import ADMIN, ADMIN_PASSWORD, Stack
from tests.support.surroundings import forget

READER, PASSWORD = "dev", "password-of-the-dev"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small") / "project"
    root.mkdir()
    small.make(root)
    return root


@pytest.fixture
def team(servers: Stack, made: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The small project, registered by the admin on the team's servers as a model of this test's
    own."""
    forget(monkeypatch, "VIDBRIDGE_", "MLFLOW_", "AWS_", "GIT_")
    for name, value in servers.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VIDBRIDGE_PROJECT", str(made))
    text = (made / "params.yaml").read_text()
    name = f"model-{request.node.name[:40]}".replace("_", "-").rstrip("-")
    (made / "params.yaml").write_text(text.replace("registered_model: vidbridge-tiny", f"registered_model: {name}"))
    register(Session(made))
    try:
        yield made
    finally:
        (made / "params.yaml").write_text(text)


@pytest.fixture(scope="module")
def accounts(servers: Stack) -> None:
    servers.add_user(READER, PASSWORD)


def become(patch: pytest.MonkeyPatch, user: str, password: str) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def command(root: Path, *arguments: str) -> tuple[int, str]:
    """A command of ours as the account that the environment names: its status and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def champion(model: str, root: Path) -> str | None:
    return open_client(root).get_registered_model(model).aliases.get("champion")


def test_a_reader_decides_nothing_and_is_told_so_in_one_line(
    team: Path, accounts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_params(team / "params.yaml").gate.registered_model
    become(monkeypatch, READER, PASSWORD)
    for asked in (("promote",), ("promote", "7"), ("promote", "7", "--new-evaluation")):
        status, said = command(team, *asked)
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert status == 1, said
        assert "Traceback" not in said
        assert f"registered model '{model}': no permission: the MLflow user '{READER}' may not; ask who owns it" in line
    assert history(Session(team)) == []
    said = list(map(str, mlflow_problems(Session(team))))
    assert len(said) == 1
    assert "MLflow experiment 'vidbridge': no permission" in said[0]
    with (
        pytest.raises(TrackingError, match=r"cannot be ended|cannot be opened|no permission"),
        stage_run("base", load_params(team / "params.yaml")),
    ):
        pytest.fail("a reader records no run")
    become(monkeypatch, ADMIN, ADMIN_PASSWORD)
    assert promote(Session(team), 3).moved
    assert promote(Session(team), 5).moved
    become(monkeypatch, READER, PASSWORD)
    status, said = command(team, "rollback")
    assert (status, "no permission" in said, "Traceback" in said) == (1, True, False)
    status, said = command(team, "history")
    assert (status, "promote" in said) == (0, True)
    assert champion(model, team) == "5"


def test_a_stranger_who_made_the_ledger_decides_nothing(
    team: Path, servers: Stack, accounts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 0.1 left it: the ledger belongs to the reader who wrote its first entry, and the next
    command completed that."""
    gate = load_params(team / "params.yaml").gate
    client = open_client(team)
    client.delete_registered_model(gate.ledger)
    become(monkeypatch, READER, PASSWORD)
    client.create_registered_model(gate.ledger)
    what = Decided(now_ms(), "promote", 7, None, 0, READER, "", (), 0.8, None)
    source = find_version(client, gate.registered_model, 7).source
    for done in ({}, {DONE: "true"}):
        tags = {ENTRY: json.dumps(asdict(what)), VERDICT: "## passed", **done}
        client.create_model_version(gate.ledger, source, tags=tags, await_creation_for=0)
    become(monkeypatch, ADMIN, ADMIN_PASSWORD)
    refused = promote(Session(team), 1)
    assert (refused.moved, refused.champion) == (False, None)
    assert champion(gate.registered_model, team) is None
    assert promote(Session(team), 3).moved
    assert promote(Session(team), 5).moved
    assert rollback(Session(team)).candidate.number == 3
    # Who may change the model and not the stranger's ledger is told which of the two it is.
    servers.add_user("owner", "password-of-the-owner")
    httpx.post(
        f"{servers.tracking_url}/api/3.0/mlflow/users/permissions/grant",
        json={
            "username": "owner",
            "resource_type": "registered_model",
            "resource_id": gate.registered_model,
            "permission": "EDIT",
        },
        auth=(ADMIN, ADMIN_PASSWORD),
        timeout=60,
    ).raise_for_status()
    become(monkeypatch, "owner", "password-of-the-owner")
    with pytest.raises(
        TrackingError, match=rf"registered model '{gate.ledger}': no permission: the MLflow user 'owner' may not"
    ):
        promote(Session(team), 7)


def test_a_stage_waits_for_a_server_that_is_being_restarted(
    team: Path, servers: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_client(team)
    experiment = client.get_experiment_by_name("vidbridge")
    parent = client.create_run(experiment.experiment_id).info.run_id
    monkeypatch.setenv("VIDBRIDGE_PIPELINE_RUN", parent)
    monkeypatch.setenv("VIDBRIDGE_MLFLOW_PATIENCE_S", "120")
    servers.mlflow.kill()
    thread = threading.Timer(8, servers.mlflow.start)
    thread.start()
    try:
        with stage_run("base", load_params(team / "params.yaml")) as run:
            assert run.run_id is not None
        # At registration as well: it goes away again before it.
        servers.mlflow.kill()
        again = threading.Timer(8, servers.mlflow.start)
        again.start()
        report = register(Session(team))
        again.join()
    finally:
        thread.join()
    assert report.kept == 7
    assert client.get_run(run.run_id).info.status == "FINISHED"
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == 1, "the run was opened once"


def test_a_database_that_restarts_behind_the_server_is_waited_for(
    team: Path, servers: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_PIPELINE_RUN", "0" * 32)
    monkeypatch.setenv("VIDBRIDGE_MLFLOW_PATIENCE_S", "120")
    servers.postgres.kill()
    again = threading.Timer(8, servers.postgres.start)
    again.start()
    try:
        with stage_run("base", load_params(team / "params.yaml")) as run:
            assert run.run_id is not None
    finally:
        again.join()


def test_the_remote_is_tried_and_a_hanging_one_is_given_up(
    team: Path, servers: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remote_problems(team) == []
    monkeypatch.setenv("VIDBRIDGE_DVC_REMOTE", "s3://nowhere/dvc")
    (said,) = map(str, remote_problems(team))
    assert "create that bucket or folder" in said
    monkeypatch.setenv("VIDBRIDGE_DVC_REMOTE", "s3://team/dvc")
    monkeypatch.setattr(cache, "PROBE_S", 3.0)
    servers.s3.trouble("stopped")
    try:
        start = time.monotonic()
        (said,) = map(str, remote_problems(team))
        assert "no answer within 3 s" in said
        assert time.monotonic() - start < 15
    finally:
        servers.s3.mend("stopped")


def test_postgresql_is_a_store_of_its_own(team: Path, servers: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"postgresql://team:secret-of-team@127.0.0.1:{servers.postgres.port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/plain")
    assert len(register(Session(team)).created) == 1 + 2 * len(ROWS)
    assert promote(Session(team), 3).moved
    for name, said in (("nowhere", 'database "nowhere" does not exist'), ("plain?sslmode=require", "SSL")):
        with pytest.raises(TrackingError, match=said) as caught:
            check_server(f"{address}/{name}")
        assert "secret-of-team" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not isinstance(caught.value, NoAnswer)
    servers.postgres.kill()
    try:
        with pytest.raises(NoAnswer, match="MLFLOW_TRACKING_URI"):
            check_server(f"{address}/plain", timeout_s=1)
    finally:
        servers.postgres.start()
