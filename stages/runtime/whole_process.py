"""Begin and end of a process whose imports take longer than its work.

Half a million objects of DVC, Prefect, MLflow, torch, transformers and TRL stay to the end. The
collector looks at them again and again while they are imported, and the interpreter takes them
apart one by one at the end, which is .3 s of CPU of a command, and 3 s of a stage that trains.
Neither is needed: the kernel takes the memory back. Only the standard library is imported here.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

#: Objects that are made before the collector looks at the youngest; Python's own number is 700.
COLLECTED_EVERY = 100_000


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
