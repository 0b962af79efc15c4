"""Processes that have imported what stages need, and fork one child for each verb they are asked to
run.

Importing torch, transformers and TRL takes longer than a stage of a tiny model. `vidbridge run`
therefore starts such a process, and says in ``VIDBRIDGE_WARM`` where it listens; ``python -m stages
VERB`` then asks it for a child instead of importing by itself. There are two: the one for data
stages is ready first, and the one for models, its own fork, imports while they run. The child has
the arguments, working directory, environment and streams of whoever asked, so DVC and the guard
notice no difference, and it ends when whoever asked does. Without the variable (``dvc repro``)
nothing of this happens.

Only the standard library, and what prints errors, is imported here: asking must be quick.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.runtime import dispatch
from stages.runtime.verbs import LIBRARIES, VERBS, Process, preloaded

#: The folder with the UNIX sockets at which the processes listen.
VARIABLE = "VIDBRIDGE_WARM"
#: What a child that was asked to end may still take, in seconds. Less than a guard gives whoever
#: asked.
GRACE_S = 3.0
_LONGEST_REQUEST = 1 << 20
_TICK_S = 0.2


class NoWarmProcess(Exception):
    """Nobody listens at the address: whoever asked does the work itself."""


def run_in_warm_process(arguments: Sequence[str]) -> None:
    """Have a warm process run ``arguments`` and exit with their status; return where none is kept
    for them, or it has ended."""
    if (folder := os.environ.get(VARIABLE)) and arguments:
        with suppress(NoWarmProcess):
            sys.exit(ask(folder, arguments))


def ask(folder: str, arguments: Sequence[str]) -> int:
    """Have ``python -m stages ARGUMENTS`` done by a child of a warm process, on this process's
    streams; returns its status.

    SIGTERM and SIGINT are passed on, and the child's end is waited for: whoever ends this process
    may rely on nothing being left.

    Raises:
        NoWarmProcess: nobody listens in ``folder`` for this verb.
    """
    if arguments[0] not in VERBS:
        raise NoWarmProcess(f"{arguments[0]}: no process is kept warm for it")
    address = str(Path(folder) / VERBS[arguments[0]].process)
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    request = json.dumps({"arguments": list(arguments), "folder": str(Path.cwd()), "environ": environ}).encode()
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(address)
            socket.send_fds(line, [len(request).to_bytes(4, "big")], [0, 1, 2])
        except OSError as error:
            raise NoWarmProcess(f"{VARIABLE}: {address}: {error}") from error

        def end(_number: int, _frame: object) -> None:
            with suppress(OSError):
                line.shutdown(socket.SHUT_WR)

        # Sent whole before a signal may cut it off.
        line.sendall(request)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)
        try:
            answer = line.recv(16)
        except ConnectionResetError:  # it was killed before it read the request
            answer = b""
        if not answer:
            print("error: the warm process was ended, and the stage with it; run again", file=sys.stderr)
            return 1
        return int(answer)


@dataclass
class _Job:
    """A child and the line to whoever asked for it; ``kill_at`` is set once it was asked to end."""

    line: socket.socket
    kill_at: float | None = None


def serve(listener: socket.socket) -> Callable[[], None] | None:
    """Fork a child for each request. Returns in every child with what it has to do; in this process
    only when SIGTERM came (None)."""
    jobs: dict[int, _Job] = {}
    ended = False

    def on_term(_number: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the flow, which ends its stages in order
    with selectors.DefaultSelector() as watched:
        watched.register(listener, selectors.EVENT_READ)
        while not ended:
            for key, _ in watched.select(_TICK_S / 4 if jobs else _TICK_S):
                if key.fileobj is listener:
                    line, _peer = listener.accept()
                    try:
                        request, streams = _read(line)
                    except (OSError, ValueError) as error:  # whoever asked was killed while asking
                        print(f"a request that cannot be read: {error}", file=sys.stderr, flush=True)
                        line.close()
                        continue
                    pid = os.fork()
                    if pid == 0:
                        # The listener and the lines of other jobs are not the child's: they would
                        # stay open with it.
                        for other in (listener, line, *(job.line for job in jobs.values())):
                            other.close()
                        return _become(request, streams)
                    for stream in streams:
                        os.close(stream)
                    jobs[pid] = _Job(line)
                    watched.register(line, selectors.EVENT_READ, pid)
                else:
                    # Nothing is ever sent after the request: whoever asked is gone, or wants an
                    # end.
                    watched.unregister(key.fileobj)
                    if (job := jobs.get(key.data)) is not None:
                        _signal(key.data, signal.SIGTERM)
                        job.kill_at = time.monotonic() + GRACE_S
            _collect(jobs, watched)
    for pid in jobs:
        _signal(pid, signal.SIGKILL)
    return None


def _read(line: socket.socket) -> tuple[dict[str, object], list[int]]:
    head, streams, _flags, _address = socket.recv_fds(line, 4, 3)
    try:
        length = int.from_bytes(head, "big")
        if len(head) != 4 or len(streams) != 3 or length > _LONGEST_REQUEST:
            raise ValueError(f"{VARIABLE}: a request of {len(head)} + {length} bytes and {len(streams)} streams cannot be read")
        with line.makefile("rb") as stream:
            request: dict[str, object] = json.loads(stream.read(length))
    except (OSError, ValueError):
        for number in streams:
            os.close(number)
        raise
    return request, streams


def _collect(jobs: dict[int, _Job], watched: selectors.BaseSelector) -> None:
    """Answer for children that have ended; kill those that were asked to end and did not."""
    for pid, job in list(jobs.items()):
        found, raw = os.waitpid(pid, os.WNOHANG)
        if found == 0:
            if job.kill_at is not None and time.monotonic() > job.kill_at:
                _signal(pid, signal.SIGKILL)
            continue
        # What the child itself started ends with it.
        _signal(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(raw)
        with suppress(KeyError):
            watched.unregister(job.line)
        with suppress(OSError):
            job.line.sendall(str(status if status >= 0 else 128 - status).encode())
        job.line.close()
        del jobs[pid]


def _signal(pid: int, number: signal.Signals) -> None:
    """To the child and all of its session."""
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _become(request: dict[str, object], streams: Sequence[int]) -> Callable[[], None]:
    """Turn this fork into what was asked for: session, streams, folder, environment, arguments."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environ"])  # type: ignore[call-overload]
    arguments = list(request["arguments"])  # type: ignore[call-overload]
    sys.argv[1:] = arguments

    return partial(dispatch.run, arguments)


def main(folder: str) -> None:
    """``python -m stages.runtime.warm FOLDER``: requests that come before everything is imported
    wait in the queue."""
    listeners: dict[Process, socket.socket] = {name: socket.socket(socket.AF_UNIX) for name in LIBRARIES}
    for name, listener in listeners.items():
        listener.bind(str(Path(folder) / name))
        listener.listen()
    for name in LIBRARIES:
        for module in preloaded(name):
            # Not installed here (decord off x86-64): who is asked for a verb that needs it says so,
            # or does without.
            with suppress(ImportError):
                importlib.import_module(module)
        mine = listeners.pop(name)
        # The one that goes on importing is the fork: whoever started this process waits for the
        # first.
        if not listeners or os.fork() != 0:
            break
        mine.close()
    for listener in listeners.values():
        listener.close()
    with mine:
        work = serve(mine)
    if work is not None:
        work()


if __name__ == "__main__":
    main(sys.argv[1])
