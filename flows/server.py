"""A Prefect server for the length of one run, unless the user named one.

Prefect can start such a server itself, but it would outlive a flow that was killed, and it could not start while DVC and MLflow are
still being imported. So it is started here, under a guard (:mod:`flows.processes`), and waited for when it is needed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.errors import FlowError, UsageError
from flows.processes import guarded
from flows.project import state

#: 4 s on a warm machine, 26 s were seen for a first start (it creates its tables) on a slow one.
STARTUP_S = 120
DRAIN_S = 10
#: Names the server that `vidbridge ui` or `vidbridge deploy` serves, inside ``PREFECT_HOME``.
URL_FILE = "server.url"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_in_use(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: an address that only waits for its last packets is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a Prefect API answers at ``url`` (which ends in ``/api``)."""
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout_s) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def server_command(port: int) -> list[str]:
    """Prefect's server as one process on the loopback interface."""
    factory = "prefect.server.api.server:create_app"
    return [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        factory,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]


class Server:
    """A server that is starting at :attr:`address`. :meth:`url` waits until it answers."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address = f"http://127.0.0.1:{port}/api"
        self.process, self._log = process, log
        self._started = time.monotonic()

    def url(self) -> str:
        """The address of the API, once it answers.

        Raises:
            FlowError: it ended, or did not answer within :data:`STARTUP_S` seconds.
        """
        while not answers(self.address):
            if self.process.poll() is not None:
                tail = "\n  ".join(self._log.read_text(errors="replace").splitlines()[-5:])
                raise FlowError(
                    f"Prefect server: ended with status {self.process.returncode}; try again, or see {self._log}:\n  {tail}"
                )
            if time.monotonic() - self._started > STARTUP_S:
                raise FlowError(
                    f"Prefect server: no answer within {STARTUP_S} s; see {self._log}, or set PREFECT_API_URL to one that runs"
                )
            time.sleep(0.05)
        return self.address


def home(root: Path) -> Path:
    """``PREFECT_HOME``: where the server keeps its database and its log."""
    return Path(os.environ.get("PREFECT_HOME") or state(root) / "prefect")


def running_server(root: Path) -> str | None:
    """The API of the server that `vidbridge ui` or `vidbridge deploy` of this project is serving, if one is."""
    note = home(root) / URL_FILE
    url = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    return url if url and answers(url) else None


@contextmanager
def starting(root: Path) -> Iterator[Server | None]:
    """Start a server for this block, without waiting for it; None when ``PREFECT_API_URL`` names one, or this project has one.

    Set before Prefect is imported, the address keeps Prefect from starting yet another server of its own, which nobody would guard.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield None
        return
    if (url := running_server(root)) is not None:
        with _api_url(url):
            yield None
        return
    home(root).mkdir(parents=True, exist_ok=True)
    log = home(root) / "server.log"
    env = {**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    port = free_port()
    with log.open("ab") as stream, guarded(server_command(port), log.parent, env, stream) as process:
        server = Server(port, process, log)
        with _api_url(server.address):
            yield server


@contextmanager
def serving(root: Path, port: int) -> Iterator[Server]:
    """Serve API, pages and schedules at ``port`` of the loopback interface for this block; runs of this project find it meanwhile.

    Raises:
        UsageError: the port is in use.
    """
    if port_in_use(port):
        raise UsageError(f"port: {port} is in use; end what listens there, or choose another one")
    home(root).mkdir(parents=True, exist_ok=True)
    log, note = home(root) / "server.log", home(root) / URL_FILE
    address = f"http://127.0.0.1:{port}/api"
    env = {**os.environ, "PREFECT_UI_ENABLED": "1", "PREFECT_UI_API_URL": address, "PREFECT__SERVER_FINAL": "1"}
    with log.open("ab") as stream, guarded(server_command(port), log.parent, env, stream) as process, _api_url(address):
        server = Server(port, process, log)
        note.write_text(address, encoding="utf-8")
        try:
            yield server
        finally:
            note.unlink(missing_ok=True)


@contextmanager
def _api_url(url: str) -> Iterator[None]:
    before = os.environ.get("PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = url
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]
        if before is not None:
            os.environ["PREFECT_API_URL"] = before


@contextmanager
def connected(server: Server | None) -> Iterator[None]:
    """Flows of this block talk to ``server``; without one, to the one that the environment names. Waits until it answers.

    Leaving the block sends the logs and events that are still queued: after it, the server may be gone.
    """
    url = server.url() if server else os.environ["PREFECT_API_URL"]
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            APILogWorker.drain_all(timeout=DRAIN_S, at_exit=False)
            EventsWorker.drain_all(timeout=DRAIN_S, at_exit=False)
