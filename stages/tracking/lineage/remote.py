"""Errors of a DVC remote as one sentence: the remote, the error of its libraries, and the variable
or setting that fixes it.

DVC, fsspec and the libraries of each kind of remote (botocore, aiohttp, …) each have errors of
their own without a common base class: missing keys are not an OSError.
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from stages.errors import fault_of
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.uri import TrackingError

REMOTE_VARIABLE = "VIDBRIDGE_DVC_REMOTE"
#: Name under which DVC has the remote whose URL the variable sets.
FROM_ENVIRONMENT = "vidbridge-environment"
#: Time limit of a probe of the remote: libraries retry a dead address for minutes.
PROBE_S = 30.0
#: Time limit of an HTTP server's answer to whether an object exists.
_ANSWER_S = 10.0

#: Packages that access remotes. An exception of theirs concerns the remote; one of any other
#: package is a defect.
_LIBRARIES = {
    *(
        "adlfs",
        "aiobotocore",
        "aiohttp",
        "aiohttp_retry",
        "asyncssh",
        "azure",
        "boto3",
        "botocore",
        "dvc_http",
        "dvc_objects",
    ),
    *(
        "dvc_s3",
        "fsspec",
        "gcsfs",
        "google",
        "httpx",
        "ossfs",
        "paramiko",
        "pydrive2",
        "requests",
        "s3fs",
        "s3transfer",
        "sshfs",
    ),
    *("urllib3", "webdav4"),
}
_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_ADDRESS = (
    "start that server, or correct its address: AWS_ENDPOINT_URL, or dvc remote modify {name} endpointurl URL for S3,"
    " else the URL of the remote"
)
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE)
#: Class of an exception, its bases or causes, to the remedy. The first match counts.
_REMEDIES = {
    "NoCredentialsError": _KEYS,
    "PartialCredentialsError": _KEYS,
    "ProfileNotFound": "correct AWS_PROFILE, or unset it",
    "NoRegionError": "set AWS_DEFAULT_REGION",
    "SSOError": "log in again: aws sso login",
    "TokenRetrievalError": "log in again: aws sso login",
    "CredentialRetrievalError": _KEYS,
    "SSLError": (
        "name the authority that signed its certificate: AWS_CA_BUNDLE, or dvc remote modify {name} ssl_verify PATH"
    ),
    "ClientConnectorCertificateError": "name the authority that signed its certificate: SSL_CERT_FILE",
    "ConnectionError": _ADDRESS,
    "HTTPClientError": _ADDRESS,
    "ClientConnectionError": _ADDRESS,
    "TimeoutError": _ADDRESS,
    "InvalidRegionError": "correct AWS_DEFAULT_REGION",
    "AccessRefused": (
        "set its user and password: dvc remote modify --local {name} auth basic, then user USER and password WORD"
    ),
    "RemoteMissingDepsError": "install what it names into .venv",
    "PermissionError": "check the keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), and what they may do there",
    "FileNotFoundError": "create that bucket or folder, or correct the remote's URL in .dvc/config or {variable}",
}


def is_of_remote(error: BaseException) -> bool:
    """Return whether an exception comes from a package that accesses remotes, or from the system
    below it."""
    from dvc.exceptions import DvcException

    return isinstance(error, (DvcException, OSError)) or speaks_to_remotes(error)


def speaks_to_remotes(error: BaseException) -> bool:
    """Return whether a package that accesses remotes defines the exception."""
    return any(kind.__module__.partition(".")[0] in _LIBRARIES for kind in type(error).__mro__)


@contextmanager
def remote_errors(name: str | None, what: str) -> Iterator[None]:
    """Turn any failure at the remote ``name`` during ``what`` into a :class:`TrackingError`."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        if not is_of_remote(error):
            raise
        raise remote_error(name, what, error) from error


def remote_error(name: str | None, what: str, error: BaseException) -> TrackingError:
    """Describe ``error`` in one sentence, without passwords and keys."""
    message = one_line(redacted(str(error).strip() or type(error).__name__))
    place = f"DVC remote {remote_label(name)}"
    # A full disk or a read-only file system: of this machine, or of a remote that is a folder.
    if isinstance(error, OSError) and error.errno in _OF_DISK and (fault := fault_of(error)) is not None:
        return TrackingError(place, f"{what}: {one_line(redacted(fault.problem))}", fault.remedy)
    remedy = _remedy(error) or "check that it is reachable and writable"
    remedy = remedy.format(name=remote_label(name, quoted=False), variable=REMOTE_VARIABLE)
    return TrackingError(place, f"{what}: {message}", remedy)


def remote_label(name: str | None, quoted: bool = True) -> str:
    """Name of the remote in a message: the URL from the environment, without its password, else its
    name."""
    if name == FROM_ENVIRONMENT:
        name = os.environ.get(REMOTE_VARIABLE) or name
    text = one_line(redacted(name or "(none)"))
    return repr(text) if quoted else text


def _remedy(error: BaseException) -> str | None:
    current: BaseException | None = error
    while current is not None:
        for kind in type(current).__mro__:
            if kind.__name__ in _REMEDIES:
                return _REMEDIES[kind.__name__]
        current = current.__cause__ or current.__context__
    return None


class AccessRefused(OSError):
    """An HTTP server requires authentication, or denies access."""


def is_http(fs: Any) -> bool:
    return fs.protocol in ("http", "https")


def insist_on_http(fs: Any, url: str) -> None:
    """Request ``url`` with the remote's credentials.

    DVC's HTTP file system reports objects that it cannot reach or may not read as missing.

    Raises:
        OSError, Exception of aiohttp: the server does not say whether the object exists.
    """
    from fsspec.asyn import sync  # type: ignore[import-untyped]

    client = fs.fs

    async def ask() -> int:
        session = await client.set_session()
        async with session.head(client.encode_url(url), allow_redirects=True, **client.kwargs) as response:
            return int(response.status)

    status = sync(client.loop, ask, timeout=_ANSWER_S)
    if status in (401, 403, 407):
        raise AccessRefused(f"it answers with HTTP status {status}")
    if status == 429 or status >= 500:
        raise ConnectionError(f"it answers with HTTP status {status}")


def probe(fs: Any, path: str) -> None:
    """Write an object below ``path``, list it and remove it, as far as the kind of remote supports
    it (HTTP has no list).

    Raises:
        Exception: of the library that accesses that kind of remote.
    """
    folder = fs.join(path, f".probe-{uuid.uuid4().hex}")
    file = fs.join(folder, "probe")
    if is_http(fs):
        insist_on_http(fs, file)
        return
    fs.makedirs(folder, exist_ok=True)
    try:
        fs.pipe_file(file, b"vidbridge: may this be written?\n")
        with suppress(NotImplementedError):
            list(fs.find(folder))
    finally:
        with suppress(FileNotFoundError, NotImplementedError):
            fs.rm(folder, recursive=True)


def within(seconds: float, do: Callable[[], None], name: str | None) -> None:
    """Call ``do`` with a time limit. A thread that hangs in a library is abandoned and does not
    hold the process.

    Raises:
        TrackingError: it took longer.
        Exception: raised by ``do``.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TrackingError(
            f"DVC remote {remote_label(name)}",
            f"no answer within {seconds:g} s",
            _ADDRESS.format(name=remote_label(name, quoted=False)),
        )
    if raised:
        raise raised[0]
