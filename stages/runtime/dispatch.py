"""Run one verb of ``python -m stages`` in this process. Our own errors end it with one clear line,
defects with a traceback."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from stages.errors import VidbridgeError, fault_of
from stages.runtime.plain import fit, guard_logs
from stages.runtime.verbs import VERBS

#: Module that explains errors of servers, stores and remotes.
FOREIGN = "stages.tracking.runs.foreign"


def run(arguments: Sequence[str]) -> NoReturn:
    """Run a verb and exit with its status; wrong usage exits with status 2 and lists the verbs."""
    if not arguments or arguments[0] not in VERBS:
        value = " ".join(arguments) or "nothing"
        print(
            f"usage: python -m stages VERB [ROW]\nerror: VERB is {value}; there are {', '.join(VERBS)}", file=sys.stderr
        )
        sys.exit(2)
    verb, *rest = arguments
    run_verb(importlib.import_module(VERBS[verb].module).main, *rest)


def run_to_end(arguments: Sequence[str]) -> NoReturn:
    """Run a verb as the only work of this process, and end the process as soon as it is done.

    Once torch, transformers and TRL are imported, the interpreter takes 3 s of CPU to take itself
    apart. As a child of ``multiprocessing`` does, this waits for the threads, runs the functions
    that are registered with ``atexit``, flushes the streams, and leaves the rest to the kernel. An
    exception other than the status of :func:`run_verb` passes, and ends the process as usual.
    """
    try:
        run(arguments)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


def run_verb(main: Callable[..., int | None], *arguments: str) -> NoReturn:
    """Call ``main`` and exit with its status: 0 success, 1 failure with a message, 2 wrong usage.

    The message of an exception that this project defines names field, value and remedy, so only the
    message is printed. Any other exception is a defect and keeps its traceback.
    """
    guard_logs()
    try:
        status = main(*arguments)
    except VidbridgeError as error:
        for one in error.each():
            print(f"error: {fit(one)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if (fault := fault_of(error)) is None:
            raise
        print(f"error: {fit(fault)}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        # Imported by name, as the verbs are: it belongs to a layer above this module.
        if (message := importlib.import_module(FOREIGN).sentence_of(error)) is None:
            raise
        print(f"error: {fit(message)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(status or 0)


def one_row(verb: str, arguments: list[str], rows: list[str]) -> str:
    """Return the row that a verb was called with; wrong usage exits with status 2 and lists the
    rows."""
    if len(arguments) != 1 or arguments[0] not in rows:
        value = " ".join(arguments) or "nothing"
        print(
            f"usage: python -m stages {verb} ROW\nerror: ROW is {value}; params.yaml has {', '.join(rows) or 'none'}",
            file=sys.stderr,
        )
        sys.exit(2)
    return arguments[0]
