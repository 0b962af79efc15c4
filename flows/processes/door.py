"""Access control of the servers that we start on the loopback interface.

``python -m flows.processes.door prefect|mlflow FD`` serves Prefect's API and pages, or MLflow's, on
the listening socket FD. Each request is checked before the application sees it:

- ``Host`` must be a name of this machine's loopback interface. A page whose own name was made to
  point here (DNS rebinding) is refused.
- ``Origin`` must be this server's own, and a browser's ``Sec-Fetch-Site`` must not report another
  page. So no foreign page reads or writes, a page of another port included; links to the pages
  work.
- MLflow's server has no password of its own, so the door requires the key (HTTP Basic or bearer).
  Prefect requires it itself, on its API and on its websockets; its static pages, which prompt a
  person for the key, are open.
- Unneeded parts are closed: Prefect's generated documentation, MLflow's assistant (it starts
  programs on the machine).

The socket is bound and listening before this process starts, so that nobody else can take its place
in between.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stages.runtime.dispatch import import_quickly

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Hands the key to MLflow's server. Never by argument: every user of a machine sees those.
KEY = "VIDBRIDGE_DOOR_KEY"
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?")
#: Open pages must not keep a server from ending: websockets and downloads get this long.
_GRACE_S = 2
#: Added to every answer: no page may show ours in a frame and have a person click in it unawares.
_HEADERS = ((b"x-frame-options", b"SAMEORIGIN"), (b"content-security-policy", b"frame-ancestors 'self'"))


class Door:
    """Middleware that lets permitted requests through to ``app``.

    Args:
        app: the application behind the door.
        key: ``user:password``; None: the application asks for it itself.
        without_key: paths that are answered without ``key``.
        closed: paths that are not answered, with all below them.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None = None, without_key: Sequence[str] = (), closed: Sequence[str] = ()
    ) -> None:
        self.app, self._without_key, self._closed = app, frozenset(without_key), tuple(closed)
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif (refused := self._refused(scope)) is None:
            await self.app(scope, receive, _with_headers(send) if scope["type"] == "http" else send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: the client sees 403
        else:
            await _refuse(send, *refused)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence of a refusal; None to let the request through."""
        headers = scope["headers"]
        hosts = _values(headers, b"host")
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return (
                400,
                "Host: not a name of this server; open it at http://127.0.0.1 and its port (through a tunnel: the same"
                " port)",
            )
        if any(origin != f"http://{hosts[0]}" for origin in _values(headers, b"origin")):
            return 403, "Origin: requests of other pages are refused"
        if scope["type"] == "http" and _from_another_page(scope["method"], headers):
            return 403, "Sec-Fetch-Site: requests of other pages are refused"
        path = scope["path"]
        if any(path == closed or path.startswith(f"{closed}/") for closed in self._closed):
            return 404, f"{path}: closed in this project's server"
        if self._key is not None and path not in self._without_key and not self._has_key(headers):
            return (
                401,
                "the key of this project's servers is asked for: user vidbridge; vidbridge ui says where the password"
                " is",
            )
        return None

    def _has_key(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        assert self._key is not None
        values = _values(headers, b"authorization")
        scheme, _, credentials = (values[0] if len(values) == 1 else "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(credentials.strip().encode(), self._key.partition(b":")[2])
        if scheme.lower() != "basic":
            return False
        try:
            decoded = base64.b64decode(credentials.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(decoded, self._key)


def _values(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for header, value in headers if header.lower() == name]


def _from_another_page(method: str, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Return whether a browser reports that another page sent the request, other than by a link
    that a person follows.
    """
    if not {"cross-site", "same-site"} & set(_values(headers, b"sec-fetch-site")):
        return False
    followed = (_values(headers, b"sec-fetch-mode"), _values(headers, b"sec-fetch-dest")) == (
        ["navigate"],
        ["document"],
    )
    return not (followed and method == "GET")


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", ())}
            added = [(name, value) for name, value in _HEADERS if name not in present]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sending


async def _refuse(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"), *_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="vidbridge", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{sentence}\n".encode()})


def prefect_app() -> ASGIApp:
    """Prefect's API and pages. The key and the rest of its settings come from its own variables."""
    from prefect.server.api.server import create_app

    if not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise RuntimeError("PREFECT_SERVER_API_AUTH_STRING is not set: Prefect's server would be open to everyone")
    return Door(create_app(), closed=("/docs", "/redoc", "/openapi.json"))


def mlflow_app() -> ASGIApp:
    """MLflow's API and pages for the store of ``MLFLOW_BACKEND_STORE_URI``, as `mlflow server` puts
    them together.

    Its command is not used: it hands the address of the store, password and all, on as an argument
    of processes of its own, and takes a port instead of a socket. Files of runs are read where they
    are; none are taken in.
    """
    from mlflow.server import constants

    key, uri, files = (
        os.environ[KEY],
        os.environ["MLFLOW_BACKEND_STORE_URI"],
        os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"],
    )
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = uri
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = files
    os.environ.pop(constants.SERVE_ARTIFACTS_ENV_VAR, None)
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(uri, uri, files)
    from mlflow.server.fastapi_app import app

    return Door(app, key=key, without_key=("/health",), closed=("/ajax-api/3.0/mlflow/assistant",))


APPS: dict[str, Callable[[], ASGIApp]] = {"prefect": prefect_app, "mlflow": mlflow_app}


def main(which: str, descriptor: int) -> int:
    """Serve until SIGTERM; returns the exit status."""
    import uvicorn

    listener = socket.socket(fileno=descriptor)
    config: Any = uvicorn.Config(
        APPS[which], factory=True, log_level="error", access_log=False, timeout_graceful_shutdown=_GRACE_S
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    return 0 if server.started else 3


if __name__ == "__main__":
    import_quickly()
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
