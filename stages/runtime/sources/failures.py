"""Translation of what stores and web servers answer into an error with a remedy. No message holds a
key."""

from __future__ import annotations

import errno
import os
from urllib.parse import urlsplit

from stages.errors import InputError, fault_of
from stages.runtime.plain import one_line, redacted

#: Variables that tell a client of each scheme who asks.
_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
#: Of botocore and google-auth.
_KEYLESS = frozenset(
    (
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "DefaultCredentialsError",
        "RefreshError",
    )
)
#: Of botocore, aiohttp and fsspec, which need not be installed.
_SILENCE = frozenset(
    (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
        "ResponseStreamingError",
        "IncompleteReadError",
        "ClientConnectorError",
        "ClientConnectorDNSError",
        "ClientOSError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ServerTimeoutError",
        "ConnectionTimeoutError",
        "SocketTimeoutError",
        "FSTimeoutError",
        "gaierror",
    )
)
#: Packages whose errors are about an address, keys or a server.
_CLIENTS = frozenset(("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "googleapiclient"))
_PUBLIC = {"s3": "FSSPEC_S3_ANON=true", "gs": "FSSPEC_GS_TOKEN=anon"}


class SourceAccessError(InputError):
    """A source cannot be read now: no answer, no right, no such bucket, or no room for files."""


class Gone(Exception):
    """An object that a row names is not there."""


class Changed(Exception):
    """An object is not the one that was listed, or that ingest has seen."""


def access_error(field: str, address: str, error: BaseException) -> SourceAccessError:
    """The error of a source at ``address``, for what its client raised.

    Raises:
        BaseException: ``error`` itself, if it is a defect and nothing that a user can mend.
    """
    scheme, host = address.partition("://")[0], urlsplit(address).netloc
    name = type(error).__name__
    public = f", or {_PUBLIC[scheme]} if it is public" if scheme in _PUBLIC else ""
    keys = _KEYS.get(scheme, "")
    if isinstance(error, SourceAccessError):
        return error
    if isinstance(error, ImportError) and scheme == "gs":
        return SourceAccessError(
            field, f"{address}: gs:// needs gcsfs", "uv sync --extra gcs, or pip install vidbridge[gcs]"
        )
    if name in _KEYLESS:
        which = "" if name == "NoCredentialsError" else f" ({_words(error)})"
        return SourceAccessError(field, f"{address}: no keys for it in the environment{which}", f"set {keys}{public}")
    if isinstance(error, ValueError) and "Invalid endpoint" in str(error):
        return SourceAccessError("AWS_ENDPOINT_URL", _words(error), "write http(s)://HOST:PORT, or unset it")
    status = _status(error)
    # gcsfs tells a 403 by its text alone.
    if isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden: "):
        remedy = f"let this account list and read it, or correct {keys}{public}" if keys else "ask its owner for access"
        return SourceAccessError(field, f"{address}: access denied ({_words(error)})", remedy)
    if isinstance(error, FileNotFoundError) or status == 404:
        if scheme in _KEYS:
            return SourceAccessError(
                field,
                f"{address}: nothing there, or bucket {host!r} does not exist",
                f"correct the address{_endpoint(scheme)}",
            )
        return SourceAccessError(field, f"{address}: no such file on that server", "correct the address")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(error)
    if may_pass(error):
        usable = "" if is_silence(error) else "usable "
        return SourceAccessError(
            field,
            f"{address}: no {usable}answer ({_words(error)})",
            f"see that the server runs, and correct the address{_endpoint(scheme)}; what was fetched stays, start"
            " again",
        )
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS:
        return SourceAccessError(
            field, f"{address}: {_words(error)}", f"correct the address{', or ' + keys if keys else ''}"
        )
    raise error


def disk_full(error: OSError) -> SourceAccessError:
    """The error of a disk without room for fetched files."""
    fault = fault_of(error)
    return SourceAccessError(
        "VIDBRIDGE_SOURCE_CACHE",
        fault.problem if fault else str(error),
        "free some space, name a folder on a larger disk, or lower VIDBRIDGE_SOURCE_CACHE_GB; what was fetched stays",
    )


def is_gone(error: BaseException) -> bool:
    """True if the answer was that there is no such object."""
    return isinstance(error, FileNotFoundError) or _status(error) == 404


def cause_of(error: Exception) -> Exception:
    """What went wrong, where fsspec says of any trouble with a web server that there is no file."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def may_pass(error: BaseException) -> bool:
    """True if the same request may succeed a moment later."""
    status = _status(error)
    if status is not None and (status >= 500 or status == 429):
        return True
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EREMOTEIO, errno.EBUSY):
        return True  # statuses from 500 on, as s3fs tells them
    return is_silence(error) or type(error).__name__ in ("ResponseParserError", "JSONDecodeError")


def is_silence(error: BaseException) -> bool:
    """True if no answer came, or it broke off: there may be no such server."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__name__ in _SILENCE


def is_timeout(error: BaseException) -> bool:
    """True if a server kept silent for as long as was waited."""
    return isinstance(error, TimeoutError) or "Timeout" in type(error).__name__


def _status(error: BaseException) -> int | None:
    """HTTP status of an answer, as the clients' exceptions carry it."""
    # Of aiohttp; of gcsfs; of botocore.
    status = next((code for at in ("status", "code") if isinstance(code := getattr(error, at, None), int)), None)
    if status is None:
        response = getattr(error, "response", None)
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return status if isinstance(status, int) else None


def _endpoint(scheme: str) -> str:
    return " or AWS_ENDPOINT_URL" if scheme == "s3" and os.environ.get("AWS_ENDPOINT_URL") else ""


def _words(error: BaseException) -> str:
    text = redacted(one_line(str(error))).strip()
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
