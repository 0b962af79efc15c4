"""The one way to an MLflow client: checked, quiet, and safe when several processes create the same SQLite file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from stages.tracking.uri import DATABASE, RUN_FILES, TrackingError, check_server, is_server, quiet, shown, sqlite_path, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "vidbridge"
#: A process waits so long for another one that creates the tables (0.5 s on an idle machine).
CREATION_WAIT_S = 120
WRITE_TRIES = 4


def locked(path: Path, wait_s: float) -> AbstractContextManager[object]:
    """Hold a file lock between processes.

    Raises:
        TrackingError: another process holds it for longer than ``wait_s`` seconds.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return _Waiting(FileLock(path, timeout=wait_s), path, wait_s)


class _Waiting:
    def __init__(self, lock: AbstractContextManager[object], path: Path, wait_s: float) -> None:
        self._lock, self._path, self._wait_s = lock, path, wait_s

    def __enter__(self) -> None:
        from filelock import Timeout

        try:
            self._lock.__enter__()
        except Timeout as error:
            raise TrackingError(f"{self._path}: held by another process for {self._wait_s:g} s; wait for it, or end it") from error

    def __exit__(self, *exc: object) -> None:
        self._lock.__exit__(*exc)  # type: ignore[arg-type]


def open_client(root: Path) -> MlflowClient:
    """A client of the project's store, which answers (else :class:`TrackingError` within about 5 s) and has its tables.

    MLflow creates a fresh SQLite file without a lock, and two processes that start together break each other: hence ours.
    """
    uri = check_server(tracking_uri(root))
    quiet()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    database = sqlite_path(uri)
    guard = locked(database.with_name(database.name + ".lock"), CREATION_WAIT_S) if database else nullcontext()
    try:
        with guard:
            if database and database == root / DATABASE and not database.exists():
                _write_ahead(database)
            # Runs and model versions live in one store, whatever else the environment says.
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        raise TrackingError(f"MLflow store {shown(uri)}: {error}") from error


def _write_ahead(database: Path) -> None:
    """Let a person's `mlflow ui` read while a stage writes; the setting stays in the file. Only ours: WAL needs a local disk."""
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def experiment_id(client: MlflowClient, root: Path) -> str:
    """The id of the experiment :data:`EXPERIMENT`, created when it is missing (by us or, meanwhile, by another process)."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        # A server chooses the place itself; the default of a bare database would be relative to the working directory.
        place = None if is_server(tracking_uri(root)) else (root / RUN_FILES).as_uri()
        try:
            return str(client.create_experiment(EXPERIMENT, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise TrackingError(f"MLflow experiment {EXPERIMENT!r}: {error}") from error
            found = client.get_experiment_by_name(EXPERIMENT)
    if found is None or found.lifecycle_stage == "deleted":
        raise TrackingError(f"MLflow experiment {EXPERIMENT!r} was deleted; restore it: mlflow experiments restore -x ID")
    return str(found.experiment_id)


def insist(write: Callable[[], object]) -> None:
    """Set a tag or an alias that another process may be setting at this moment.

    MLflow looks whether there is one and then inserts it, so the slower of two fails at the database's unique key. Setting it again
    finds it there.
    """
    from mlflow.exceptions import MlflowException

    for left in reversed(range(WRITE_TRIES)):
        try:
            write()
        except MlflowException:
            if not left:
                raise
        else:
            return


def is_first_rank() -> bool:
    """Only one process of a training job writes."""
    return os.environ.get("RANK", "0") == "0"
