"""Our servers on the loopback interface: no other user of the machine and no page in a browser gets in. Real servers, real requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest
import websockets

from flows.deployments import deploy
from flows.errors import FlowError, UsageError
from flows.processes import keys, prefect_server
from flows.processes.environment import QUIET
from flows.processes.stream import guarded
from stages.runtime.liveness import identity_of, me
from tests.support.checkout import ROOT

EVIL = "http://evil.example"
#: Stands for the password in the address of a database: it must never be an argument of a process.
CANARY = "hunter2canary"


@dataclass(frozen=True)
class Pages:
    """What `vidbridge ui` serves."""

    root: Path
    mlflow: str
    prefect: str
    key: str
    said: str
    process: psutil.Process

    @property
    def api(self) -> str:
        return f"{self.prefect}/api"

    @property
    def basic(self) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(self.key.encode()).decode()}


def _clean(root: Path, **changes: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VIDBRIDGE_", "PREFECT_", "MLFLOW_", "GIT_", "DVC_"))}
    return {**inherited, **QUIET, "VIDBRIDGE_PROJECT": str(root), "COLUMNS": "200", **changes}


@pytest.fixture(scope="module")
def pages(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """`vidbridge ui` in a project with one version, by its command; for all tests of this module."""
    from mlflow.tracking import MlflowClient

    root = tmp_path_factory.mktemp("locked") / "project"
    shutil.copytree(template, root)
    (root / "infra").mkdir()
    for name in ("prefect.yaml", "work-pool.json"):
        shutil.copy(ROOT / "infra" / name, root / "infra" / name)
    store = f"sqlite:///{root}/{CANARY}.db"
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    client.create_experiment("vidbridge")
    client.create_registered_model("vidbridge-tiny")
    for _ in range(2):
        client.create_model_version("vidbridge-tiny", f"dvc://{'0' * 32}.dir/final")
    client.set_registered_model_alias("vidbridge-tiny", "champion", "2")
    log = root / "ui.log"
    # A shell starts background jobs with SIGINT ignored, and children inherit that; at a terminal it is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as out:
        command = [sys.executable, "-m", "flows.cli.main", "ui"]
        process = subprocess.Popen(command, cwd=root, env=_clean(root, MLFLOW_TRACKING_URI=store), stdout=out, stderr=out)
    signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 120
        while "until Ctrl-C" not in (said := log.read_text()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "until Ctrl-C" in said, said
        mlflow, prefect, password = (
            re.search(pattern, said)
            for pattern in (r"MLflow +(http://127.0.0.1:\d+)", r"Prefect +(http://127.0.0.1:\d+)", r"password (\S+)")
        )
        assert mlflow is not None
        assert prefect is not None
        assert password is not None
        key = f"vidbridge:{password[1]}"
        yield Pages(root, mlflow[1], prefect[1], key, said, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


# --- Prefect -------------------------------------------------------------------------------------------------------------


def test_the_attack_of_a_foreign_page_on_prefect_is_refused_at_each_step(pages: Pages) -> None:
    page = {"Origin": EVIL, "Content-Type": "application/json"}
    asked = httpx.options(
        f"{pages.api}/deployments/filter",
        headers={"Origin": EVIL, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"},
    )
    assert asked.status_code == 403
    assert "access-control-allow-origin" not in asked.headers
    for path in ("deployments/filter", "variables/", "flow_runs/filter"):
        assert httpx.post(f"{pages.api}/{path}", json={}, headers=page).status_code == 403
    # Of another port of this machine, as a browser sends it: for it, that is the same site.
    for headers in ({"Origin": pages.mlflow}, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, {"Origin": "null"}):
        assert httpx.get(f"{pages.api}/flows/count", headers=headers).status_code == 403
        assert (
            httpx.post(f"{pages.api}/variables/", json={"name": "a", "value": 1}, headers=headers | pages.basic).status_code == 403
        )
    # A link that a person follows works, a frame does not.
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    shown = httpx.get(f"{pages.prefect}/runs", headers=link | {"Accept": "text/html"}, follow_redirects=True)
    assert shown.status_code == 200
    assert shown.headers["x-frame-options"] == "SAMEORIGIN"
    assert httpx.get(f"{pages.prefect}/runs", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "127.0.0.1@evil.example"])
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
    assert [httpx.get(f"{pages.prefect}{path}").status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3
    settings = httpx.get(f"{pages.prefect}/ui-settings")
    assert settings.json()["auth"] == "BASIC"
    # Nor does it tell the key to those who have it.
    password = pages.key.partition(":")[2]
    assert password not in settings.text + httpx.get(f"{pages.api}/admin/settings", headers=pages.basic).text


def test_with_the_key_prefect_still_wants_a_token_against_forged_requests(pages: Pages) -> None:
    assert httpx.get(f"{pages.api}/flows/count", headers=pages.basic).status_code != 401
    assert httpx.post(f"{pages.api}/flows/filter", json={}, headers=pages.basic).status_code == 403
    assert httpx.post(f"{pages.api}/flows/filter", json={}, headers=_with_token(pages)).status_code == 200


def _sent(method: str, url: str, body: object, headers: dict[str, str]) -> httpx.Response:
    """As Prefect's own clients send it: again, while its database is busy."""
    for _ in range(20):
        answer = httpx.request(method, url, json=body, headers=headers, timeout=30)
        if answer.status_code != 503:
            break
        time.sleep(0.5)
    return answer


