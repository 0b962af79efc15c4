"""The command line in a process of its own, several commands after each other: their imports are
made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkout import ROOT

_MARK = "\n=====ended with "
#: Whatever a command leaves in the environment is taken back before the next one.
_DRIVER = f"""
import json, os, sys, traceback
from flows.cli.main import main
for env, arguments in json.loads(sys.argv[1]):
    before = dict(os.environ)
    os.environ.update(env)
    sys.argv = ["vidbridge", *arguments]
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    os.environ.clear()
    os.environ.update(before)
    for stream in (sys.stdout, sys.stderr):
        print(f{_MARK!r} + str(status), file=stream, flush=True)
"""


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        return self.stdout + self.stderr


def vidbridge(*arguments: str, cwd: Path, **env: str) -> Ended:
    """One command, as it is called."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "flows.cli.main", *arguments]
    done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=120, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def commands(cwd: Path, wanted: Sequence[tuple[Mapping[str, str], Sequence[str]]], **env: str) -> list[Ended]:
    """Each command with what is added to its environment; ``env`` is added to all of them."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [
        sys.executable,
        "-c",
        _DRIVER,
        json.dumps([(dict(added), list(arguments)) for added, arguments in wanted]),
    ]
    done = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=300, check=False)
    out, err = done.stdout.split(_MARK), done.stderr.split(_MARK)
    assert len(out) == len(err) == len(wanted) + 1, done.stdout + done.stderr
    statuses = [int(part.partition("\n")[0]) for part in out[1:]]
    # Each part begins with the status of the one before.
    texts = [[parts[0], *(part.partition("\n")[2] for part in parts[1:-1])] for parts in (out, err)]
    return [Ended(status, said, told) for status, said, told in zip(statuses, *texts, strict=True)]
