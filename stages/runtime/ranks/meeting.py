"""Meeting point of several machines that train together: the first node's part."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stages.runtime.ranks.nodes import BEAT_S, REFUSED, SILENT_S, Job, Nodes, NodesError, processes, scratch_folder

_MOST_BYTES = 1 << 20
#: Signs of life that a node is waited for when processes of this one fail.
_CAUSE_BEATS = 5
#: Longest value that a message shows.
_SHOWN = 60


@dataclass
class _Node:
    """One of the other nodes: the process that came for it, when it was last heard of, and the exit
    status of its processes."""

    who: str
    seen: float
    status: int | None = None


@dataclass
class _Meeting:
    """State of the meeting point; ``lock`` guards it."""

    nodes: Nodes
    job: Job
    port: int
    token: str
    setup: dict[str, str]
    others: dict[int, _Node] = field(default_factory=dict)
    state: str = "waiting"
    fault: NodesError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wanted(self) -> dict[str, Any]:
        """Answer to a node that waits for work."""
        return {"module": self.job.module, "arguments": self.job.arguments, "token": self.token}

    def note(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Take the sign of life of a node, and answer it.

        Raises:
            NodesError: the node differs from this one.
        """
        if asked.get("token", self.token) != self.token:
            # A node that is late: the training that it came for is over, and this is the next.
            return {"state": "done", "port": self.port, "token": self.token}
        number, who = int(asked["node"]), str(asked["who"])
        with self.lock:
            known = self.others.get(number)
            if known is None:
                self._check(number, asked["setup"])
                known = self.others[number] = _Node(who, time.monotonic())
            if known.who != who:
                raise NodesError(
                    "VIDBRIDGE_NODE", f"{number} is another machine's number already", "give each machine its own"
                )
            known.seen = time.monotonic()
            if asked.get("status") is not None:
                known.status = int(asked["status"])
            return {"state": self.state, "port": self.port, "token": self.token}

    def _check(self, number: int, theirs: Mapping[str, str]) -> None:
        for name in {**self.setup, **theirs}:
            own, other = self.setup.get(name, ""), str(theirs.get(name, ""))
            if other != own:
                long = max(len(own), len(other)) > _SHOWN
                shown = "differs from" if long else f"is {other!r}, and {own!r} on"
                self.fault = NodesError(
                    name, f"{shown} the first node (node {number})", "make them equal, and start this stage again"
                )
                raise self.fault
        if not 0 < number < self.nodes.count:
            raise NodesError("VIDBRIDGE_NODE", f"{number} of {self.nodes.count}", "number the nodes from 0")

    def missing(self) -> list[int]:
        with self.lock:
            return [number for number in range(1, self.nodes.count) if number not in self.others]

    def lost(self, silent_s: float) -> NodesError | None:
        """The error of a node that is silent for so long, or whose processes failed."""
        with self.lock:
            for number, node in sorted(self.others.items()):
                if node.status:
                    return NodesError(
                        f"node {number}",
                        f"its processes ended with status {node.status}, so training ended on all nodes",
                        "see the output there, and start again: training goes on from its last checkpoint",
                    )
                if node.status is None and time.monotonic() - node.seen > silent_s:
                    return NodesError(
                        f"node {number}",
                        f"was silent for {silent_s:g} s, so training ended on all nodes",
                        "see whether it is alive and reaches this one, and start again: training goes on from its"
                        " last checkpoint",
                    )
        return None

    def end(self, state: str) -> None:
        with self.lock:
            self.state = state


