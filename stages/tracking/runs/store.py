"""Open an MLflow client: checked, quiet, and safe when several processes create the same SQLite
file."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.paths import DATABASE
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.uri import (
    RUN_FILES,
    NoAnswer,
    TrackingError,
    check_server,
    display_uri,
    experiment_name,
    is_server,
    quiet,
    sqlite_path,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: Wait for another process that creates the tables (0.5 s on an idle machine).
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
            raise TrackingError(
                str(self._path), f"held by another process for {self._wait_s:g} s", "wait for it, or end it"
            ) from error

    def __exit__(self, *exc: object) -> None:
        self._lock.__exit__(*exc)  # type: ignore[arg-type]


def open_client(root: Path, wait_s: float = 0.0) -> MlflowClient:
    """Open a client of the project's store, which answers and has its tables.

    A store that does not answer is tried twice, and then for ``wait_s`` seconds more. MLflow
    creates a fresh SQLite file without a lock, and two processes that start together break each
    other: hence our lock.

    Raises:
        TrackingError: it does not answer in that time, or denies access.
    """
    uri = check_server(tracking_uri(root), wait_s=wait_s)
    quiet()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    database = sqlite_path(uri)
    guard = locked(database.with_name(database.name + ".lock"), CREATION_WAIT_S) if database else nullcontext()
    try:
        with guard:
            if database and database == root / DATABASE and not database.exists():
                _write_ahead(database)
            # Runs and model versions share one store, whatever else the environment says.
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        raise TrackingError(
            f"MLflow store {display_uri(uri)}",
            one_line(redacted(error)),
            "correct MLFLOW_TRACKING_URI, or upgrade its database",
        ) from error
    except SQLAlchemyError as error:
        message = one_line(redacted(str(getattr(error, "orig", None) or error).strip()))
        raise TrackingError(
            f"MLflow store {display_uri(uri)}", message, "check that the account may make and change tables there"
        ) from error


#: Codes of MLflow's errors about permissions; a retry changes nothing.
_DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_UNAVAILABLE = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
#: Texts of MLflow's client for a server that is away, and for a database that went away, whose
#: codes other errors share.
_AWAY = re.compile(
    r"^API request to \S+ failed with (timeout )?exception|failed with error code (429|5\d\d) |too many 5\d\d error"
    r" responses"
    r"|OperationalError|InterfaceError|database is locked|connection already closed"
)


def is_denied(error: Exception) -> bool:
    """Return whether MLflow denies this account the operation."""
    return getattr(error, "error_code", None) in _DENIED


def is_away(error: Exception) -> bool:
    """Return whether the store does not answer now, and may later."""
    if isinstance(error, NoAnswer):
        return True
    code = getattr(error, "error_code", None)
    return code in _UNAVAILABLE or (code is not None and code not in _DENIED and bool(_AWAY.search(str(error))))


def store_error(what: str, error: Exception, rights: str, otherwise: str = "") -> TrackingError:
    """Describe MLflow's ``error`` in one sentence: no permission, no answer, or MLflow's own
    objection.

    ``what``: the operation; ``rights``: those it requires, such as "EDIT on the registered model
    NAME"; ``otherwise``: the remedy if the store is away or refuses for another reason.
    """
    if getattr(error, "error_code", None) in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return TrackingError(
            what,
            "MLflow does not know this account",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if is_denied(error):
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "").strip()
        who = f"the MLflow user {user!r}" if user else "this account of MLflow's"
        return TrackingError(
            what, f"no permission: {who} may not", f"ask who owns it, or administers the server, for {rights}"
        )
    message = one_line(redacted(error))
    outcome = "stopped answering" if is_away(error) else "refused"
    return TrackingError(what, f"the store {outcome}: {message}", otherwise)


def _write_ahead(database: Path) -> None:
    """Let a person's `mlflow ui` read while a stage writes; the setting stays in the file. Only our
    own file: WAL needs a local disk."""
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def experiment_id(client: MlflowClient, root: Path) -> str:
    """Id of the experiment :func:`experiment_name`, created if it is missing (by us or, meanwhile,
    by another process)."""
    from mlflow.exceptions import MlflowException

    name = experiment_name()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server chooses the path itself; the default of a bare database would be relative to the
        # working directory.
        location = None if is_server(tracking_uri(root)) else (root / RUN_FILES).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if is_away(error):
                raise
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise store_error(f"MLflow experiment {name!r}", error, "the right to make experiments") from error
            experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        number = f"{experiment.experiment_id}" if experiment else "ID"
        raise TrackingError(
            "MLflow experiment",
            f"{name!r} was deleted",
            f"restore it: mlflow experiments restore -x {number}, or name another: MLFLOW_EXPERIMENT_NAME",
        )
    return str(experiment.experiment_id)


def retry_on_conflict(write: Callable[[], object]) -> None:
    """Set a tag or an alias that another process may be setting at this moment.

    MLflow checks for an existing one and then inserts, so the slower of two processes fails at the
    database's unique key. The retry finds it there.
    """
    from mlflow.exceptions import MlflowException

    for left in reversed(range(WRITE_TRIES)):
        try:
            write()
        except MlflowException as error:
            if not left or is_denied(error):
                raise
        else:
            return


def is_first_rank() -> bool:
    """Return whether this is the one process of a training job that writes."""
    return os.environ.get("RANK", "0") == "0"
