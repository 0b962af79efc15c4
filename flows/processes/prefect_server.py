"""A Prefect server for the length of one run, unless the user named one.

Prefect can start such a server itself, but it would outlive a flow that was killed, and it could
not start while DVC and MLflow are still being imported. So it is started here, under a guard
(:mod:`flows.processes.stream`) and behind a door (:mod:`flows.processes.door`), and waited for when
it is needed. It asks for the key of the project (:mod:`flows.processes.keys`), which clients find
in ``PREFECT_API_AUTH_STRING``.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from flows.errors import FlowError, UsageError
from flows.processes.environment import state
from flows.processes.keys import key_file, own_key, private_folder, read_key
from flows.processes.stream import guarded
from stages.errors import Terminated
from stages.runtime.liveness import identity_of, parse, process_state
from stages.tracking.lineage.uri import display_uri

#: 4 s on a warm machine, 26 s for a first start (it creates its tables) on a slow one; over 120 s
#: were seen on a very busy one.
STARTUP_S = 300
DRAIN_S = 10
#: File that names the server of `vidbridge ui` or `vidbridge deploy`, inside ``PREFECT_HOME``: its
#: address, its process, since when.
URL_FILE = "server.url"
LOOPBACK = "127.0.0.1"
_URL, _KEY = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"
_SERVER_KEY = "PREFECT_SERVER_API_AUTH_STRING"
#: Services that the server of a single run has no use for. They wrote into its SQLite file beside
#: the one that records stages, and now and then each waited a minute for the other ("database is
#: locked").
_NOT_NEEDED = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in ("EVENT_PERSISTER", "TRIGGERS")}
#: A connection waits in the socket's queue while its server is starting.
_BACKLOG = 128
#: A server that takes connections and says nothing (it is stopped, or its disk is busy) is waited
#: for so long.
STILL_S = 120.0


def free_port() -> int:
    """Free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def answers(url: str, timeout_s: float = 2.0, *, patience_s: float = STILL_S) -> bool:
    """Return whether a Prefect API answers at ``url`` (which ends in ``/api``). If nothing listens
    that is known at once; a server that accepts connections but sends nothing is queried again, for
    ``patience_s`` seconds.
    """
    until, warned = time.monotonic() + patience_s, False
    while True:
        asked_at = time.monotonic()
        if (status := _status(f"{url.rstrip('/')}/health", None, timeout_s)) is not None:
            return status == 200
        silent = time.monotonic() - asked_at >= timeout_s
        if not silent or time.monotonic() > until:
            return False
        if not warned:
            warned = True
            sys.stderr.write(
                f"Prefect server {display_uri(url)}: takes connections and says nothing; waiting up to {patience_s:g}"
                " s\n"
            )


def accepts(url: str, key: str, timeout_s: float = 10.0) -> bool:
    """Return whether the Prefect API at ``url`` accepts ``key``."""
    return _status(_version(url), key, timeout_s) == 200


def _version(url: str) -> str:
    return f"{url.rstrip('/')}/version"


def _status(url: str, key: str | None, timeout_s: float) -> int | None:
    found = request(url, key, timeout_s)
    return None if found is None else found[0]


