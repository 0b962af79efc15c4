"""One owner of a shared folder: real processes on a real folder, some in a PID namespace of their
own, as on another host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stages.runtime.leases import lease
from stages.runtime.leases.holder import Holder, holder
from stages.runtime.leases.lease import LeaseLost, take
from stages.runtime.liveness import me

#: Takes the folder, says so with the time, does one thing with it, and lets go when its input ends.
TAKES = """
import sys, time
from pathlib import Path
from stages.runtime.leases import lease
mine = lease.take(Path(sys.argv[1]), "grpo@bridge")
print("mine", flush=True)
sys.stdin.read()
mine.check()
with open(Path(sys.argv[1]) / "log", "a") as log:
    log.write("in\\n")
    log.flush()
    time.sleep(0.05)
    log.write("out\\n")
mine.release()
"""


class Processes:
    """Those of one test; all are ended with it."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def take(self, folder: Path, *, host: str | None = None) -> subprocess.Popen[str]:
        """``host``: a host name that this process believes in, which nobody here can look up."""
        code = f"import socket; socket.gethostname = lambda: {host!r}\n{TAKES}" if host else TAKES
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.all.append(process)
        return process

    def close(self) -> None:
        for process in self.all:
            process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait()


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_LOST_AFTER_S", "1")
    monkeypatch.delenv("RANK", raising=False)


