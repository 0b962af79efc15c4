"""Addresses of the project and its tracking store, and a check that the store answers. Light: no
MLflow, no DVC."""

from __future__ import annotations

import base64
import os
import socket
import sqlite3
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from stages.errors import VidbridgeError
from stages.runtime import paths
from stages.runtime.plain import one_line, redacted
from stages.runtime.project import NO_TELEMETRY, project_root

#: Folder of run files if the store is a database (a server stores them itself).
RUN_FILES = paths.STATE / "mlflow-artifacts"

#: Default port of each driver's database URI.
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
#: Packages whose name differs from their module's.
DRIVER_PACKAGES = {
    "MySQLdb": "mysqlclient",
    "psycopg2": "psycopg2-binary",
    "psycopg": "psycopg[binary]",
    "pymysql": "PyMySQL",
    "mysql": "mysql-connector-python",
}
#: Errors of a database that is starting up or shutting down.
_NOT_UP = (
    "starting up",
    "shutting down",
    "in recovery",
    "too many",
    "Connection refused",
    "timeout",
    "timed out",
    "closed the connection",
)

#: The default experiment of our runs.
EXPERIMENT = "vidbridge"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"

#: Time limit of one request to the store before its second try, and the time for which a stage of a
#: run, or its registration, retries when there is no answer: a server restart must not end hours of
#: work.
TIMEOUT_VARIABLE, TIMEOUT_S = "VIDBRIDGE_MLFLOW_TIMEOUT_S", 4.0
PATIENCE_VARIABLE, PATIENCE_S = "VIDBRIDGE_MLFLOW_PATIENCE_S", 300.0
#: The second try gets more time: the first request to a server that has just started, or that
#: checks passwords, is the slowest.
SECOND_TRY = 2.0
#: A file that another process writes to is waited for this many times longer than a server.
SQLITE_PATIENCE = 2.5
#: Wait before the second try of a refused connection; later waits grow to the second figure.
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
#: Set by the flow for its stages and its registration: the MLflow run they belong to.
PARENT_VARIABLE = "VIDBRIDGE_PIPELINE_RUN"
#: Set by Prefect's worker for the process of a flow run: no person is waiting.
_FLOW_RUN = "PREFECT__FLOW_RUN_ID"

T = TypeVar("T")

