"""What lies between a client and a server: a relay on loopback that can refuse, and that can take
its time."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress


class Wire:
    """Listens at :attr:`port`; what arrives goes to the port that ``target`` returns, ``delay_s``
    seconds later.

    While it refuses, nobody listens there, and connections that stood are cut.
    """

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self.delay_s = 0.0
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])
        self._serve(self._listener)

    @staticmethod
    def _listen(port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        return listener

    def _serve(self, listener: socket.socket) -> None:
        threading.Thread(target=self._take, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        # Closing alone leaves the thread in accept(), which then takes one more.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._guard:
            standing = list(self._open)
        for connection in standing:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        self._listener = self._listen(self.port)
        self._serve(self._listener)

    def close(self) -> None:
        self.refuse()

    def _take(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self._target()), timeout=10)
            except OSError:
                return
            server.settimeout(None)
            with server, selectors.DefaultSelector() as ready:
                with self._guard:
                    self._open |= {client, server}
                ready.register(client, selectors.EVENT_READ, server)
                ready.register(server, selectors.EVENT_READ, client)
                try:
                    while ready.get_map():
                        for key, _ in ready.select():
                            self._pass_on(key, ready)
                except (OSError, ValueError):
                    pass  # cut, by either side or by `refuse`
                finally:
                    with self._guard:
                        self._open -= {client, server}

    def _pass_on(self, key: selectors.SelectorKey, ready: selectors.BaseSelector) -> None:
        source, target = key.fileobj, key.data
        assert isinstance(source, socket.socket)
        data = source.recv(1 << 16)
        if self.delay_s:
            time.sleep(self.delay_s)
        if data:
            target.sendall(data)
        else:
            ready.unregister(source)
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)
