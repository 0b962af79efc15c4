"""Access to our loopback servers by other users and by pages in a browser, on real servers."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.deployments import deploy
from flows.deployments.prefect_file import DeploymentRequest
from flows.errors import FlowError
from flows.processes import keys, prefect_server
from flows.processes.stream import guarded
from tests.support.locked import (
    CANARY,
    EVIL,
    Pages,
    clean,
    command_lines,
    ended,
    greeted,
    of_worker,
    sent,
    served_pages,
    with_token,
)


@pytest.fixture(scope="module")
def pages(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """Running pages, for all tests of this module."""
    with served_pages(template, tmp_path_factory.mktemp("locked") / "project") as shown:
        yield shown


# --- Prefect
# ------------------------------------------------------------------------------


def test_the_attack_of_a_foreign_page_on_prefect_is_refused_at_each_step(pages: Pages) -> None:
    page = {"Origin": EVIL, "Content-Type": "application/json"}
    asked = httpx.options(
        f"{pages.api}/deployments/filter",
        headers={
            "Origin": EVIL,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert asked.status_code == 403
    assert "access-control-allow-origin" not in asked.headers
    for path in ("deployments/filter", "variables/", "flow_runs/filter"):
        assert httpx.post(f"{pages.api}/{path}", json={}, headers=page).status_code == 403
    # Of another port of this machine, as a browser sends it: for it, that is the same site.
    for headers in (
        {"Origin": pages.mlflow},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
        {"Origin": "null"},
    ):
        assert httpx.get(f"{pages.api}/flows/count", headers=headers).status_code == 403
        assert (
            httpx.post(
                f"{pages.api}/variables/", json={"name": "a", "value": 1}, headers=headers | pages.basic
            ).status_code
            == 403
        )
    # A link that a person follows works, a frame does not.
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    shown = httpx.get(f"{pages.prefect}/runs", headers=link | {"Accept": "text/html"}, follow_redirects=True)
    assert shown.status_code == 200
    assert shown.headers["x-frame-options"] == "SAMEORIGIN"
    assert httpx.get(f"{pages.prefect}/runs", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "127.0.0.1@evil.example"]
)
def test_a_name_that_was_made_to_point_here_is_refused(pages: Pages, host: str) -> None:
    for address in (pages.prefect, pages.mlflow):
        named = host.format(port=address.rpartition(":")[2])
        for path in ("/", "/api/health", "/health", "/ui-settings"):
            assert httpx.get(f"{address}{path}", headers={"Host": named} | pages.basic).status_code == 400


def test_without_the_key_prefect_tells_nothing_but_that_it_lives(pages: Pages) -> None:
    closed = (
        "flows/count",
        "version",
        "hello",
        "admin/settings",
        "admin/version",
        "csrf-token?client=a",
        "docs",
        "openapi.json",
        "ui/x",
    )
    for path in closed:
        assert httpx.get(f"{pages.api}/{path}").status_code == 401, path
    wrong = {"Authorization": "Basic " + base64.b64encode(b"vidbridge:" + b"a" * 43).decode()}
    for headers in ({}, wrong, {"Authorization": f"Bearer {pages.key}"}):
        for path in ("deployments/filter", "variables/", "logs/"):
            # 403 comes first, for want of a token against forged requests.
            assert httpx.post(f"{pages.api}/{path}", json={}, headers=headers).status_code in (401, 403)
        token = {"Prefect-Csrf-Token": "a", "Prefect-Csrf-Client": "b"}
        assert httpx.post(f"{pages.api}/variables/", json={}, headers=headers | token).status_code in (401, 403)
    assert httpx.get(f"{pages.api}/health").json() is True
    assert [httpx.get(f"{pages.prefect}{path}").status_code for path in ("/docs", "/redoc", "/openapi.json")] == [
        404
    ] * 3
    settings = httpx.get(f"{pages.prefect}/ui-settings")
    assert settings.json()["auth"] == "BASIC"
    # Nor does it tell the key to those who have it.
    password = pages.key.partition(":")[2]
    assert password not in settings.text + httpx.get(f"{pages.api}/admin/settings", headers=pages.basic).text


def test_with_the_key_prefect_still_wants_a_token_against_forged_requests(pages: Pages) -> None:
    assert httpx.get(f"{pages.api}/flows/count", headers=pages.basic).status_code != 401
    assert httpx.post(f"{pages.api}/flows/filter", json={}, headers=pages.basic).status_code == 403
    assert httpx.post(f"{pages.api}/flows/filter", json={}, headers=with_token(pages)).status_code == 200


@pytest.mark.parametrize("path", ["events/out", "events/in", "logs/out"])
def test_live_updates_work_with_the_key_only_and_on_our_own_page_only(pages: Pages, path: str) -> None:
    address = f"{pages.api}/{path}".replace("http", "ws", 1)
    assert asyncio.run(greeted(address, pages.key)) == "auth_success"
    assert asyncio.run(greeted(address, pages.key, pages.prefect)) == "auth_success"
    assert asyncio.run(greeted(address, None)) == "closed"
    assert asyncio.run(greeted(address, "vidbridge:wrong")) == "closed"
    assert asyncio.run(greeted(address, pages.key, EVIL)) == "403"
    assert asyncio.run(greeted(address, pages.key, pages.mlflow)) == "403"


def test_no_process_of_ours_has_a_password_among_its_arguments(pages: Pages) -> None:
    lines = command_lines(pages.process)
    assert sum("flows.processes.door" in line for line in lines) == 4, "two servers, each behind its guard"
    password = pages.key.partition(":")[2]
    assert not [line for line in lines if CANARY in line or password in line]


# --- What a run of the deployment may set
# ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deployed(pages: Pages) -> Pages:
    """Deployment of `infra/prefect.yaml` on that server, as `vidbridge deploy` creates it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_worker(pages).items():
            patch.setenv(name, value)
        deploy.create(pages.root, DeploymentRequest("main", "nightly"))
    return pages