#: Telemetry off; short retries, because MLflow's own (7, with exponential waits) hide a dead server
#: for minutes.
QUIET = {
    **NO_TELEMETRY,
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class TrackingError(VidbridgeError, RuntimeError):
    """An operation of tracking, registry or gate failed; the message says what failed, where, and
    the remedy."""


class NoAnswer(TrackingError):
    """The store does not answer now, and may later: nothing listens, it is slow, or it reports that
    it is not ready.

    Denied access is a plain :class:`TrackingError`.
    """


def quiet() -> None:
    """Set the defaults of :data:`QUIET` that the environment leaves open. Called before MLflow or
    DVC is imported, never at import."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def tracking_uri(root: Path | None = None) -> str:
    """``MLFLOW_TRACKING_URI`` (a relative SQLite path counts from the project's folder), else
    ``<project>/.vidbridge/mlflow.db``."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not address:
        return f"sqlite:///{(root or project_root()) / paths.DATABASE}"
    prefix = "sqlite:///"
    if address.startswith(prefix) and not address.startswith(prefix + "/"):
        return f"{prefix}{(root or project_root()) / address.removeprefix(prefix)}"
    return address


def sqlite_path(uri: str) -> Path | None:
    """Path of the file behind a SQLite URI; None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def display_uri(uri: str) -> str:
    """The URI as it is printed, logged and recorded: without its password, and without tokens in
    its query."""
    return one_line(redacted(uri))


def experiment_name() -> str:
    """``MLFLOW_EXPERIMENT_NAME``, else :data:`EXPERIMENT`. It separates projects that share a
    server."""
    return os.environ.get(EXPERIMENT_VARIABLE, "").strip() or EXPERIMENT


def patience_s() -> float:
    """Time in seconds for which a run waits for a store that does not answer; 0: two tries only.

    Raises:
        TrackingError: the environment variable is not a number of seconds.
    """
    return _seconds(PATIENCE_VARIABLE, PATIENCE_S, least=0.0)


def patience_of_run_s() -> float:
    """`patience_s` in a flow's stages and in a run that a worker started; 0 where a person waits
    for the answer."""
    return patience_s() if os.environ.get(PARENT_VARIABLE) or os.environ.get(_FLOW_RUN) else 0.0


def _seconds(name: str, default: float, least: float) -> float:
    text = os.environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not least <= value < float("inf"):
        raise TrackingError(name, f"{text!r} is not a number of seconds", f"set a number >= {least:g}, or unset it")
    return value


def patiently(ask: Callable[[], T], patience_s: float, transient: Callable[[Exception], bool]) -> T:
    """Call ``ask``, and retry ``transient`` failures until ``patience_s`` seconds after the first
    one; then raise the last error.

    Reports once, on standard error, that it waits.
    """
    deadline: float | None = None
    pause = _PAUSE_S
    while True:
        try:
            return ask()
        except Exception as error:
            if not transient(error):
                raise
            # Counted from the first failure: ``ask`` may work for long before the store goes away.
            first, deadline = deadline is None, time.monotonic() + patience_s if deadline is None else deadline
            if time.monotonic() + pause > deadline:
                raise
            if first:
                print(
                    f"tracking: {redacted(one_line(error))}; asking again for up to {patience_s:g} s",
                    file=sys.stderr,
                    flush=True,
                )
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


def check_server(uri: str | None = None, timeout_s: float | None = None, wait_s: float = 0.0) -> str:
    """Check that the store answers, so that a stage fails before hours are spent. Returns the URI.

    The request is sent twice, the second time with a longer limit. ``timeout_s``: limit of the
    first request (None: ``VIDBRIDGE_MLFLOW_TIMEOUT_S``). ``wait_s``: how long to retry when there
    is no answer.

    Raises:
        NoAnswer: no answer in that time.
        TrackingError: access denied, a file that is not a database, a driver that is not installed,
            or an unknown kind of URI.
    """
    uri = uri or tracking_uri()
    first_s = timeout_s or _seconds(TIMEOUT_VARIABLE, TIMEOUT_S, least=0.1)
    try:
        _ask(uri, first_s)
    except NoAnswer:
        time.sleep(min(_PAUSE_S, first_s))
        # Report the second try's error.
        patiently(lambda: _ask(uri, first_s * SECOND_TRY), wait_s, lambda error: isinstance(error, NoAnswer))
    return uri


def _ask(uri: str, timeout_s: float) -> None:
    if is_server(uri):
        _check_http(uri, timeout_s)
    elif (database := sqlite_path(uri)) is not None:
        _check_sqlite(database, timeout_s * SQLITE_PATIENCE)
    else:
        _check_database(uri, timeout_s)


def _failure(uri: str, what: str, remedy: str, kind: type[TrackingError] = TrackingError) -> TrackingError:
    return kind("MLFLOW_TRACKING_URI", f"{display_uri(uri)}: {what}", remedy)


def _check_http(uri: str, timeout_s: float) -> None:
    try:
        with urllib.request.urlopen(_question(uri), timeout=timeout_s) as reply:  # noqa: S310
            reply.read()
    except urllib.error.HTTPError as error:
        error.close()  # the error raised from it keeps it alive, and with it the connection
        remedies = {
            401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
            403: "name this host in MLFLOW_SERVER_ALLOWED_HOSTS where the server starts, or check the account's rights",
        }
        if error.code >= 500 or error.code in (408, 429):
            raise _failure(uri, f"answers {error.code} {error.reason}", "look at the server's log", NoAnswer) from error
        remedy = remedies.get(error.code, "check that the address is that of an MLflow server")
        raise _failure(uri, f"answers {error.code} {error.reason}", remedy) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _failure(
                uri, str(reason), "name the authority that signed it: REQUESTS_CA_BUNDLE and SSL_CERT_FILE"
            ) from error
        remedy = (
            "start the server, correct the address, or unset MLFLOW_TRACKING_URI to use the project's own SQLite file"
        )
        kind = NoAnswer if isinstance(error, OSError) else TrackingError
        raise _failure(uri, f"no answer within {timeout_s:g} s ({reason})", remedy, kind) from error


def _question(uri: str) -> urllib.request.Request:
    request = urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")  # noqa: S310
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    return request


def _check_sqlite(database: Path, timeout_s: float) -> None:
    folder = database.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"tracking database {database}", f"cannot make its folder ({error})", "make it writable"
        ) from error
    if not database.exists():
        return
    # MLflow would retry for hours on a file that is not a database.
    try:
        with closing(sqlite3.connect(database, timeout=timeout_s)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise NoAnswer(
                f"tracking database {database}",
                f"another process holds it for {timeout_s:g} s",
                f"wait for that one or end it (fuser {database} names it)",
            ) from error
        if "unable to open" in str(error):
            raise TrackingError(
                f"tracking database {database}", str(error), "change its permissions (chmod, chown)"
            ) from error
        raise TrackingError(
            f"tracking database {database}",
            str(error),
            "move the file away, or set MLFLOW_TRACKING_URI to another store",
        ) from error


def _check_database(uri: str, timeout_s: float) -> None:
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind not in DATABASE_PORTS:
        remedy = "use http://, https://, sqlite:///<file>, postgresql://, mysql:// or mssql://, or unset it"
        raise _failure(uri, f"unknown kind of store {parts.scheme!r}", remedy)
    check_driver(uri)
    address = (parts.hostname or "localhost", parts.port or DATABASE_PORTS[kind])
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except OSError as error:
        what, remedy = f"no answer within {timeout_s:g} s ({error})", "start the database or correct the address"
        raise _failure(uri, what, remedy, NoAnswer) from error
    _connect(uri, kind, timeout_s)


def check_driver(uri: str) -> None:
    """Check that the driver of a database's URI is installed.

    Raises:
        TrackingError: it is not; the message has the line that installs it.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except NoSuchModuleError as error:
        raise _failure(
            uri, f"SQLAlchemy has no driver {urlsplit(uri).scheme!r}", "correct the part before ://"
        ) from error
    except ArgumentError as error:  # its text would hold the URI, with the password
        raise _failure(uri, "cannot be read as the address of a database", "correct it") from error
    except ImportError as error:
        module = (error.name or str(error)).partition(".")[0]
        package = DRIVER_PACKAGES.get(module, module)
        raise _failure(uri, f"its driver, {module}, is not installed", f"uv pip install '{package}'") from error


def _connect(uri: str, kind: str, timeout_s: float) -> None:
    """Connect once, as MLflow will: MLflow itself tries fifteen times if the password is wrong, and
    ends in a traceback."""
    from sqlalchemy import create_engine, pool
    from sqlalchemy.exc import SQLAlchemyError

    limit = {"timeout" if kind == "mssql" else "connect_timeout": max(1, round(timeout_s))}
    try:
        create_engine(uri, poolclass=pool.NullPool, connect_args=limit).connect().close()
    except SQLAlchemyError as error:
        message = one_line(redacted(str(getattr(error, "orig", None) or error).strip()))
        if any(sign in message for sign in _NOT_UP):
            raise _failure(uri, message, "wait until the database is up", NoAnswer) from error
        raise _failure(
            uri, message, "check user, password and database of the address, and what the database allows them"
        ) from error
