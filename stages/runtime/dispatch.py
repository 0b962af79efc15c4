"""Run one verb of ``python -m stages``, or a command, as the work of this process. Our own errors
end it with one clear line, defects with a traceback.

Half a million objects of DVC, Prefect, MLflow, torch, transformers and TRL stay to the end of a
process. The collector looks at them again and again while they are imported, and the interpreter
takes them apart one by one at the end, which is .3 s of CPU of a command, and 3 s of a stage that
trains. Neither is needed: the kernel takes the memory back.
"""

from __future__ import annotations

import atexit
import gc
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
#: Objects that are made before the collector looks at the youngest; Python's own number is 700.
COLLECTED_EVERY = 100_000


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


def import_quickly() -> None:
    """Let the collector of this process run seldom, from now on."""
    gc.set_threshold(COLLECTED_EVERY)


def run_and_leave(main: Callable[[], object]) -> NoReturn:
    """Run ``main`` as the only work of this process, and end it with the status that it exits with;
    0 if it returns.

    As a child of :mod:`multiprocessing` does, this waits for the threads, runs the functions that
    are registered with :mod:`atexit`, flushes the streams, and leaves. An exception, and an exit
    with a message, pass, so that the interpreter reports them and ends in its own way.
    """
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    else:
        status = 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