def request(url: str, key: str | None, timeout_s: float) -> tuple[int, bytes] | None:
    """Status and content of a server's response to a request with ``key``; for an error the status
    only. None if it does not answer.
    """
    if not url.startswith(("http://", "https://")):
        return None
    request = urllib.request.Request(url)  # noqa: S310
    if key is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(key.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310
            return int(reply.status), bytes(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""
    except OSError:
        return None


@contextmanager
def listening(option: str, port: int) -> Iterator[socket.socket]:
    """Open a listening socket on ``port`` of the loopback interface (0: any free one), so that
    nobody can take its place.

    Raises:
        UsageError: the port is in use; the message begins with ``option``.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            if isinstance(error, OverflowError):
                remedy = "set one from 1 to 65535, or 0 for any free one"
                raise UsageError(option, f"{port} is not a port", remedy) from error
            raise UsageError(option, f"{port} is in use", "end what listens there, or choose another one") from error
        yield listener


@contextmanager
def behind_door(
    which: str, listener: socket.socket, cwd: Path, env: Mapping[str, str], log: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve ``which`` (see :mod:`flows.processes.door`) on ``listener`` for this block; the socket
    passes to the server.
    """
    command = [sys.executable, "-P", "-m", "flows.processes.door", which, str(listener.fileno())]
    with guarded(command, cwd, env, log, handed_on=(listener.fileno(),)) as process:
        listener.close()  # what is held here would look alive when the server is dead
        yield process


def private_log(path: Path) -> IO[bytes]:
    """Open the log at ``path`` for appending, readable by its owner only."""
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


class Server:
    """A server that is starting at :attr:`address` and requires :attr:`key`. :meth:`url` waits
    until it answers.
    """

    def __init__(self, address: str, key: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.address, self.key = address, key
        self.process, self._log = process, log
        self._started = time.monotonic()

    def url(self) -> str:
        """Address of the API, once it answers.

        Raises:
            FlowError: it ended, or did not answer within :data:`STARTUP_S` seconds.
        """
        while not answers(self.address, patience_s=0):
            if self.process.poll() is not None:
                tail = "\n  ".join(self._log.read_text(errors="replace").splitlines()[-5:])
                raise FlowError(
                    "Prefect server",
                    f"ended with status {self.process.returncode}",
                    f"try again, or see {self._log}:\n  {tail}",
                )
            if time.monotonic() - self._started > STARTUP_S:
                raise FlowError(
                    "Prefect server",
                    f"no answer within {STARTUP_S} s",
                    f"see {self._log}, or set PREFECT_API_URL to one that runs",
                )
            time.sleep(0.05)
        return self.address


def home(root: Path) -> Path:
    """Folder of the server's database, log and key, ``PREFECT_HOME``."""
    return Path(os.environ.get("PREFECT_HOME") or state(root) / "prefect")


def _own_home(root: Path) -> Path:
    folder = private_folder(home(root))
    if folder == state(root) / "prefect":
        folder.chmod(0o700)  # a folder of 0.1 may be open to others, who have no business here
    return folder


def running_server(root: Path) -> str | None:
    """API of the server that `vidbridge ui` or `vidbridge deploy` of this project is serving; None
    if there is none.

    Checks its process first: at the port of a server that is gone another user may listen, and
    would receive the key.

    Raises:
        FlowError: it runs, and does not take the key of the project.
    """
    noted = _noted(home(root) / URL_FILE)
    if noted is None or not answers(noted):
        return None
    if not accepts(noted, read_key(home(root))):
        raise FlowError(
            noted,
            f"refuses the key in {key_file(home(root))}",
            "end vidbridge ui or deploy there and start it again",
        )
    return noted


def _noted(note: Path) -> str | None:
    """Address in ``note`` while the process that it names is alive and ours; a process of another
    host or container is neither.
    """
    lines = note.read_text(encoding="utf-8", errors="replace").splitlines() if note.is_file() else []
    if len(lines) != 2 or not lines[0].startswith(f"http://{LOOPBACK}:"):
        return None  # none, half written, or of 0.1, which identified processes by number only
    process = parse(lines[1])
    if process is None or process_state(process) != "alive":
        return None
    try:
        return lines[0] if psutil.Process(process.pid).uids().real == os.getuid() else None
    except psutil.Error:
        return None


@contextmanager
def _note(note: Path, address: str, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Name the server in ``note`` for this block, unless a running one is named there; removes only
    what it wrote.
    """
    text = f"{address}\n{identity_of(process.pid)}\n"
    if _noted(note) is None:
        fresh = note.with_name(f"{URL_FILE}.{process.pid}")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(note)
    try:
        yield
    finally:
        if note.is_file() and note.read_text(encoding="utf-8", errors="replace") == text:
            note.unlink()


@contextmanager
def starting(root: Path) -> Iterator[Server | None]:
    """Start a server for this block, without waiting for it; None when ``PREFECT_API_URL`` names
    one, or this project has one.

    Set before Prefect is imported, the address keeps Prefect from starting yet another server of
    its own, which nobody would guard.

    Raises:
        FlowError: the key of the project is not private, or the server that runs refuses it.
    """
    if os.environ.get(_URL):
        yield None
        return
    if (url := running_server(root)) is not None:
        with reaching(url, read_key(home(root))):
            yield None
        return
    env = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", **_NOT_NEEDED}
    with listening("port", 0) as listener, _started(root, listener, env) as server:
        yield server


@contextmanager
def serving(root: Path, port: int) -> Iterator[Server]:
    """Serve API, pages and schedules at ``port`` of the loopback interface for this block; runs of
    this project find it meanwhile.

    Raises:
        UsageError: the port is in use.
        FlowError: the key of the project is not private.
    """
    with listening("port", port) as listener:
        address = _address(listener)
        env = {
            "PREFECT_UI_ENABLED": "1",
            "PREFECT_UI_API_URL": address,
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        }
        with _started(root, listener, env) as server, _note(home(root) / URL_FILE, address, server.process):
            yield server


def _address(listener: socket.socket) -> str:
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}/api"


@contextmanager
def _started(root: Path, listener: socket.socket, settings: Mapping[str, str]) -> Iterator[Server]:
    folder, address = _own_home(root), _address(listener)
    key = own_key(folder)
    env = {
        **os.environ,
        **settings,
        "PREFECT__SERVER_FINAL": "1",
        _SERVER_KEY: key,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address.removesuffix("/api"),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }
    log = folder / "server.log"
    with (
        private_log(log) as stream,
        behind_door("prefect", listener, folder, env, stream) as process,
        reaching(address, key),
    ):
        yield Server(address, key, process, log)


@contextmanager
def reaching(url: str, key: str) -> Iterator[None]:
    """Connect clients of this process, and of those that it starts, to this project's server at
    ``url`` for this block.
    """
    before = {name: os.environ.get(name) for name in (_URL, _KEY)}
    os.environ.update({_URL: url, _KEY: key})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def connected(server: Server | None) -> Iterator[None]:
    """Connect flows of this block to ``server``; without one, to the one that the environment
    names. Waits until it answers.

    Leaving the block sends the logs and events that are still queued: after it, the server may be
    gone.
    """
    url = server.url() if server else os.environ[_URL]
    key = server.key if server else os.environ.get(_KEY)
    from prefect.events.worker import EventsWorker
    from prefect.exceptions import TerminationSignal
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

    # A key that the environment does not name may stand in a profile of the user's.
    with temporary_settings({PREFECT_API_URL: url} | ({PREFECT_API_AUTH_STRING: key} if key else {})):
        if (
            server is None
            and not PREFECT_API_KEY.value()
            and _status(_version(url), PREFECT_API_AUTH_STRING.value(), 10.0) == 401
        ):
            raise FlowError(
                "PREFECT_API_URL",
                f"{display_uri(url)} asks for a key and refuses ours",
                "set PREFECT_API_AUTH_STRING to it (user:password)",
            )
        try:
            yield
        except TerminationSignal as error:
            # Prefect sends the signal once more, which the first process of a container does not
            # feel.
            raise Terminated(128 + signal.SIGTERM) from error
        finally:
            APILogWorker.drain_all(timeout=DRAIN_S, at_exit=False)
            EventsWorker.drain_all(timeout=DRAIN_S, at_exit=False)


def pages(url: str) -> str:
    """Address of the pages that belong to an API, without a password."""
    return display_uri(url.rstrip("/").removesuffix("/api"))