def has_it(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"


def test_the_second_waits_says_for_whom_and_goes_on_when_the_first_has_ended(
    tmp_path: Path, processes: Processes
) -> None:
    first = processes.take(tmp_path)
    has_it(first)
    second = processes.take(tmp_path)
    assert second.stderr is not None
    assert second.stderr.readline().startswith(
        f"grpo@bridge: {tmp_path} is held by process {first.pid} on {me().host}; waiting until"
    )
    # It lives: a stopped process of this host is one too, however long its count stands still.
    first.send_signal(signal.SIGSTOP)
    time.sleep(1.3)
    assert second.poll() is None
    found = holder(tmp_path)
    assert found is not None
    assert (found.number, found.process and found.process.pid) == (1, first.pid)
    first.send_signal(signal.SIGCONT)
    first.communicate("", timeout=10)
    has_it(second)
    second.communicate("", timeout=10)
    assert [first.returncode, second.returncode] == [0, 0]
    assert (tmp_path / "log").read_text().split() == ["in", "out"] * 2
    assert holder(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_killed_owner_of_this_host_is_followed_at_once(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIDBRIDGE_LOST_AFTER_S", "600")
    first = processes.take(tmp_path)
    has_it(first)
    assert take(tmp_path, "scratch", wait=False) is None
    first.kill()
    first.wait()
    with lease.held(tmp_path, "grpo@bridge") as mine:
        assert mine.number == 2
        assert f"was held by process {first.pid} on {me().host}, which has ended; taken over" in capsys.readouterr().err
        assert sorted(path.name for path in (tmp_path / "lease").iterdir()) == ["2", "2.beat"]
        (tmp_path / "kept").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_owner_elsewhere_is_judged_by_its_count_and_finds_out_when_it_wakes_up(
    tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    first = processes.take(tmp_path, host="pod-7f4")
    has_it(first)
    assert take(tmp_path, "scratch", wait=False) is None, "its count changes while it is watched"
    first.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    mine = take(tmp_path, "grpo@bridge")
    assert mine is not None
    assert time.monotonic() - started >= 1
    assert (
        f"held by process {first.pid} on pod-7f4, whose sign of life stood still for 1 s; taken over"
        in capsys.readouterr().err
    )
    first.send_signal(signal.SIGCONT)
    _, said = first.communicate("", timeout=10)
    assert first.returncode == 1
    assert f"LeaseLost: {tmp_path}: process {os.getpid()} on {me().host} has taken it over" in said
    assert not (tmp_path / "log").exists(), "what is there belongs to another now"
    mine.check()
    mine.release()


def test_of_many_that_see_a_lost_owner_one_takes_over_at_a_time(tmp_path: Path, processes: Processes) -> None:
    (tmp_path / "lease").mkdir()
    # Two, as one leaves them that was killed while it took over.
    for number, (token, after) in enumerate((("a", ""), ("b", "a")), 1):
        row = {
            "token": token,
            "process": str(replace(me(), host="lost")),
            "job": "",
            "after": after,
            "beat_every_s": 0.05,
        }
        (tmp_path / f"lease/{number}").write_text(json.dumps(row))
    waiting = [processes.take(tmp_path) for _ in range(3)]
    for process in waiting:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(30) for process in waiting] == [0] * 3
    assert (tmp_path / "log").read_text().split() == ["in", "out"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_an_owner_that_was_killed_before_it_said_its_name_is_waited_for_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease/1").touch()
    started = time.monotonic()
    with lease.held(tmp_path, "grpo@bridge"):
        assert time.monotonic() - started >= 1


def test_one_that_believes_in_an_old_number_goes_back(tmp_path: Path) -> None:
    """It looked, the folder was deleted and taken again, and only then it took over from the owner
    it had seen."""
    with lease.held(tmp_path, "grpo@bridge") as mine:
        old = Holder(5, "of the deleted folder", replace(me(), started="1"))
        assert lease._create(tmp_path, old) is None
        mine.check()
        assert holder(tmp_path) == Holder(1, mine.token, me(), beat_every_s=0.05)


def _left(folder: Path, number: int, token: str, after: str = "", host: str | None = None) -> Holder:
    """Leave the files of a killed process: of this machine, or of ``host``."""
    process = replace(me(), host=host) if host else replace(me(), started="1")
    row = {"token": token, "process": str(process), "job": "", "after": after, "beat_every_s": 0.05}
    (folder / "lease").mkdir(parents=True, exist_ok=True)
    (folder / f"lease/{number}").write_text(json.dumps(row))
    return Holder(number, token, process, "", after, 0.05)


def test_of_a_chain_of_killed_take_overs_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _left(tmp_path, 1, "a")
    _left(tmp_path, 2, "b", after="a", host="lost")
    found = _left(tmp_path, 3, "c", after="b", host="lost")
    gone: list[int] = []
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.isdecimal():
            gone.append(int(path.name))
        real(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        mine = lease._create(tmp_path, found)
    assert mine is not None
    assert gone == [1, 2, 3], "each is known by the next until it is gone"
    mine.release()
    # As one left it that deleted the newest first: nobody names lease 1.
    _left(tmp_path, 1, "a")
    _left(tmp_path, 3, "c", after="b")
    with lease.held(tmp_path, "grpo@bridge") as mine:
        assert [path.name for path in (tmp_path / "lease").iterdir() if path.suffix != ".beat"] == [str(mine.number)]


def test_a_lease_that_stops_a_take_over_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "_REFUSED_OFTEN", 1)

    def say(text: str) -> None:
        if "cannot" in text:
            print(text)
            (tmp_path / "lease/1").unlink()

    monkeypatch.setattr(lease, "_say", say)
    _left(tmp_path, 1, "a", host="lost")
    _left(tmp_path, 3, "c", after="b")
    with lease.held(tmp_path, "grpo@bridge"):
        said = capsys.readouterr().out
    assert (
        f"{tmp_path} cannot be taken over, though its owner has ended: in it are leases of process {os.getpid()} on"
        " lost" in said
    )


def test_an_error_of_the_file_system_is_not_the_loss_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with lease.held(tmp_path, "grpo@bridge") as mine:
        own = tmp_path / "lease/1"
        text = own.read_text()
        # EISDIR, where a network file system says ESTALE or EIO. In one step each way: a look that
        # finds no file is a loss.
        (tmp_path / "elsewhere").symlink_to(tmp_path)
        (tmp_path / "elsewhere").replace(own)
        mine.check()
        said, deadline = "", time.monotonic() + 20
        while "(Is a directory)" not in said:
            assert time.monotonic() < deadline, f"no word of the directory within 20 s, but {said!r}"
            time.sleep(0.05)
            said += capsys.readouterr().err
        time.sleep(0.15)
        assert mine._thread.is_alive()
        assert (said + capsys.readouterr().err).count("the sign of life cannot be given (Is a directory)") == 1
        (tmp_path / "back").write_text(text)
        (tmp_path / "back").replace(own)
        beat, deadline = tmp_path / "lease/1.beat", time.monotonic() + 20
        before = beat.read_text()
        while beat.read_text() <= before:
            assert time.monotonic() < deadline, f"no sign of life after {before} within 20 s"
            time.sleep(0.05)
        own.write_text(text.replace(mine.token, "another"))
        with pytest.raises(LeaseLost):
            mine.check()


def test_only_the_first_process_of_a_training_holds_and_the_others_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "12345")
    monkeypatch.setenv("RANK", "0")
    with lease.held(tmp_path, "grpo@bridge"):
        monkeypatch.setenv("RANK", "1")
        lease.follow(tmp_path)
        assert [path.name for path in (tmp_path / "lease").iterdir() if path.suffix != ".beat"] == ["1"]


def test_clearing_leaves_nothing_and_nothing_is_cleared_that_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    mine = take(folder, "scratch")
    assert mine is not None
    (folder / "saved").mkdir()
    (folder / "saved/model.safetensors").touch()
    (folder / "lease/1").unlink()
    with pytest.raises(LeaseLost, match="a process that has released it again has taken it over"):
        mine.clear()
    assert (folder / "saved/model.safetensors").exists()
    mine.release()
    other = take(folder, "scratch")
    assert other is not None
    other.clear()
    other.release()
    assert not folder.exists()
