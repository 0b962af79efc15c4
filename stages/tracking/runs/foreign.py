"""Errors of libraries that our code did not catch: a server that went away, a store that refuses, a
locked database.

Errors are recognised by the package that defines them, so that a process that never imported one
does not import it now. An error that does not concern a server, an account or a disk is a defect
and keeps its traceback.
"""

from __future__ import annotations

import os
import sqlite3

from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.remote import remote_error, speaks_to_remotes
from stages.tracking.lineage.uri import display_uri
from stages.tracking.runs.store import is_away, is_denied, store_error

#: Errors of httpx for a request without any answer.
_NO_ANSWER = ("TransportError",)


def sentence_of(error: BaseException) -> str | None:
    """Describe ``error`` in one sentence with a remedy; None if it is a defect, or one of our
    errors."""
    package = type(error).__module__.partition(".")[0]
    names = {kind.__name__ for kind in type(error).__mro__}
    message = one_line(redacted(str(error).strip() or type(error).__name__))
    if package == "mlflow" and isinstance(error, Exception) and (is_away(error) or is_denied(error)):
        return str(
            store_error("MLflow", error, "EDIT on it", "start it, or correct MLFLOW_TRACKING_URI; then try again")
        )
    if package in ("prefect", "httpx", "httpcore"):
        return _of_prefect(error, names, message)
    if isinstance(error, sqlite3.OperationalError) or (package == "sqlalchemy" and "OperationalError" in names):
        if "locked" in message:
            return f"{message}: another process holds a database of this project; wait for it, or end it"
        if "full" in message:
            return f"{message}: free some space and start again: what was done stays done"
        return (
            f"a database does not answer: {message}; start it, or correct its address"
            if package == "sqlalchemy"
            else None
        )
    if isinstance(error, Exception) and speaks_to_remotes(error):
        return str(remote_error(os.environ.get("VIDBRIDGE_DVC_REMOTE") or "core.remote", "stopped answering", error))
    return None


def _of_prefect(error: BaseException, names: set[str], message: str) -> str | None:
    url = os.environ.get("PREFECT_API_URL")
    where = f"PREFECT_API_URL: {display_uri(url)}" if url else "the Prefect server of this project"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{where}: answers {status}; set PREFECT_API_AUTH_STRING to the key that it asks for"
    if names.intersection(_NO_ANSWER) or (status is not None and (status >= 500 or status == 429)):
        remedy = (
            "start that server, correct the address, or unset it to use one of our own"
            if url
            else "see .vidbridge/prefect; try again"
        )
        return f"{where}: stopped answering ({message}); {remedy}"
    return None
