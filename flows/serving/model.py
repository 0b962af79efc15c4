"""A registered version behind an HTTP server."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

from flows.console import champion, show
from flows.errors import FlowError, UsageError
from flows.processes.addresses import Address, listening_address
from flows.processes.environment import stage_environment, state
from flows.processes.foreground import until_interrupted
from flows.processes.guard import GRACE_S
from flows.processes.logs import ServerLog
from flows.processes.stream import guarded
from stages.errors import InputError
from stages.tools.serving.limits import FOLDER, KEY, key_from_environment, limits_from_environment
from stages.tracking.session import Session

#: Loading a large model from a slow disk takes minutes.
STARTUP_S = 1800
LOG_LINES = 12
#: A folder that is served is noted as used so often: the cache folder forgets what was unused for a
#: day.
MARK_EVERY_S = 600.0
#: Files of a folder that are examined to find one that the example can name.
LOOKED_AT = 2000
_VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".mpg", ".mpeg")
#: Variables whose names end so hold secrets, and a server that answers strangers needs none of them
#: but its own key.
_SECRETS = ("KEY", "TOKEN", "PASSWORD", "SECRET", "CREDENTIALS")


def serve(session: Session, which: str, videos: Path | None, host: str, port: int) -> None:
    """Serve a version over HTTP until Ctrl-C or SIGTERM.

    Raises:
        UsageError: the address cannot be had, or can be reached by others and there is no key, or a
            limit in the environment is none.
        TrackingError: no such version, it does not say how it is asked, or its files are not to be
            had.
        FlowError: the server did not start, or ended by itself.
    """
    from stages.tracking.lineage.cache_folder import mark_used
    from stages.tracking.registry.named import find_named
    from stages.tracking.registry.servable import load_servable, usage_of_version

    if videos is not None and not videos.is_dir():
        raise UsageError("--videos", f"{str(videos)!r} is not a folder", "name the one that videos may be read from")
    changes = {FOLDER: str(videos)} if videos is not None else {}
    try:
        limits = limits_from_environment(changes)
        key = key_from_environment()
    except InputError as error:
        raise UsageError.from_error(error) from error
    address = listening_address(host, port)
    if not address.is_loopback and key is None:
        raise UsageError(
            "--host",
            f"{host!r} can be reached from other machines, and anyone who reaches it may send requests",
            f"set {KEY} to a secret that clients send as 'Authorization: Bearer …', or listen on 127.0.0.1",
        )
    with _ended_by_signals():
        root, project = session.root, session.project
        source = None if project is None else project / session.params.ingest.source
        version = find_named(session, which)
        usage = usage_of_version(version)
        champion.warn_of_moved_version(session.client, version)
        show.say(f"version {version.number} of {version.model} ({version.stage}): fetching and checking its files")
        folder = load_servable(root, version)
        log = state(root) / ("serving.log" if project is not None else f"serving-{socket.gethostname()}.log")
        show.say(f"loading the model; log: {log}")
        # The key is in the environment, which other users cannot read; a command line they can.
        # -P: nothing that lies in a cache folder, which several may share, is taken for our code.
        python = [sys.executable] if project is not None else [sys.executable, "-P"]
        command = [*python, "-m", "stages.tools.serving.app", str(folder), address.ip, str(address.port)]
        with guarded(command, root, _environment(session, changes)) as process, _in_use(partial(mark_used, folder)):
            assert process.stdout is not None
            with closing(ServerLog(log, process.stdout)):
                deadline = time.monotonic() + STARTUP_S
                while not _answers(address.url):
                    if process.poll() is not None or time.monotonic() > deadline:
                        last = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
                        raise FlowError("the server", "did not start", f"the end of {log}:\n  {last}")
                    time.sleep(0.1)
                show.say(
                    f"version {version.number} of {version.model} ({version.stage}) answers at {address.url} until"
                    " Ctrl-C"
                )
                where = (
                    "a path below " + str(limits.folder)
                    if limits.folder
                    else "none: no folder is open, so send video_base64"
                )
                show.say(f"video: {where}; fields: {address.url}/docs")
                show.say(_who_may_ask(address, key))
                if usage.caution:
                    show.say(f"note: {usage.caution}")
                command_line = example(address.url, limits.folder, limits.max_bytes, keyed=key is not None, own=source)
                show.say(f"try: {command_line}")
                try:
                    until_interrupted({"the server": process})
                finally:
                    _ask_to_end(process)


def _ask_to_end(guard: subprocess.Popen[bytes]) -> None:
    """Let the server end what it started, before its guard does so by force."""
    with suppress(psutil.NoSuchProcess, subprocess.TimeoutExpired):
        for server in psutil.Process(guard.pid).children():
            server.terminate()
        guard.wait(2 * GRACE_S)


def _who_may_ask(address: Address, key: str | None) -> str:
    if key is not None:
        wire = "" if address.is_loopback else "; it crosses the network as it is, so put a proxy with TLS before it"
        return f"key: clients send 'Authorization: Bearer …' with {KEY}{wire}"
    return f"key: none, so every program and user of this machine may ask; set {KEY} to demand one"


def _environment(session: Session, changes: dict[str, str]) -> dict[str, str]:
    environment = stage_environment(session.root, changes)
    if session.project is None:
        environment.pop("VIDBRIDGE_PROJECT", None)
    return {name: value for name, value in environment.items() if name == KEY or not name.upper().endswith(_SECRETS)}


@contextmanager
def _in_use(mark: Callable[[], None]) -> Iterator[None]:
    """Call ``mark`` at intervals while the block lasts."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(MARK_EVERY_S):
            mark()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block on SIGTERM as on Ctrl-C, at any moment: in order, with all that it started, and
    without a traceback.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        show.say("\nstopped")
    finally:
        signal.signal(signal.SIGTERM, before)