def _deployment(pages: Pages) -> str:
    (one,) = sent("POST", f"{pages.api}/deployments/filter", {}, with_token(pages)).json()
    assert one["parameters"] == {
        "repository": None,
        "directory": None,
        "branch": "main",
        "source": None,
        "recipe": None,
        "promote": True,
    }
    return str(one["id"])


def test_a_run_may_not_set_what_the_worker_starts(deployed: Pages, tmp_path: Path) -> None:
    run = f"{deployed.api}/deployments/{_deployment(deployed)}/create_flow_run"
    held = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}}
    command = f"sh -c 'id > {tmp_path}/owned'"
    for name, value in {
        "command": command,
        "env": {"PYTHONPATH": "/tmp"},
        "working_dir": "/tmp",
        "name": "x",
        "env.PATH": "/tmp",
    }.items():
        refused = sent("POST", run, held | {"job_variables": {name: value}}, with_token(deployed))
        assert refused.status_code == 422, f"{name}: {refused.text}"
    refused = sent("POST", run, held | {"parameters": {"promote": "perhaps"}}, with_token(deployed))
    assert refused.status_code in (409, 422), refused.text
    allowed = sent("POST", run, held | {"parameters": {"recipe": "smoke"}}, with_token(deployed))
    assert allowed.status_code == 201
    changed = sent(
        "PATCH",
        f"{deployed.api}/flow_runs/{allowed.json()['id']}",
        {"job_variables": {"command": command}},
        with_token(deployed),
    )
    assert changed.status_code == 422


