"""One server as a process with a wire in front of it.

It can be killed, stopped (it keeps its port and says nothing), cut off, slowed and started again,
with what it had kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows.processes.prefect_server import free_port
from tests.support.servers.wire import Wire

#: What the project's own environment installs is at hand for Prefect.
OURS = Path(sys.executable)
START_S = 90


@dataclass
class Service:
    """A server of which clients know the port in front, and which listens at another one: between
    them lies a wire."""

    name: str
    folder: Path
    command: Callable[[int], Sequence[str]]
    ready: Callable[[int], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    process: subprocess.Popen[bytes] | None = None
    behind: int = field(default_factory=free_port)
    wire: Wire = field(init=False)

    def __post_init__(self) -> None:
        self.wire = Wire(lambda: self.behind)

    @property
    def port(self) -> int:
        return self.wire.port

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.command(self.behind)),
                cwd=self.folder,
                env={**environment(), **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self.user,
            )
        deadline = time.monotonic() + START_S
        while not self.ready(self.behind):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def _tree(self) -> list[psutil.Process]:
        if self.process is None:
            return []
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: signal.Signals) -> None:
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """As power would: nothing is told to anybody."""
        tree = self._tree()
        self.signal(signal.SIGKILL)
        psutil.wait_procs(tree, timeout=10)
        if self.process is not None:
            self.process.wait(10)
        self.process = None

    @contextmanager
    def away(self, how: str, seconds: float) -> Iterator[None]:
        """The server is killed, stopped, cut off or slow when the block begins; after ``seconds``
        it is as before. Blocks at the end until then."""
        began = time.monotonic()
        self.trouble(how)
        try:
            yield
        finally:
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
            self.mend(how)

    def trouble(self, how: str) -> None:
        if how == "killed":
            self.kill()
        elif how == "stopped":
            self.signal(signal.SIGSTOP)
        elif how == "cut off":
            self.wire.refuse()
        elif how == "slow":
            self.wire.delay_s = 1.0
        else:
            raise ValueError(how)

    def mend(self, how: str) -> None:
        if how == "killed":
            self.start()
        elif how == "stopped":
            self.signal(signal.SIGCONT)
        elif how == "cut off":
            self.wire.accept()
        else:
            self.wire.delay_s = 0.0

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.kill()
        self.wire.close()


def environment() -> dict[str, str]:
    """This process's environment less what names servers, keys and projects."""
    ours = ("VIDBRIDGE_", "PREFECT_", "MLFLOW_", "AWS_", "DVC_", "GIT_", "PYTEST_", "UV_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "PATH": os.pathsep.join([str(OURS.parent), os.environ["PATH"]]),
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
