"""The service over HTTP: JSON in, JSON out, one sentence per refusal. An ASGI application and the
process that runs it.

The paths are those of MLflow's scoring protocol, so that its clients and examples work: ``POST
/invocations``, ``/ping``, ``/health``, ``/version``. MLflow's own server would parse CSV and
Parquet before our checks, and return tracebacks.

``python -m stages.tools.serving.app FOLDER HOST PORT`` is started by `vidbridge serve`. The key
comes from the environment, never from the command line.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import VidbridgeError
from stages.tools.serving.description import MEDIA_TYPE, describe, openapi
from stages.tools.serving.limits import (
    BODY_BYTES,
    KEY,
    MAX_CONNECTIONS,
    MAX_REQUESTS,
    MAX_ROWS,
    PAUSE_S,
    RETRY_S,
    SHOWN,
    SMALL_BODY_BYTES,
    key_from_environment,
)
from stages.tools.serving.refusal import Refused

if TYPE_CHECKING:
    from stages.tools.serving.server import VideoAnswers

Scope = Mapping[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

#: Time for which data of a refused client is still read, so that the client gets to read the
#: refusal.
_LINGER_S = 1.0
_log = logging.getLogger(__name__)


class Disconnected(Exception):
    """The client disconnected before its request was complete."""


@dataclass(frozen=True)
class Reply:
    """A response: status, content and headers."""

    status: int
    content: bytes
    kind: str = MEDIA_TYPE
    headers: tuple[tuple[str, str], ...] = ()


class ServingApp:
    """The ASGI application.

    Args:
        model: answers the requests.
        key: the required bearer token; None: none.
        hosts: host names by which a client may address this server; None: any. This stops a page
            that makes its own name point here ("DNS rebinding").
    """

    def __init__(self, model: VideoAnswers, key: str | None, hosts: frozenset[str] | None) -> None:
        self._model, self._hosts = model, hosts
        self._key = None if key is None else key.encode()
        self._threads = ThreadPoolExecutor(MAX_REQUESTS, "request")
        self._busy = self._body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        reading = _Reading(receive)
        path = str(scope["path"])
        try:
            reply = await self._reply(scope, reading, started)
        except Disconnected:
            _log.info("%s %r: the client went away", scope["method"], path[:SHOWN])
            return
        except Refused as refused:
            reply = _refusal(refused)
        except Exception as error:
            from stages.tools.serving.server import fault_message

            _log.exception("a request failed")
            reply = _refusal(Refused(500, fault_message(error)))
        _log.info("%s %r %d, %.2f s", scope["method"], path[:SHOWN], reply.status, time.monotonic() - started)
        headers = [("content-type", reply.kind), ("content-length", str(len(reply.content))), *reply.headers]
        unread = not reading.whole
        if unread:
            headers.append(("connection", "close"))
        raw = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": reply.content, "more_body": unread})
        if unread:
            await reading.linger()
            await send({"type": "http.response.body", "body": b""})

    async def _reply(self, scope: Scope, reading: _Reading, started: float) -> Reply:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_caller(headers)
        method, path = scope["method"], scope["path"]
        allowed = {"/invocations": "POST"}.get(path, "GET")
        is_endpoint = path in ("/ping", "/health", "/version", "/docs", "/openapi.json", "/invocations")
        if is_endpoint and method != allowed and (method, allowed) != ("HEAD", "GET"):
            sentence = f"{path}: asked with {method[:SHOWN]}; use {allowed}"
            return _refusal(Refused(405, sentence), (("allow", allowed),))
        if path in ("/ping", "/health"):
            return Reply(200, b"\n")
        self._check_key(headers)
        if path == "/invocations":
            return await self._invoke(headers, reading, started)
        if path == "/version":
            from mlflow.version import VERSION

            return Reply(200, VERSION.encode(), "text/plain")
        if path == "/openapi.json":
            return Reply(200, json.dumps(openapi(self._key is not None)).encode())
        if path == "/docs":
            return Reply(200, describe().encode(), "text/plain; charset=utf-8")
        raise Refused(
            404, "path: not one of /invocations, /ping, /health, /version, /docs, /openapi.json; ask POST /invocations"
        )

    def _check_caller(self, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and not _is_local(name := _name(host), self._hosts):
            raise Refused(
                403, f"Host: {name[:SHOWN]!r} is not this server's name; call it by {', '.join(sorted(self._hosts))}"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise Refused(403, "Origin: a page of another site may not ask this server; ask it from a program")

    def _check_key(self, headers: Mapping[str, str]) -> None:
        if self._key is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Compared in constant time.
        right = hmac.compare_digest(token.strip().encode("latin-1"), self._key)
        if scheme.lower() != "bearer" or not right:
            raise Refused(
                401, f"Authorization: not the key of this server; send 'Authorization: Bearer KEY' with its {KEY}"
            )

    async def _invoke(self, headers: Mapping[str, str], reading: _Reading, started: float) -> Reply:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != MEDIA_TYPE:
            raise Refused(415, f"Content-Type: {kind[:SHOWN]!r} is not read here; send JSON as {MEDIA_TYPE}")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refused(415, "Content-Encoding: nothing is unpacked here; send the JSON as it is")
        limit = self._model.max_body_bytes
        length = headers.get("content-length", "0")
        if len(length) > 18 or (length.isdecimal() and int(length) > limit):
            raise Refused(413, _too_long(limit))
        self._refuse_when_busy()
        ends = started + self._model.timeout_s
        body = bytearray()
        taken = 0
        try:
            async for chunk in reading.chunks(ends):
                if len(body) + len(chunk) > limit:
                    raise Refused(413, _too_long(limit))
                # A body without embedded videos is short, and is read however many large ones are
                # being received.
                if len(body) + len(chunk) > SMALL_BODY_BYTES:
                    if self._body_bytes + len(chunk) > BODY_BYTES:
                        raise Refused(503, f"server: the requests of others fill its memory; try again in {RETRY_S} s")
                    self._body_bytes += len(chunk)
                    taken += len(chunk)
                body += chunk
            self._refuse_when_busy()
            self._busy += 1
            try:
                return await self._answered(reading, body, ends)
            finally:
                self._busy -= 1
        finally:
            self._body_bytes -= taken

    def _refuse_when_busy(self) -> None:
        if self._busy >= MAX_REQUESTS:
            raise Refused(503, f"server: {MAX_REQUESTS} requests are waiting already; try again in {RETRY_S} s")

    async def _answered(self, reading: _Reading, body: bytearray, ends: float) -> Reply:
        loop = asyncio.get_running_loop()
        try:
            request = await loop.run_in_executor(self._threads, self._received, body)
        finally:
            body.clear()
        gone = threading.Event()
        watching = asyncio.create_task(reading.until_gone(gone))
        try:
            answers = await loop.run_in_executor(self._threads, self._model.answer, request, ends, gone)
        except Exception as error:
            from stages.tools.serving.server import Gone

            if isinstance(error, Gone):
                raise Disconnected from error
            raise
        finally:
            watching.cancel()
            request.close()
        return Reply(200, json.dumps({"predictions": answers}).encode())

    def _received(self, body: bytearray) -> Any:
        from stages.tools.serving.requests import read_request

        return self._model.receive(read_request(body))


class _Reading:
    """A request's body while it is received."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.whole = False

    async def chunks(self, ends: float) -> Any:
        """Iterate over its parts.

        Raises:
            Disconnected: the client disconnected.
            Refused: it pauses too long, or takes longer than the request may.
        """
        while not self.whole:
            try:
                message = await asyncio.wait_for(self._receive(), min(PAUSE_S, max(ends - time.monotonic(), 0.001)))
            except TimeoutError:
                raise Refused(
                    408, f"body: nothing came for {PAUSE_S:g} s, or it took too long; send it again, faster"
                ) from None
            if message["type"] != "http.request":
                raise Disconnected
            self.whole = not message.get("more_body", False)
            yield message.get("body", b"")

    async def until_gone(self, gone: threading.Event) -> None:
        """Set ``gone`` when the client has disconnected; no other message can arrive then."""
        if (await self._receive())["type"] == "http.disconnect":
            gone.set()

    async def linger(self) -> None:
        """Discard remaining data for a moment: closing a connection while the client is sending
        would destroy the answer."""
        ends = time.monotonic() + _LINGER_S
        while (left := ends - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except TimeoutError:
                return
            if message["type"] != "http.request" or not message.get("more_body", False):
                return


def _refusal(refused: Refused, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    named = {
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "ENDPOINT_NOT_FOUND",
        500: "INTERNAL_ERROR",
        503: "TEMPORARILY_UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
    more = {401: (("www-authenticate", 'Bearer realm="vidbridge"'),), 503: (("retry-after", str(RETRY_S)),)}
    text = {"error_code": named.get(refused.status, "INVALID_PARAMETER_VALUE"), "message": refused.sentence}
    return Reply(refused.status, json.dumps(text).encode(), headers=(*headers, *more.get(refused.status, ())))


def _too_long(limit: int) -> str:
    return f"body: over {limit / (1 << 20):.3g} MB; send smaller videos, or fewer of them"


def _name(host: str) -> str:
    """Name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def _is_local(name: str, hosts: frozenset[str]) -> bool:
    if name in hosts:
        return True
    try:
        # A name can be made to point here; an address cannot.
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def main(folder: str, host: str, port: str) -> int:
    """Load the model in ``folder`` and serve at ``host`` and ``port`` until SIGTERM. Returns the
    exit status."""
    import signal

    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    key = key_from_environment()
    # Decoders are started from this process, and a hostile file could read what they inherit.
    os.environ.pop(KEY, None)
    # Its own handlers come between; behind them this one lets the interpreter end in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _allow_descriptors()
    from stages.tools.serving.protocol import BoundedProtocol
    from stages.tools.serving.server import VideoAnswers

    try:
        model = VideoAnswers(Path(folder))
        model.load_context(None)
    except (ValueError, RuntimeError, OSError, VidbridgeError) as error:
        _log.error("%s", error)
        return 1
    loopback = ipaddress.ip_address(host).is_loopback
    app = ServingApp(model, key, frozenset(("localhost", "127.0.0.1", "[::1]")) if loopback else None)
    uvicorn.run(
        app,
        host=host,
        port=int(port),
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    model.close()
    return 0


def _allow_descriptors() -> None:
    """Raise the limit of open files: each connection is a descriptor, and a request holds one for
    each of its videos."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MAX_CONNECTIONS + MAX_REQUESTS * (MAX_ROWS + 1) + 200
    if soft < needed:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (min(needed, hard) if hard != resource.RLIM_INFINITY else needed, hard)
        )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