def _with_token(pages: Pages) -> dict[str, str]:
    token = httpx.get(f"{pages.api}/csrf-token", params={"client": "test"}, headers=pages.basic).json()["token"]
    return pages.basic | {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}


async def _greeted(address: str, token: str | None, origin: str | None = None) -> str:
    """What a websocket of Prefect answers to a client with this key."""
    try:
        async with websockets.connect(address, subprotocols=["prefect"], origin=origin) as socket_:  # type: ignore[list-item, arg-type]
            await socket_.send(json.dumps({"type": "auth", "token": token}))
            return str(json.loads(await socket_.recv())["type"])
    except websockets.exceptions.InvalidStatus as error:
        return str(error.response.status_code)
    except websockets.exceptions.ConnectionClosed:
        return "closed"


@pytest.mark.parametrize("path", ["events/out", "events/in", "logs/out"])
def test_live_updates_work_with_the_key_only_and_on_our_own_page_only(pages: Pages, path: str) -> None:
    address = f"{pages.api}/{path}".replace("http", "ws", 1)
    assert asyncio.run(_greeted(address, pages.key)) == "auth_success"
    assert asyncio.run(_greeted(address, pages.key, pages.prefect)) == "auth_success"
    assert asyncio.run(_greeted(address, None)) == "closed"
    assert asyncio.run(_greeted(address, "vidbridge:wrong")) == "closed"
    assert asyncio.run(_greeted(address, pages.key, EVIL)) == "403"
    assert asyncio.run(_greeted(address, pages.key, pages.mlflow)) == "403"


