"""Warm processes: their children behave like processes of their own, and end with their
requester."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.checkout import ROOT

#: A package of the same name with one verb, so that the test needs no model: it tells what it was
#: given, then does as told.
VERB = """
import gc, json, os, subprocess, sys, threading, time
from pathlib import Path

def main(*arguments):
    told = {"arguments": arguments, "argv": sys.argv[1:], "folder": os.getcwd(), "mark": os.environ.get("MARK"),
            "warm": os.environ.get("VIDBRIDGE_WARM"),
            "pid": os.getpid(), "parent": os.getppid(), "preloaded": PRELOADED,
            "frozen": gc.get_freeze_count() > 0, "collects": gc.isenabled()}
    print(json.dumps(told), flush=True)
    print("heard: " + sys.stdin.readline().strip(), file=sys.stderr, flush=True)
    if arguments[0] == "sleep":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path("child").write_text(str(child.pid))
        time.sleep(600)
    if arguments[0] == "fail":
        raise RuntimeError("on purpose")
    return int(arguments[0])

PRELOADED = os.getpid()
"""
COPIED = ("warm", "plain", "dispatch")
#: Put behind the real table: importing our own libraries would take seconds.
SHORT_TABLE = """
VERBS = {"sft": Verb("stages.sft.stage", "model")}
LIBRARIES = {"data": ("json", "not_installed_here"), "model": ()}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package = tmp_path / "code/stages"
    package.mkdir(parents=True)
    for folder in (package, package / "runtime", package / "sft"):
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    for name in ("__main__.py", "errors.py", *(f"runtime/{name}.py" for name in COPIED)):
        (package / name).write_text((ROOT / "stages" / name).read_text())
    (package / "runtime/verbs.py").write_text((ROOT / "stages/runtime/verbs.py").read_text() + SHORT_TABLE)
    (package / "sft/stage.py").write_text(VERB)
    (tmp_path / "s").mkdir()
    return tmp_path


def environment(project: Path, **changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(project / "code"), "VIDBRIDGE_WARM": str(project / "s"), **changes}


@pytest.fixture
def warm(project: Path) -> Iterator[psutil.Process]:
    """The process that is asked for `sft`: a fork of the one that was started."""
    first = subprocess.Popen(
        [sys.executable, "-m", "stages.runtime.warm", str(project / "s")], cwd=project, env=environment(project)
    )
    deadline = time.monotonic() + 20
    while not (forks := psutil.Process(first.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    yield forks[0]
    with suppress(psutil.NoSuchProcess):
        forks[0].kill()
    first.terminate()
    first.wait(10)


def verb(project: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages", "sft", *arguments]
    env = environment(project, **changes)
    return subprocess.run(
        command, cwd=project, env=env, input="hello\n", capture_output=True, text=True, timeout=60, check=False
    )


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def asleep(project: Path, warm: psutil.Process) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A verb that sleeps in a child of the warm process: who asked, the child, a process that the
    child started."""
    with subprocess.Popen(
        [sys.executable, "-m", "stages", "sft", "sleep"],
        cwd=project,
        env=environment(project),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as asker:
        assert asker.stdin is not None
        assert asker.stdout is not None
        asker.stdin.write("hello\n")
        asker.stdin.flush()
        told = json.loads(asker.stdout.readline())
        note = project / "child"
        deadline = time.monotonic() + 20
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield asker, told["pid"], int(note.read_text())
        asker.kill()


def test_a_child_has_arguments_folder_environment_and_streams_of_who_asked(project: Path, warm: psutil.Process) -> None:
    done = verb(project, "7", "x", MARK="here")
    told = json.loads(done.stdout)
    assert done.returncode == 7
    assert "heard: hello" in done.stderr
    assert told["arguments"] == ["7", "x"]
    assert told["argv"] == ["sft", "7", "x"]
    assert (told["folder"], told["mark"], told["warm"]) == (str(project), "here", None)
    assert told["parent"] == told["preloaded"] == warm.pid
    assert (told["frozen"], told["collects"]) == (True, True)
    # Each is a process of its own, and a failure of one harms no other.
    failed = verb(project, "fail")
    assert failed.returncode == 1
    assert "on purpose" in failed.stderr
    assert verb(project, "0").returncode == 0
    assert warm.children() == []


def test_without_a_warm_process_the_verb_runs_by_itself(project: Path) -> None:
    done = verb(project, "3")
    told = json.loads(done.stdout)
    assert done.returncode == 3
    assert told["preloaded"] == told["pid"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ending_who_asked_ends_the_child_and_all_it_started_first(
    asleep: tuple[subprocess.Popen[str], int, int], warm: psutil.Process, number: signal.Signals
) -> None:
    asker, child, grandchild = asleep
    asker.send_signal(number)
    assert asker.wait(10) == 128 + signal.SIGTERM
    # No waiting here: after the end of the requesting process nothing may be left.
    assert gone(child, 0.2)
    assert gone(grandchild, 0.2)
    assert warm.is_running()


def test_killing_who_asked_ends_the_child(
    project: Path, asleep: tuple[subprocess.Popen[str], int, int], warm: psutil.Process
) -> None:
    asker, child, grandchild = asleep
    asker.kill()
    asker.wait()
    assert gone(child)
    assert gone(grandchild)
    assert verb(project, "0").returncode == 0
    assert warm.is_running()


def test_when_the_warm_process_is_killed_the_stage_fails_and_the_next_one_imports_for_itself(
    project: Path, asleep: tuple[subprocess.Popen[str], int, int], warm: psutil.Process
) -> None:
    asker, child, _ = asleep
    warm.kill()
    assert asker.wait(10) == 1
    os.killpg(child, signal.SIGKILL)  # a guard does it where there is one
    assert verb(project, "5").returncode == 5


def test_an_unknown_verb_is_refused(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages", "dance"],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "VERB is dance; there are sft" in done.stderr
