"""Costly parts of tests, made once for all processes that share the work of a run of the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Folder ``name`` of this run of the tests, which the first process that asks for it makes.

    Nobody may change the folder: a test that writes takes a copy. Another run has a folder of its
    own.

    Args:
        factory: of pytest; it knows the run's folder.
        name: of the folder, another one for each ``make``.
        make: called with a path at which nothing is.
    """
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Each worker has a folder inside of that of the run.
        run = run.parent
    folder, made = run / name, run / f"{name}.made"
    with FileLock(run / f"{name}.lock"):
        if not made.exists():
            # What a process has left that failed here.
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder
