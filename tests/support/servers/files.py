"""A web server of a folder, with ETags and ranges as nginx has them, and troubles on request."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class FileServer:
    """``asked``: method, name and range of each request. ``cut_after``: bytes after which a body is
    cut off; ``fail_at``: first byte of a range that is answered with 500; ``status``: what every
    request is answered with; ``ranges``: whether it knows them; ``tagged``: whether it sends ETags;
    ``silent_s``: how long it waits before each answer."""

    folder: Path
    address: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    cut_after: int | None = None
    fail_at: int | None = None
    status: int | None = None
    ranges: bool = True
    tagged: bool = True
    silent_s: float = 0

    def bodies(self, name: str) -> list[str]:
        """Ranges of the bodies of a file that were asked for."""
        return [span for method, asked, span in self.asked if method == "GET" and asked == name]


class _Server(ThreadingHTTPServer):
    #: Connections that wait; one more waits for seconds to be tried again.
    request_queue_size = 64


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    """Serve the folder on loopback for this block."""
    state = FileServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            name = unquote(self.path).lstrip("/")
            span = self.headers.get("Range", "")
            state.asked.append((self.command, name, span))
            time.sleep(state.silent_s)
            path = state.folder / name
            if state.status is not None or not path.is_file():
                self.send_error(state.status or 404)
                return
            content = path.read_bytes()
            tag = hashlib.md5(content).hexdigest()
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", span) if state.ranges else None
            if found and state.fail_at is not None and int(found[1]) >= state.fail_at:
                self.send_error(500)
                return
            part = content[int(found[1]) : int(found[2]) + 1] if found else content
            self.send_response(206 if found else 200)
            if state.tagged:
                self.send_header("ETag", f'"{tag}"')
            self.send_header("Content-Length", str(len(part)))
            if state.ranges:
                self.send_header("Accept-Ranges", "bytes")
            if found:
                self.send_header("Content-Range", f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(content)}")
            self.end_headers()
            if body and state.cut_after is not None and len(part) > state.cut_after:
                self.wfile.write(part[: state.cut_after])
                self.close_connection = True
            elif body:
                self.wfile.write(part)

    server = _Server(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