@pytest.mark.parametrize(
    ("name", "value"),
    [("repository", "https://evil.example/x"), ("directory", "a"), ("branch", "elsewhere"), ("source", "/etc")],
)
def test_whose_code_runs_and_on_what_only_the_deployment_says(
    deployed: Pages, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow's own look at its deployment, on a real server: Prefect's check of parameters can be
    switched off by who makes a run.
    """
    from types import SimpleNamespace
    from uuid import UUID

    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from flows import scheduled as module

    run = SimpleNamespace(flow_run=SimpleNamespace(deployment_id=UUID(_deployment(deployed))))
    monkeypatch.setattr(module, "FlowRunContext", SimpleNamespace(get=lambda: run))
    given: dict[str, str | None] = {"repository": None, "directory": None, "branch": "main", "source": None}
    with temporary_settings({PREFECT_API_URL: deployed.api, PREFECT_API_AUTH_STRING: deployed.key}):
        assert module.only_as_deployed(given).name == "nightly"
        with pytest.raises(FlowError, match=f"{name}: this run sets '{value}', and only the deployment may"):
            module.only_as_deployed(given | {name: value})


def test_what_the_server_lets_through_does_not_reach_the_process(deployed: Pages, tmp_path: Path) -> None:
    """Runs without a deployment are unchecked by the server; the template has no place for
    values."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
    from prefect.workers.process import ProcessJobConfiguration

    headers = with_token(deployed)
    pool = httpx.get(f"{deployed.api}/work_pools/vidbridge", headers=headers).json()
    wanted = {
        "command": "sh -c id",
        "env": {"PATH": str(tmp_path)},
        "env.LD_PRELOAD": "x",
        "working_dir": str(tmp_path),
        "labels": {"a": "b"},
    }

    async def make() -> ProcessJobConfiguration:
        async with get_client() as client:
            return await ProcessJobConfiguration.from_template_and_values(
                pool["base_job_template"], wanted, client=client
            )

    with temporary_settings({PREFECT_API_URL: deployed.api, PREFECT_API_AUTH_STRING: deployed.key}):
        made = asyncio.run(make())
    assert (made.command, made.env, made.working_dir, made.labels) == (None, {}, None, {})


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_foreign_runs_on_a_real_worker(deployed: Pages, tmp_path: Path) -> None:
    """Try every way of making a run, with the key: job variables, no deployment, an unchecked
    run."""
    deployment, headers, owned = _deployment(deployed), with_token(deployed), tmp_path / "owned"
    foreign = tmp_path / "foreign"
    subprocess.run(["git", "init", "-q", "-b", "main", str(foreign)], check=True)
    now = {"state": {"type": "SCHEDULED"}}
    variables = {"job_variables": {"command": f"sh -c 'id > {owned}'", "env": {"PYTHONSTARTUP": str(owned)}}}
    (flow,) = sent(
        "POST", f"{deployed.api}/flows/filter", {"flows": {"name": {"any_": ["vidbridge-scheduled"]}}}, headers
    ).json()
    loose = now | variables | {"flow_id": flow["id"], "work_pool_name": "vidbridge"}
    orders = [(f"{deployed.api}/flow_runs/", loose)]
    for parameters in (
        {"repository": str(foreign)},
        {"work_dir": str(tmp_path)},
        {"branch": "elsewhere"},
        {"source": "/etc"},
    ):
        unchecked = now | {"enforce_parameter_schema": False, "parameters": parameters}
        orders.append((f"{deployed.api}/deployments/{deployment}/create_flow_run", unchecked))
    how: list[str] = []
    with (
        (tmp_path / "worker.log").open("wb") as log,
        guarded(deploy.worker_command(), deployed.root, clean(deployed.root, **of_worker(deployed)), log),
    ):
        for url, order in orders:  # one after the other: the deployment lets one run at a time
            made = sent("POST", url, order, headers)
            assert made.status_code == 201, made.text
            how.append(ended(deployed, made.json()["id"], headers))
    said = (tmp_path / "worker.log").read_text()
    assert "COMPLETED" not in how, said
    assert not owned.exists()
    assert f"repository: this run sets {str(foreign)!r}, and only the deployment may (None)" in said
    assert "branch: this run sets 'elsewhere', and only the deployment may ('main')" in said
    assert "source: this run sets '/etc', and only the deployment may (None)" in said
    assert not (deployed.root / ".vidbridge/scheduled").exists(), "no clone was made"


# --- MLflow
# ------------------------------------------------------------------------------


def _champion(pages: Pages) -> str:
    asked = httpx.get(
        f"{pages.mlflow}/api/2.0/mlflow/registered-models/alias?name=vidbridge-tiny&alias=champion", headers=pages.basic
    )
    return str(asked.json()["model_version"]["version"])


def test_no_other_user_moves_the_champion_in_mlflow(pages: Pages) -> None:
    body = {"name": "vidbridge-tiny", "alias": "champion", "version": "1"}
    wrong = {"Authorization": "Basic " + base64.b64encode(b"vidbridge:" + b"a" * 43).decode()}
    for api in ("api", "ajax-api"):
        alias = f"{pages.mlflow}/{api}/2.0/mlflow/registered-models/alias"
        for headers in ({}, wrong, {"Authorization": "Bearer x"}, {"Authorization": "Basic %%%"}):
            refused = httpx.post(alias, json=body, headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic")
        # Nor a page of another port, in a browser that sends the password by itself; MLflow lets
        # those of this machine pass.
        for headers in (
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": EVIL},
            {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        ):
            assert httpx.post(alias, json=body, headers=headers | pages.basic).status_code == 403
    assert _champion(pages) == "2"
    moved = httpx.post(f"{pages.mlflow}/api/2.0/mlflow/registered-models/alias", json=body, headers=pages.basic)
    assert moved.status_code == 200, "a person with the key may"
    assert _champion(pages) == "1"


def test_without_the_key_mlflow_tells_nothing_but_that_it_lives(pages: Pages) -> None:
    for path in (
        "/",
        "/version",
        "/static-files/index.html",
        "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
        "/graphql",
        "/metrics",
    ):
        assert httpx.get(f"{pages.mlflow}{path}").status_code == 401, path
    assert httpx.get(f"{pages.mlflow}/health").status_code == 200
    assert httpx.get(f"{pages.mlflow}/", headers=pages.basic).status_code == 200
    bearer = {"Authorization": f"Bearer {pages.key.partition(':')[2]}"}
    assert httpx.get(f"{pages.mlflow}/version", headers=bearer).status_code == 200
    # What runs programs on this machine is closed to everyone, and its jobs are off.
    for path in ("/ajax-api/3.0/mlflow/assistant/config", "/ajax-api/3.0/mlflow/assistant/message"):
        assert httpx.post(f"{pages.mlflow}{path}", json={"message": "x"}, headers=pages.basic).status_code == 404
    assert not [line for line in command_lines(pages.process) if "huey" in line or "jobs" in line]


def test_mlflows_own_client_gets_in_with_user_and_password(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    client = MlflowClient(tracking_uri=pages.mlflow, registry_uri=pages.mlflow)
    with pytest.raises(MlflowException, match="401"):
        client.get_registered_model("vidbridge-tiny")
    user, _, password = pages.key.partition(":")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    assert client.get_registered_model("vidbridge-tiny").name == "vidbridge-tiny"


def test_ui_says_how_a_person_gets_in_and_what_to_open(pages: Pages) -> None:
    assert f"MLflow   {pages.mlflow}/#/models/vidbridge-tiny  (versions of vidbridge-tiny)" in pages.said
    assert re.search(rf"MLflow   {pages.mlflow}/#/experiments/\d+/runs", pages.said)
    assert f"Prefect  {pages.prefect}/runs" in pages.said
    path = keys.key_file(prefect_server.home(pages.root))
    assert str(path) in pages.said
    assert path.read_text().strip() == pages.key


def test_what_lies_in_the_projects_state_is_its_owners(pages: Pages) -> None:
    state = pages.root / ".vidbridge"
    modes = {
        name: stat.S_IMODE((state / name).stat().st_mode)
        for name in (".", "prefect", "prefect/server.key", "prefect/server.log")
    }
    assert modes == {".": 0o700, "prefect": 0o700, "prefect/server.key": 0o600, "prefect/server.log": 0o600}
    assert stat.S_IMODE((state / "mlflow.log").stat().st_mode) == 0o600
    password = pages.key.partition(":")[2].encode()
    told = [path for path in state.rglob("*") if path.is_file() and password in path.read_bytes()]
    assert told == [state / "prefect/server.key"]


# --- The running server, and whom its key is told
# ------------------------------------------------------------------------------


def test_a_server_that_runs_is_found_and_used_with_its_key(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    assert prefect_server.running_server(pages.root) == pages.api
    with prefect_server.starting(pages.root) as started:
        assert started is None, "none of its own"
        assert os.environ["PREFECT_API_AUTH_STRING"] == pages.key
        with prefect_server.connected(started), get_client(sync_client=True) as client:
            client.read_flows()
    monkeypatch.setenv("PREFECT_API_URL", pages.api)
    with (
        prefect_server.starting(pages.root) as started,
        pytest.raises(FlowError, match="set PREFECT_API_AUTH_STRING"),
        prefect_server.connected(started),
    ):
        pass
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", pages.key)
    with (
        prefect_server.starting(pages.root) as started,
        prefect_server.connected(started),
        get_client(sync_client=True) as client,
    ):
        client.read_flows()


def test_a_second_ui_uses_the_first_ones_server_and_leaves_its_note(pages: Pages) -> None:
    before = (prefect_server.home(pages.root) / prefect_server.URL_FILE).read_text()
    env = clean(pages.root, MLFLOW_TRACKING_URI="http://bob:hunter2@127.0.0.1:1")
    second = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "ui"],
        cwd=pages.root,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 0, second.stderr
    assert "both run elsewhere" in second.stdout
    assert f"Prefect  {pages.prefect}/runs" in second.stdout
    assert "hunter2" not in second.stdout + second.stderr
    assert (prefect_server.home(pages.root) / prefect_server.URL_FILE).read_text() == before
