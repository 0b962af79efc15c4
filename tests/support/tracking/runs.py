"""Runs as the store has them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.entities import Run

from stages.runtime.paths import DATABASE
from stages.tracking.runs.store import open_client


def status(project: Path, run_id: str | None) -> str:
    assert run_id is not None
    return str(open_client(project).get_run(run_id).info.status)


def logged(run: Run) -> dict[str, float]:
    """The metrics of a run, less what its process cost."""
    return {name: value for name, value in run.data.metrics.items() if not name.startswith("process/")}


def into_one_file(project: Path) -> None:
    """Put what SQLite keeps beside a project's tracking database into it, so that it can be
    copied."""
    with closing(sqlite3.connect(project / DATABASE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