def _answers(url: str) -> bool:
    import httpx

    try:
        # Straight: a proxy of the environment has no business between this process and its own
        # server.
        return httpx.get(f"{url}/ping", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def example(url: str, folder: Path | None, max_bytes: int, *, keyed: bool, own: Path | None = None) -> str:
    """A command for a POSIX shell that this server answers: about a video in its folder, else one
    that is sent.

    Args:
        folder: folder that the server reads; None: it reads none.
        own: folder whose first video is sent then; without one, the client's own ``clip.mp4``.
        max_bytes: largest video that the server takes.
        keyed: the server requires a key.
    """
    found = None if folder is None else _first_video(folder, max_bytes)
    row = {"question": "What happens first?"} | ({"video": found} if found is not None else {"video_base64": "@"})
    body = json.dumps({"dataframe_records": [row]})
    # Through the standard input: a command line is seen by other users.
    secret = f"printf 'Authorization: Bearer %s' \"${KEY}\" | " if keyed else ""
    header = " -H @-" if keyed else ""
    asks = (
        f"{secret}curl -sS{header} -H 'Content-Type: application/json' {shlex.quote(f'{url}/invocations')}"
        " --data-binary"
    )
    if found is not None:
        return f"{asks} {shlex.quote(body)}"
    # The video goes where the sign stands; into a file, since a command line has not the room for
    # one.
    before, after = map(shlex.quote, body.split("@"))
    sent = None if own is None else _first_video(own, max_bytes)
    file = "clip.mp4" if own is None or sent is None else shlex.quote(str(own / sent))
    return (
        f"(printf %s {before}; base64 < {file} | tr -d '\\n'; printf %s {after}) > request.json && {asks} @request.json"
    )


def _first_video(folder: Path, max_bytes: int) -> str | None:
    """Path of a video below the folder, as a request names it."""
    looked_at = 0
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            looked_at += 1
            path = Path(place) / name
            named = path.relative_to(folder).as_posix()
            if (
                name.lower().endswith(_VIDEOS)
                and not name.startswith(".")
                and named.isprintable()
                and "\\" not in named
                and path.is_file()
                and not path.is_symlink()
                and path.stat().st_size <= max_bytes
            ):
                return named
            if looked_at >= LOOKED_AT:
                return None
    return None
