"""A server's key and note, and who receives the key; the server that a run starts for itself."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from flows.errors import FlowError, UsageError
from flows.processes import keys, prefect_server
from flows.processes.stream import guarded
from stages.runtime.liveness import identity_of, me
from tests.support.servers.locked import (
    EVIL,
    command_lines,
)


def test_the_server_of_a_run_is_locked_too_and_our_clients_get_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run`, `promote` and `ablate` start this one. A key of the user's own for another server does
    not get in the way.
    """
    from prefect.client.orchestration import get_client

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody:else")
    with prefect_server.starting(tmp_path) as running:
        assert running is not None
        api = running.url()
        port = api.rpartition(":")[2].removesuffix("/api")
        assert [
            one.laddr.ip
            for one in psutil.net_connections()
            if one.laddr and one.laddr.port == int(port) and one.status == "LISTEN"
        ] == ["127.0.0.1"]
        assert httpx.get(f"{api}/flows/count").status_code == 401
        assert httpx.post(f"{api}/deployments/filter", json={}, headers={"Origin": EVIL}).status_code == 403
        assert httpx.get(f"{api}/health", headers={"Host": "evil.example"}).status_code == 400
        assert [line for line in command_lines(psutil.Process()) if running.key.partition(":")[2] in line] == []
        with prefect_server.connected(running), get_client(sync_client=True) as client:
            client.create_flow_from_name("ours")
            assert [flow.name for flow in client.read_flows()] == ["ours"]
        home = tmp_path / "home"
        assert [
            path for path in home.rglob("*.log") if running.key.partition(":")[2].encode() in path.read_bytes()
        ] == []
    assert os.environ["PREFECT_API_AUTH_STRING"] == "somebody:else"
    assert "PREFECT_API_URL" not in os.environ


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
        # Notes of a process that is gone, of another user's, of one that began later under the same
        # number, of this number in another container, and of version 0.1.
        theirs = next(
            (one for one in psutil.process_iter(["uids"]) if one.info["uids"] and one.info["uids"].real != os.getuid()),
            None,
        )
        others = [replace(me(), pid=999999999), replace(me(), started="1"), replace(me(), namespace="1")]
        others += [who for who in (identity_of(theirs.pid) if theirs else None,) if who]
        notes = [*(f"{address}\n{who}\n" for who in others), f"{address}\n{os.getpid()}\n1.0\n", address, ""]
        for text in notes:
            (tmp_path / prefect_server.URL_FILE).write_text(text)
            assert prefect_server.running_server(tmp_path) is None
    assert heard == []


def test_a_server_that_takes_connections_and_says_nothing_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """As one that was stopped, or whose disk is busy. Where nobody listens, that is known at
    once."""
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


def test_a_key_of_another_user_a_link_a_pipe_and_other_text_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