class _Handler(BaseHTTPRequestHandler):
    meeting: _Meeting

    def do_GET(self) -> None:
        self._answer(200, self.meeting.wanted())

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        try:
            asked = json.loads(self.rfile.read(min(length, _MOST_BYTES)))
            self._answer(200, self.meeting.note(asked))
        except NodesError as error:
            self._answer(REFUSED, {"field": error.field, "problem": error.problem, "remedy": error.remedy})
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # not one of our nodes
            self._answer(400, {"error": repr(error)})

    def _answer(self, status: int, answer: Mapping[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: nodes ask every second."""


@contextmanager
def _open(meeting: _Meeting) -> Iterator[None]:
    """Answer the other nodes during this block, from threads."""
    handler = type("Handler", (_Handler,), {"meeting": meeting})
    address = meeting.nodes
    try:
        server = ThreadingHTTPServer((address.host, address.port), handler)
    except OSError as error:
        raise NodesError(
            "VIDBRIDGE_RDZV",
            f"{address.address} cannot be listened at: {error}",
            "name an address of this machine, the first node, and a free port",
        ) from error
    shared = scratch_folder() / f".meeting-{meeting.token}"
    shared.parent.mkdir(parents=True, exist_ok=True)
    shared.touch()
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        shared.unlink(missing_ok=True)
        server.shutdown()
        server.server_close()


def lead(nodes: Nodes, job: Job, environ: Mapping[str, str], port: int) -> int:
    """Start this node's processes once all nodes are here, and wait for them; all end if one node
    fails or is lost.

    Args:
        environ: further environment variables of the processes.
        port: free port of this machine, where the processes meet.

    Returns:
        Exit status of this node's processes.

    Raises:
        NodesError: the nodes did not meet in time or differ; one of them failed or was lost.
    """
    meeting = _Meeting(nodes, job, port, uuid.uuid4().hex, job.setup(nodes))
    with _open(meeting):
        print(f"{' '.join(job.arguments)}: waits at {nodes.address} for {nodes.count - 1} more nodes", flush=True)
        try:
            _await_all(meeting)
            _tell(meeting, "go")
            with processes(job, port, environ) as process:
                while (status := process.poll()) is None:
                    if (error := meeting.lost(SILENT_S)) is not None:
                        raise error
                    time.sleep(BEAT_S / 5)
            # Processes that lose those of another node fail, and say little of the cause.
            if status and (error := _cause(meeting)) is not None:
                raise error
        except BaseException:
            _tell(meeting, "failed")
            raise
        _tell(meeting, "failed" if status else "done")
        return status


def _cause(meeting: _Meeting) -> NodesError | None:
    """The error of the node that failed with the processes of this one; None: only those failed."""
    deadline = time.monotonic() + _CAUSE_BEATS * BEAT_S
    error = None
    while error is None and time.monotonic() < deadline:
        error = meeting.lost(SILENT_S)
        time.sleep(BEAT_S / 10)
    error = error or meeting.lost((_CAUSE_BEATS - 1) * BEAT_S)
    if error is None:
        return None
    problem = f"{error.problem} (those of this node failed, too: the earlier error is the cause)"
    return NodesError(error.field, problem, error.remedy)


def _await_all(meeting: _Meeting) -> None:
    patience_s = meeting.nodes.patience_s
    deadline = time.monotonic() + patience_s
    while missing := meeting.missing():
        if meeting.fault is not None:
            raise meeting.fault
        if time.monotonic() > deadline:
            names = ", ".join(map(str, missing))
            raise NodesError(
                "VIDBRIDGE_NODES",
                f"{meeting.nodes.count}, and in {patience_s:g} s node {names} did not come to {meeting.nodes.address}",
                "start `vidbridge node` there, with the same VIDBRIDGE_RDZV; or raise VIDBRIDGE_RDZV_TIMEOUT_S",
            )
        time.sleep(BEAT_S / 10)


def _tell(meeting: _Meeting, state: str) -> None:
    """Let every node hear that training begins, or how it ended, unless the node is silent."""
    meeting.end(state)
    told = time.monotonic()
    deadline = told + 3 * BEAT_S
    while time.monotonic() < deadline and any(
        node.status is None and node.seen <= told for node in list(meeting.others.values())
    ):
        time.sleep(BEAT_S / 10)
