"""Access to our loopback servers by other users and by pages in a browser, on real servers."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import stat
import subprocess
import sys

import httpx
import pytest

from flows.errors import FlowError
from flows.processes import keys, prefect_server
from tests.support.servers.locked import CANARY, EVIL, Pages, clean, command_lines, greeted, with_token

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
