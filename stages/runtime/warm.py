"""Warm processes: they have imported the libraries of the stages, and fork one child per requested
verb.

Importing torch, transformers and TRL takes longer than a stage of a tiny model. `vidbridge run`
therefore starts such a process and sets its address in ``VIDBRIDGE_WARM``; ``python -m stages
VERB`` then requests a child from it instead of importing by itself. There are two: the one for data
stages is ready first; the one for models, a fork of it, does its imports while data stages run. The
child has the arguments, working directory, environment and streams of the requesting process, so
DVC and the guard notice no difference, and it ends with that process. Without the variable (``dvc
repro``) warm processes are not used.

Only the standard library and the printing of errors are imported here: a request must be quick.
"""

from __future__ import annotations

import gc
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

#: Variable with the folder of the UNIX sockets at which the processes listen.
VARIABLE = "VIDBRIDGE_WARM"
#: Time that a child has to end after SIGTERM. Less than a guard gives the requesting process.
GRACE_S = 3.0
_LONGEST_REQUEST = 1 << 20
_TICK_S = 0.2


class NoWarmProcess(Exception):
    """No process listens at the address; the requesting process does the work itself."""


def run_in_warm_process(arguments: Sequence[str]) -> None:
    """Run ``arguments`` in a warm process and exit with the status; return if there is no warm
    process for them."""
    if (folder := os.environ.get(VARIABLE)) and arguments:
        with suppress(NoWarmProcess):
            sys.exit(ask(folder, arguments))


def ask(folder: str, arguments: Sequence[str]) -> int:
    """Run ``python -m stages ARGUMENTS`` in a child of a warm process, on this process's streams,
    and return its status.

    SIGTERM and SIGINT are passed on, and this process waits for the child's end, so that nothing is
    left running after it.

    Raises:
        NoWarmProcess: no process listens in ``folder`` for this verb.
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

        # The whole request is sent before signals are handled, which would cut it off.
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
    """A child and the connection to the requesting process; ``kill_at`` is set once the child got
    SIGTERM."""

    line: socket.socket
    kill_at: float | None = None


def serve(listener: socket.socket) -> Callable[[], None] | None:
    """Fork a child for each request. Returns the work in every child, and None in this process
    after SIGTERM."""
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
                    except (OSError, ValueError) as error:  # the requesting process was killed meanwhile
                        print(f"a request that cannot be read: {error}", file=sys.stderr, flush=True)
                        line.close()
                        continue
                    pid = os.fork()
                    if pid == 0:
                        # The child must not keep the listener and the connections of other jobs
                        # open.
                        for other in (listener, line, *(job.line for job in jobs.values())):
                            other.close()
                        return _become(request, streams)
                    for stream in streams:
                        os.close(stream)
                    jobs[pid] = _Job(line)
                    watched.register(line, selectors.EVENT_READ, pid)
                else:
                    # Nothing is sent after the request: the requesting process has ended, or wants
                    # the child to end.
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
            raise ValueError(
                f"{VARIABLE}: a request of {len(head)} + {length} bytes and {len(streams)} streams cannot be read"
            )
        with line.makefile("rb") as stream:
            request: dict[str, object] = json.loads(stream.read(length))
    except (OSError, ValueError):
        for number in streams:
            os.close(number)
        raise
    return request, streams


def _collect(jobs: dict[int, _Job], watched: selectors.BaseSelector) -> None:
    """Report the status of children that have ended; kill those that did not end in time after
    SIGTERM."""
    for pid, job in list(jobs.items()):
        ended, raw = os.waitpid(pid, os.WNOHANG)
        if ended == 0:
            if job.kill_at is not None and time.monotonic() > job.kill_at:
                _signal(pid, signal.SIGKILL)
            continue
        # Processes that the child started end with it.
        _signal(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(raw)
        with suppress(KeyError):
            watched.unregister(job.line)
        with suppress(OSError):
            job.line.sendall(str(status if status >= 0 else 128 - status).encode())
        job.line.close()
        del jobs[pid]


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to the child and its whole session."""
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _become(request: dict[str, object], streams: Sequence[int]) -> Callable[[], None]:
    """Turn this fork into the requested process: session, streams, folder, environment,
    arguments."""
    gc.enable()
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
    """Run ``python -m stages.runtime.warm FOLDER``. Requests that arrive before the imports are
    done wait in the queue."""
    listeners: dict[Process, socket.socket] = {name: socket.socket(socket.AF_UNIX) for name in LIBRARIES}
    for name, listener in listeners.items():
        listener.bind(str(Path(folder) / name))
        listener.listen()
    # A collection would write to every object, and a fork copies each page that is written to. A
    # child collects only what is made after this.
    gc.disable()
    for name in LIBRARIES:
        for module in preloaded(name):
            # Not installed here (decord off x86-64): a verb that needs it reports that, or does
            # without.
            with suppress(ImportError):
                importlib.import_module(module)
        gc.freeze()
        own = listeners.pop(name)
        # The fork goes on importing: the caller waits for this first process.
        if not listeners or os.fork() != 0:
            break
        own.close()
    for listener in listeners.values():
        listener.close()
    with own:
        work = serve(own)
    if work is not None:
        work()


if __name__ == "__main__":
    dispatch.run_and_leave(partial(main, sys.argv[1]))
