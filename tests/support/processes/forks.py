"""A process that has made the imports of the command line and works on each request in a fork of
itself; a script, see ``commands.py``."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from stages.runtime.dispatch import run_and_leave

#: Imports of commands that read a project. None of them reads the environment while it is imported,
#: as Prefect and the hub's client do, since a request has its own.
IMPORTS = (
    "flows.cli.main",
    "flows.project.diagnosis.findings",
    "flows.project.run",
    "flows.repro.plan",
    "flows.repro.reproduce",
    "stages.tools.dataset.check",
    "dvc.repo",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking.client",
)

_MARK = "\n=====ended with "


@dataclass(frozen=True)
class Request:
    """Commands to run after each other in one process, each with what is added to its environment.
    Their output goes to the files ``out`` and ``err``."""

    folder: str
    environ: Mapping[str, str]
    wanted: Sequence[tuple[Mapping[str, str], Sequence[str]]]
    out: str
    err: str

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def serve() -> Request | None:
    """Fork for each line of the standard input, and say how the child ended. Returns the request in
    every child, and None in this process at the input's end."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return Request(**json.loads(line))
        print(child, flush=True)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)
    return None


def work(request: Request) -> None:
    """Run the commands of a request, and mark in both outputs where each ends, and with which
    status. What a command leaves in the environment is taken back before the next one."""
    from flows.cli.main import main

    for number, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, request.out, os.O_WRONLY),
        (2, request.err, os.O_WRONLY),
    ):
        os.dup2(os.open(path, mode | os.O_APPEND), number)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environ)
    for added, arguments in request.wanted:
        before = dict(os.environ)
        os.environ.update(added)
        sys.argv = ["vidbridge", *arguments]
        status: Any = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        os.environ.clear()
        os.environ.update(before)
        for stream in (sys.stdout, sys.stderr):
            print(f"{_MARK}{status}", file=stream, flush=True)


def parts(text: str) -> tuple[list[int], list[str]]:
    """Statuses and outputs of the commands of a request, from one of its two files."""
    said = text.split(_MARK)
    ended = [part.partition("\n") for part in said[1:]]
    return [int(status) for status, _, _ in ended], [said[0], *(after for _, _, after in ended)][: len(ended)]


if __name__ == "__main__":
    for name in IMPORTS:
        importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"{threading.enumerate()}: a fork has none of the threads that an import has started")
    # DVC's import has put colorama's around them; the command line says of its own streams what
    # becomes of characters that a terminal cannot show.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    # The collector would write to, and so copy, every page of what was imported.
    gc.freeze()
    if (asked := serve()) is not None:
        run_and_leave(partial(work, asked))
