"""Where the project and its tracking store are, and whether the store answers. Light: no MLflow, no DVC."""

from __future__ import annotations

import base64
import os
import socket
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from stages.errors import VidbridgeError
from stages.plain import one_line, redacted

#: Everything local that is not an out: database, scratch, default remote. Ignored by git.
STATE = Path(".vidbridge")
DATABASE = STATE / "mlflow.db"
#: Files of runs when the store is a database and not a server (a server keeps them itself).
RUN_FILES = STATE / "mlflow-artifacts"

#: A database URI without a port uses its driver's.
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

#: Telemetry off; short retries, because MLflow's own (7, with exponential waits) hide a dead server for minutes.
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class TrackingError(VidbridgeError, RuntimeError):
    """Tracking, registry or gate cannot do what was asked; the message says what failed, where, and the remedy."""


def quiet() -> None:
    """Set the defaults of :data:`QUIET` that the environment leaves open. Called before MLflow or DVC is imported, never at import."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def project_or_none() -> Path | None:
    """The project's folder: ``VIDBRIDGE_PROJECT``, else the nearest folder upward that holds ``dvc.yaml``; absolute. None: outside.

    Raises:
        TrackingError: ``VIDBRIDGE_PROJECT`` is no folder.
    """
    named = os.environ.get("VIDBRIDGE_PROJECT")
    if named:
        root = Path(named).expanduser().resolve()
        if not root.is_dir():
            raise TrackingError(f"VIDBRIDGE_PROJECT: {named!r} is no folder; set it to the folder that holds dvc.yaml, or unset it")
        return root
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), None)


def project_root() -> Path:
    """The project's folder, as `project_or_none` finds it.

    Raises:
        TrackingError: there is none.
    """
    root = project_or_none()
    if root is None:
        raise TrackingError(
            f"project: no dvc.yaml in {Path.cwd()} or above; go to the project's folder, or set VIDBRIDGE_PROJECT to it"
        )
    return root


def tracking_uri(root: Path | None = None) -> str:
    """``MLFLOW_TRACKING_URI`` (a relative SQLite path counts from the project's folder), else ``<project>/.vidbridge/mlflow.db``."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{(root or project_root()) / DATABASE}"
    prefix = "sqlite:///"
    if given.startswith(prefix) and not given.startswith(prefix + "/"):
        return f"{prefix}{(root or project_root()) / given.removeprefix(prefix)}"
    return given


def sqlite_path(uri: str) -> Path | None:
    """The file behind a SQLite URI, None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """The URI as it is printed, logged and recorded, of whatever kind it is: without its password, and without tokens in its query."""
    return one_line(redacted(uri))


def check_server(uri: str | None = None, timeout_s: float = 4.0) -> str:
    """Ask the store for a sign of life, so that a stage stops before hours are spent; returns the URI.

    Raises:
        TrackingError: no answer within ``timeout_s`` seconds, access refused, a database file that is none, or an unknown kind of URI.
    """
    uri = uri or tracking_uri()
    if is_server(uri):
        _check_http(uri, timeout_s)
    elif (database := sqlite_path(uri)) is not None:
        _check_sqlite(database)
    else:
        _check_database(uri, timeout_s)
    return uri


def _failure(uri: str, what: str, remedy: str) -> TrackingError:
    return TrackingError(f"MLFLOW_TRACKING_URI: {shown(uri)}: {what}; {remedy}")


def _check_http(uri: str, timeout_s: float) -> None:
    try:
        with urllib.request.urlopen(_question(uri), timeout=timeout_s) as reply:  # noqa: S310
            reply.read()
    except urllib.error.HTTPError as error:
        remedies = {
            401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
            403: "name this host in MLFLOW_SERVER_ALLOWED_HOSTS where the server starts, or check the account's rights",
        }
        remedy = remedies.get(error.code, "check that the address is that of an MLflow server")
        raise _failure(uri, f"answers {error.code} {error.reason}", remedy) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        remedy = "start the server, correct the address, or unset MLFLOW_TRACKING_URI to use the project's own SQLite file"
        raise _failure(uri, f"no answer within {timeout_s:g} s ({reason})", remedy) from error


def _question(uri: str) -> urllib.request.Request:
    request = urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")  # noqa: S310
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    return request


def _check_sqlite(database: Path) -> None:
    folder = database.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(f"tracking database {database}: cannot make its folder ({error}); make it writable") from error
    if not os.access(folder, os.W_OK):
        raise TrackingError(f"tracking database {database}: the folder is not writable; make it so, or set MLFLOW_TRACKING_URI")
    if not database.exists():
        return
    # MLflow would retry for hours on a file that is no database.
    try:
        with closing(sqlite3.connect(database, timeout=20)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"tracking database {database}: {error}; move the file away, or set MLFLOW_TRACKING_URI to another store"
        ) from error


def _check_database(uri: str, timeout_s: float) -> None:
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind not in DATABASE_PORTS:
        remedy = "use http://, https://, sqlite:///<file>, postgresql://, mysql:// or mssql://, or unset it"
        raise _failure(uri, f"unknown kind of store {parts.scheme!r}", remedy)
    address = (parts.hostname or "localhost", parts.port or DATABASE_PORTS[kind])
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except OSError as error:
        raise _failure(uri, f"no answer within {timeout_s:g} s ({error})", "start the database or correct the address") from error
