"""`vidbridge ui` as a person starts it, and what its two servers are sent."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import websockets

from flows.processes import prefect_server
from flows.processes.environment import QUIET
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


def clean(root: Path, **changes: str) -> dict[str, str]:
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("VIDBRIDGE_", "PREFECT_", "MLFLOW_", "GIT_", "DVC_"))
    }
    return {**inherited, **QUIET, "VIDBRIDGE_PROJECT": str(root), "COLUMNS": "200", **changes}


@contextlib.contextmanager
def served_pages(template: Path, root: Path) -> Iterator[Pages]:
    """`vidbridge ui` by its command, in a copy of ``template`` with one model of two versions."""
    from mlflow.tracking import MlflowClient

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
    # A shell starts background jobs with SIGINT ignored, and children inherit that; at a terminal
    # it is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as out:
        command = [sys.executable, "-m", "flows.cli.main", "ui"]
        process = subprocess.Popen(
            command, cwd=root, env=clean(root, MLFLOW_TRACKING_URI=store), stdout=out, stderr=out
        )
    signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 120
        while (
            "until Ctrl-C" not in (said := log.read_text()) and process.poll() is None and time.monotonic() < deadline
        ):
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


def sent(method: str, url: str, body: object, headers: dict[str, str]) -> httpx.Response:
    """As Prefect's own clients send it: again, while its database is busy."""
    for _ in range(20):
        answer = httpx.request(method, url, json=body, headers=headers, timeout=30)
        if answer.status_code != 503:
            break
        time.sleep(0.5)
    return answer


def with_token(pages: Pages) -> dict[str, str]:
    token = httpx.get(f"{pages.api}/csrf-token", params={"client": "test"}, headers=pages.basic).json()["token"]
    return pages.basic | {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}


async def greeted(address: str, token: str | None, origin: str | None = None) -> str:
    """What a websocket of Prefect answers to a client with this key."""
    try:
        async with websockets.connect(address, subprotocols=["prefect"], origin=origin) as socket_:  # type: ignore[list-item, arg-type]
            await socket_.send(json.dumps({"type": "auth", "token": token}))
            return str(json.loads(await socket_.recv())["type"])
    except websockets.exceptions.InvalidStatus as error:
        return str(error.response.status_code)
    except websockets.exceptions.ConnectionClosed:
        return "closed"


def command_lines(process: psutil.Process) -> list[str]:
    """Arguments of all that a process started, as `ps` shows them to everyone."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(child.cmdline()))
    return found


def of_worker(pages: Pages) -> dict[str, str]:
    reached = {
        "PREFECT_HOME": str(prefect_server.home(pages.root)),
        "PREFECT_API_URL": pages.api,
        "PREFECT_API_AUTH_STRING": pages.key,
    }
    return {"VIDBRIDGE_PROJECT": str(pages.root), **reached}


def ended(pages: Pages, run: str, headers: dict[str, str]) -> str:
    """How a run ended; SCHEDULED for one that no worker takes within 20 s."""
    state, deadline = "SCHEDULED", time.monotonic() + 20
    while state not in ("FAILED", "CRASHED", "CANCELLED", "COMPLETED"):
        time.sleep(0.5)
        state = str(sent("GET", f"{pages.api}/flow_runs/{run}", None, headers).json()["state"]["type"])
        if state == "SCHEDULED" and time.monotonic() > deadline:
            break
    return state
