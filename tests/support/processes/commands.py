"""The command line in a process of its own, forked from one that has made the imports: they are
paid once for all commands of a run of the tests."""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flows.processes.environment import QUIET
from tests.support.checkout import ROOT
from tests.support.processes.forks import Request, parts

#: Time that the commands of one call have.
LONGEST_S = 300
#: Variables that an interpreter reads when it starts: nothing of them reaches a fork.
_AT_THE_START = ("PYTHON", "LC_", "LANG")


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        return self.stdout + self.stderr


def vidbridge(*arguments: str, cwd: Path, **env: str) -> Ended:
    """One command, as it is called; ``env`` is added to its environment."""
    (ended,) = commands(cwd, [({}, arguments)], **env)
    return ended


def commands(cwd: Path, wanted: Sequence[tuple[Mapping[str, str], Sequence[str]]], **env: str) -> list[Ended]:
    """Commands after each other in one process, each with what is added to its environment; ``env``
    is added to all of them."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    if any(name.startswith(_AT_THE_START) for name in env):
        with _forking(environ) as process:
            return _ended_in(process, cwd, wanted, environ)
    try:
        return _ended_in(_warm(), cwd, wanted, environ)
    except BaseException:
        # A test that was ended here by its time-out has left an answer unread: the next one begins
        # with a process of its own.
        _warm().kill()
        _warm.cache_clear()
        raise


def _ended_in(
    process: subprocess.Popen[str],
    cwd: Path,
    wanted: Sequence[tuple[Mapping[str, str], Sequence[str]]],
    environ: Mapping[str, str],
) -> list[Ended]:
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        for file in (out, err):
            file.touch()
        process.stdin.write(Request(str(cwd), environ, wanted, str(out), str(err)).line())
        process.stdin.flush()
        child = int(process.stdout.readline())
        if not select.select([process.stdout], [], [], LONGEST_S)[0]:
            os.kill(child, signal.SIGKILL)
        status = process.stdout.readline().strip()
        said, told = out.read_text(), err.read_text()
    (statuses, outs), (_, errs) = parts(said), parts(told)
    assert len(statuses) == len(outs) == len(errs) == len(wanted), f"ended with {status} or too late:\n{said}{told}"
    return [Ended(*one) for one in zip(statuses, outs, errs, strict=True)]


def _forking(environ: Mapping[str, str]) -> subprocess.Popen[str]:
    """It ends where its input does."""
    # By its path, and not as a module, which the command line would take for its own name.
    command = [sys.executable, "-P", str(ROOT / "tests/support/processes/forks.py")]
    return subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@cache
def _warm() -> subprocess.Popen[str]:
    named = ("VIDBRIDGE_", "MLFLOW_", "PREFECT_", "DVC_", "GIT_")
    neutral = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    process = _forking({**neutral, **QUIET, "PYTHONPATH": str(ROOT)})
    atexit.register(process.communicate)
    return process
