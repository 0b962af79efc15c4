"""HTTP connections with limits on their number and on waiting: uvicorn itself waits for the head of
a request without limit."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from stages.tools.serving.limits import HEAD_S, MAX_CONNECTIONS, RETRY_S


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 on one connection: the head of each request arrives within HEAD_S, or the connection
    is closed."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(
                f"HTTP/1.1 503 Busy\r\nRetry-After: {RETRY_S}\r\n"
                "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            transport.close()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        else:
            self._head_came()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        # Counted from its first byte: single bytes now and then do not extend the time.
        if self._head is None:
            self._head = self.loop.call_later(HEAD_S, self._close)

    def _head_came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _close(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self.transport.close()