def test_the_server_of_a_run_is_locked_too_and_our_clients_get_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run`, `promote` and `ablate` start this one. A key of the user's own for another server does not get in the way."""
    from prefect.client.orchestration import get_client

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody:else")
    with prefect_server.starting(tmp_path) as running:
        assert running is not None
        api = running.url()
        port = api.rpartition(":")[2].removesuffix("/api")
        assert [
            one.laddr.ip for one in psutil.net_connections() if one.laddr and one.laddr.port == int(port) and one.status == "LISTEN"
        ] == ["127.0.0.1"]
        assert httpx.get(f"{api}/flows/count").status_code == 401
        assert httpx.post(f"{api}/deployments/filter", json={}, headers={"Origin": EVIL}).status_code == 403
        assert httpx.get(f"{api}/health", headers={"Host": "evil.example"}).status_code == 400
        assert not any(running.key.partition(":")[2] in line for line in _command_lines(psutil.Process()))
        with prefect_server.connected(running), get_client(sync_client=True) as client:
            client.create_flow_from_name("ours")
            assert [flow.name for flow in client.read_flows()] == ["ours"]
        home = tmp_path / "home"
        assert not any(running.key.partition(":")[2].encode() in path.read_bytes() for path in home.rglob("*.log"))
    assert os.environ["PREFECT_API_AUTH_STRING"] == "somebody:else"
    assert "PREFECT_API_URL" not in os.environ


def _command_lines(process: psutil.Process) -> list[str]:
    """Arguments of all that a process started, as `ps` shows them to everyone."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(child.cmdline()))
    return found


def test_no_process_of_ours_has_a_password_among_its_arguments(pages: Pages) -> None:
    lines = _command_lines(pages.process)
    assert sum("flows.processes.door" in line for line in lines) == 4, "two servers, each behind its guard"
    password = pages.key.partition(":")[2]
    assert not [line for line in lines if CANARY in line or password in line]


# --- What a run of the deployment may set ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deployed(pages: Pages) -> Pages:
    """The deployment of `infra/prefect.yaml` on that server, as `vidbridge deploy` makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _of_worker(pages).items():
            patch.setenv(name, value)
        deploy.create(pages.root, deploy.Order("main", "nightly"))
    return pages


def _of_worker(pages: Pages) -> dict[str, str]:
    reached = {
        "PREFECT_HOME": str(prefect_server.home(pages.root)),
        "PREFECT_API_URL": pages.api,
        "PREFECT_API_AUTH_STRING": pages.key,
    }
    return {"VIDBRIDGE_PROJECT": str(pages.root), **reached}


def _deployment(pages: Pages) -> str:
    (one,) = _sent("POST", f"{pages.api}/deployments/filter", {}, _with_token(pages)).json()
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
        refused = _sent("POST", run, held | {"job_variables": {name: value}}, _with_token(deployed))
        assert refused.status_code == 422, f"{name}: {refused.text}"
    refused = _sent("POST", run, held | {"parameters": {"promote": "perhaps"}}, _with_token(deployed))
    assert refused.status_code in (409, 422), refused.text
    allowed = _sent("POST", run, held | {"parameters": {"recipe": "smoke"}}, _with_token(deployed))
    assert allowed.status_code == 201
    changed = _sent(
        "PATCH",
        f"{deployed.api}/flow_runs/{allowed.json()['id']}",
        {"job_variables": {"command": command}},
        _with_token(deployed),
    )
    assert changed.status_code == 422


def test_the_flow_has_no_parameter_that_says_where_it_works() -> None:
    """Prefect's server lets parameters through that no flow has; the run then fails before the flow begins (see the slow test)."""
    from prefect.exceptions import SignatureMismatchError

    from flows.scheduled import scheduled

    with pytest.raises((SignatureMismatchError, TypeError)):
        scheduled.validate_parameters({"work_dir": "/tmp/x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("repository", "https://evil.example/x"), ("directory", "a"), ("branch", "elsewhere"), ("source", "/etc")],
)
def test_whose_code_runs_and_on_what_only_the_deployment_says(
    deployed: Pages, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow's own look at its deployment, on a real server: Prefect's check of parameters can be switched off by who makes a run."""
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
    """A run without a deployment is not checked by Prefect's server: the template itself has no place for what it sets."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
    from prefect.workers.process import ProcessJobConfiguration

    headers = _with_token(deployed)
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
            return await ProcessJobConfiguration.from_template_and_values(pool["base_job_template"], wanted, client=client)

    with temporary_settings({PREFECT_API_URL: deployed.api, PREFECT_API_AUTH_STRING: deployed.key}):
        made = asyncio.run(make())
    assert (made.command, made.env, made.working_dir, made.labels) == (None, {}, None, {})


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_foreign_runs_on_a_real_worker(deployed: Pages, tmp_path: Path) -> None:
    """With the key, by every way of making a run: job variables, a run without deployment, parameters with their check switched off."""
    deployment, headers, owned = _deployment(deployed), _with_token(deployed), tmp_path / "owned"
    foreign = tmp_path / "foreign"
    subprocess.run(["git", "init", "-q", "-b", "main", str(foreign)], check=True)
    now = {"state": {"type": "SCHEDULED"}}
    variables = {"job_variables": {"command": f"sh -c 'id > {owned}'", "env": {"PYTHONSTARTUP": str(owned)}}}
    (flow,) = _sent("POST", f"{deployed.api}/flows/filter", {"flows": {"name": {"any_": ["vidbridge-scheduled"]}}}, headers).json()
    loose = now | variables | {"flow_id": flow["id"], "work_pool_name": "vidbridge"}
    orders = [(f"{deployed.api}/flow_runs/", loose)]
    for parameters in ({"repository": str(foreign)}, {"work_dir": str(tmp_path)}, {"branch": "elsewhere"}, {"source": "/etc"}):
        unchecked = now | {"enforce_parameter_schema": False, "parameters": parameters}
        orders.append((f"{deployed.api}/deployments/{deployment}/create_flow_run", unchecked))
    ended: list[str] = []
    with (
        (tmp_path / "worker.log").open("wb") as log,
        guarded(deploy.worker_command(), deployed.root, _clean(deployed.root, **_of_worker(deployed)), log),
    ):
        for url, order in orders:  # one after the other: the deployment lets one run at a time
            made = _sent("POST", url, order, headers)
            assert made.status_code == 201, made.text
            ended.append(_ended(deployed, made.json()["id"], headers))
    said = (tmp_path / "worker.log").read_text()
    assert "COMPLETED" not in ended, said
    assert not owned.exists()
    assert f"repository: this run sets {str(foreign)!r}, and only the deployment may (None)" in said
    assert "branch: this run sets 'elsewhere', and only the deployment may ('main')" in said
    assert "source: this run sets '/etc', and only the deployment may (None)" in said
    assert not (deployed.root / ".vidbridge/scheduled").exists(), "no clone was made"


def _ended(pages: Pages, run: str, headers: dict[str, str]) -> str:
    """How a run ended; SCHEDULED for one that no worker takes within 20 s."""
    state, deadline = "SCHEDULED", time.monotonic() + 20
    while state not in ("FAILED", "CRASHED", "CANCELLED", "COMPLETED"):
        time.sleep(0.5)
        state = str(_sent("GET", f"{pages.api}/flow_runs/{run}", None, headers).json()["state"]["type"])
        if state == "SCHEDULED" and time.monotonic() > deadline:
            break
    return state


# --- MLflow ---------------------------------------------------------------------------------------------------------------------


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
        # Nor a page of another port, in a browser that sends the password by itself; MLflow lets those of this machine pass.
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
    assert not [line for line in _command_lines(pages.process) if "huey" in line or "jobs" in line]


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
        name: stat.S_IMODE((state / name).stat().st_mode) for name in (".", "prefect", "prefect/server.key", "prefect/server.log")
    }
    assert modes == {".": 0o700, "prefect": 0o700, "prefect/server.key": 0o600, "prefect/server.log": 0o600}
    assert stat.S_IMODE((state / "mlflow.log").stat().st_mode) == 0o600
    password = pages.key.partition(":")[2].encode()
    told = [path for path in state.rglob("*") if path.is_file() and password in path.read_bytes()]
    assert told == [state / "prefect/server.key"]


# --- The running server, and whom its key is told -----------------------------------------------------------------------------------


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
    with prefect_server.starting(pages.root) as started, prefect_server.connected(started), get_client(sync_client=True) as client:
        client.read_flows()


def test_a_second_ui_uses_the_first_ones_server_and_leaves_its_note(pages: Pages) -> None:
    before = (prefect_server.home(pages.root) / prefect_server.URL_FILE).read_text()
    env = _clean(pages.root, MLFLOW_TRACKING_URI="http://bob:hunter2@127.0.0.1:1")
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


def test_of_two_servers_the_one_that_ends_removes_its_own_note_only(tmp_path: Path) -> None:
    note, address = tmp_path / prefect_server.URL_FILE, "http://127.0.0.1:1/api"
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(guarded([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, os.environ))
            for _ in range(2)
        )
        with prefect_server._note(note, address, first):
            text = note.read_text()
            with prefect_server._note(note, "http://127.0.0.1:2/api", second):
                assert note.read_text() == text, "the first one lives"
            assert note.read_text() == text
            assert prefect_server._noted(note) == address
        assert not note.exists()
        with prefect_server._note(note, address, first):
            first.terminate()
            first.wait()
            assert prefect_server._noted(note) is None
            with prefect_server._note(note, "http://127.0.0.1:2/api", second):
                assert prefect_server._noted(note) == "http://127.0.0.1:2/api", "the first one is gone"


def test_the_key_is_not_told_to_a_stranger_on_the_port_of_a_server_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    keys.own_key(tmp_path)
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = stranger.accept()
                    with connection:
                        heard.append(connection.recv(4096))
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntrue")

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{stranger.getsockname()[1]}/api"
        # Notes of a process that is gone, of another user's, of one that began later under the same number, of this number in another
        # container, and of version 0.1.
        theirs = next(
            (one for one in psutil.process_iter(["uids"]) if one.info["uids"] and one.info["uids"].real != os.getuid()), None
        )
        others = [replace(me(), pid=999999999), replace(me(), started="1"), replace(me(), namespace="1")]
        others += [who for who in (identity_of(theirs.pid) if theirs else None,) if who]
        notes = [*(f"{address}\n{who}\n" for who in others), f"{address}\n{os.getpid()}\n1.0\n", address, ""]
        for text in notes:
            (tmp_path / prefect_server.URL_FILE).write_text(text)
            assert prefect_server.running_server(tmp_path) is None
    assert heard == []


def test_a_server_that_takes_connections_and_says_nothing_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """As one that was stopped, or whose disk is busy. Where nobody listens, that is known at once."""
    with socket.create_server(("127.0.0.1", 0)) as still:
        address = f"http://127.0.0.1:{still.getsockname()[1]}/api"

        def wakes_up() -> None:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = still.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntrue")

        threading.Thread(target=wakes_up, daemon=True).start()
        assert not prefect_server.answers(address, 0.1, patience_s=0)
        assert prefect_server.answers(address, 0.2, patience_s=20)
        assert f"{address}: takes connections and says nothing; waiting up to 20 s" in capsys.readouterr().err
    started = time.monotonic()
    assert not prefect_server.answers(f"http://127.0.0.1:{prefect_server.free_port()}/api")
    assert time.monotonic() - started < 5


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port: {port} is in use"), prefect_server.listening("port", port):
            pass
    with pytest.raises(UsageError, match="port: 99999 is not a port"), prefect_server.listening("port", 99999):
        pass


# --- The key file ------------------------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with ThreadPoolExecutor(8) as pool:
            made = set(pool.map(lambda _: keys.own_key(tmp_path), range(8)))
    finally:
        os.umask(before)
    assert len(made) == 1
    (key,) = made
    assert key == keys.read_key(tmp_path)
    assert re.fullmatch(r"vidbridge:[\w-]{43}", key)
    assert stat.S_IMODE(keys.key_file(tmp_path).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o610])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    keys.own_key(tmp_path)
    keys.key_file(tmp_path).chmod(mode)
    with pytest.raises(FlowError, match=rf"server.key: mode {mode:04o} opens the key to other users; delete it .*rm "):
        keys.own_key(tmp_path)


def test_a_key_of_another_user_a_link_a_pipe_and_other_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keys.key_file(tmp_path)
    keys.own_key(tmp_path)
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: 4321)
        with pytest.raises(FlowError, match="belongs to user"):
            keys.own_key(tmp_path)
    moved = path.rename(tmp_path / "elsewhere")
    path.symlink_to(moved)
    with pytest.raises(FlowError, match="cannot be read"):
        keys.own_key(tmp_path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(FlowError, match="is not a file"):
        keys.own_key(tmp_path)
    path.unlink()
    for text in ("", "vidbridge:short", "vidbridge:" + "a" * 44, "other:" + "a" * 43):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(FlowError, match="holds no key of ours; delete it"):
            keys.own_key(tmp_path)
        path.unlink()
