"""Address that a server listens on, and its log."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.errors import UsageError
from flows.processes import logs
from flows.processes.addresses import Address, listening_address
from flows.processes.logs import ServerLog
from tests.support.processes.commands import vidbridge


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("127.0.0.1", 99_999_999, "--port: 99999999 is not a port; set one from 1 to 65535"),
        ("127.0.0.1", -1, "--port: -1 is not a port"),
        ("999.1.1.1", 0, "--host: '999.1.1.1' does not resolve"),
        ("nowhere.invalid", 0, "--host: 'nowhere.invalid' does not resolve"),
        ("", 0, "--host: '' does not resolve"),
        ("a" * 300, 0, "does not resolve"),
        ("x\0y", 0, "does not resolve"),
        ("203.0.113.7", 0, "--host: '203.0.113.7' is not an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_sentence(host: str, port: int, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        listening_address(host, port)
    assert says in str(refused.value)


def test_a_port_in_use_is_told(taken: int) -> None:
    with pytest.raises(UsageError, match=f"--port: {taken} is in use"):
        listening_address("127.0.0.1", taken)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may open any port")
def test_a_privileged_port_is_told() -> None:
    with pytest.raises(UsageError, match="--port: 1 may be opened by the system's administrator only"):
        listening_address("127.0.0.1", 1)


def test_addresses_are_written_as_urls() -> None:
    assert Address("::1", 80).url == "http://[::1]:80"
    assert Address("0.0.0.0", 80).url == "http://127.0.0.1:80"
    assert Address("::", 80).url == "http://[::1]:80"
    assert [Address(ip, 1).is_loopback for ip in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "10.0.0.1")] == [
        True
    ] * 3 + [False] * 3
    for host in ("127.0.0.1", "localhost", "::1", "[::1]"):
        found = listening_address(host, 0)
        assert found.is_loopback
        assert 0 < found.port < 65536


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        (["--port", "99999999"], None, "error: --port: 99999999 is not a port"),
        (["--host", "999.1.1.1"], None, "error: --host: '999.1.1.1' does not resolve"),
        (["--videos", "nofolder"], None, "error: --videos: "),
        (["--host", "0.0.0.0"], None, "error: --host: '0.0.0.0' can be reached from other machines"),
        (["--host", "0.0.0.0"], "short", "error: VIDBRIDGE_SERVE_KEY: 5 characters; set at least 16"),
    ],
)
def test_the_command_says_so_and_ends_with_2(options: list[str], key: str | None, says: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    env = {"VIDBRIDGE_SERVE_KEY": key} if key else {}
    done = vidbridge("serve", *options, cwd=tmp_path, **env)
    assert done.returncode == UsageError.status
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_log_is_bounded_in_lines_and_size_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 4000)
    path = tmp_path / "serving.log"
    path.write_text("of an earlier server\n")
    path.chmod(0o644)
    code = r"print('\x1b]0;title\x07 é'); print('x' * 1_000_000); print('\n'.join(f'line {n}' for n in range(2000)))"
    with subprocess.Popen([sys.executable, "-X", "utf8", "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        log = ServerLog(path, process.stdout)
        process.wait(30)
        log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["serving.log", "serving.log.1", "serving.log.2"]
    assert all(file.stat().st_size <= 4000 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert path.read_text().splitlines()[-1] == "line 1999"


def test_control_characters_in_a_log_are_visible(tmp_path: Path) -> None:
    code = r"print('\x1b]0;title\x07 é'); print('x' * 1_000_000); print('end')"
    with subprocess.Popen([sys.executable, "-X", "utf8", "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        log = ServerLog(tmp_path / "log", process.stdout)
        process.wait(30)
        log.close()
    first, cut, last = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert (first, last) == (r"\x1b]0;title\x07 é", "end")
    assert set(cut) == {"x"}
    assert len(cut) <= logs.LINE_CHARACTERS
