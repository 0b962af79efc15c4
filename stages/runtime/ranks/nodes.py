"""Several machines ("nodes") that train one row together, each with as many processes.

The first node starts a stage as ever. Where the stage trains, it opens a meeting point at
``VIDBRIDGE_RDZV`` (:mod:`stages.runtime.ranks.meeting`); the other nodes come there
(:mod:`stages.runtime.ranks.coming`), say how they are set up, and are told where the processes meet
(a static rendezvous of ``torch.distributed.run``). The meeting point stays open while they train: a
node that is silent, or whose processes failed, ends the training on all.

JSON over HTTP, and no rendezvous of torch that pickles (see
:mod:`stages.runtime.ranks.distributed`): the other nodes take a row's name from it, and nothing
else that is run.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from stages.errors import MachineError, Terminated
from stages.runtime import paths
from stages.runtime.code_digest import code_digest
from stages.runtime.machine import versions

#: Seconds between two signs of life of a node, and without one until it counts as lost.
BEAT_S, SILENT_S = 1.0, 30.0
#: Time in which processes end after they were told to.
GRACE_S = 40.0
#: Status of an answer that refuses a node.
REFUSED = 409
#: Variables that decide which path the computation takes: processes would wait for each other, or
#: sum up gradients of different roundings.
SWITCHES = (
    "VIDBRIDGE_SEQUENCE_RANKS",
    "VIDBRIDGE_SHARED_PREFIX",
    "VIDBRIDGE_ROLLOUT_ENGINE",
    "VIDBRIDGE_ROLLOUT_ENGINE_LOST",
    "VIDBRIDGE_RESUME_ACROSS_CODE",
)


class NodesError(MachineError, ValueError):
    """The nodes did not meet, differ, or one of them was lost."""


@dataclass(frozen=True)
class Nodes:
    """Nodes of a training.

    Attributes:
        count: number of nodes, at least 2.
        number: this one's; the first, 0, writes outs and MLflow's runs.
        host, port: address of the first node's meeting point.
        patience_s: time that nodes wait for each other.
    """

    count: int
    number: int
    host: str
    port: int
    patience_s: float

    @property
    def address(self) -> str:
        """As ``VIDBRIDGE_RDZV`` has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def nodes_of(environ: Mapping[str, str]) -> Nodes | None:
    """Read VIDBRIDGE_NODES, VIDBRIDGE_NODE, VIDBRIDGE_RDZV and VIDBRIDGE_RDZV_TIMEOUT_S; None: this
    machine trains alone.

    Raises:
        NodesError: a variable has an invalid value.
    """
    count = whole_number(environ, "VIDBRIDGE_NODES", 1, "a number of machines", 1)
    number = whole_number(environ, "VIDBRIDGE_NODE", 0, "a node's number", 0)
    if number >= count:
        raise NodesError(
            "VIDBRIDGE_NODE", f"{number} of {count} nodes (VIDBRIDGE_NODES)", f"number them from 0 to {count - 1}"
        )
    if count == 1:
        return None
    given = environ.get("VIDBRIDGE_RDZV", "")
    host, _, port = given.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isdigit() and 0 < int(port) < 1 << 16):
        raise NodesError(
            "VIDBRIDGE_RDZV",
            f"{given!r} is not an address, and {count} nodes are to meet",
            "set HOST:PORT of the first node, as the others reach it, such as 10.0.0.1:29400",
        )
    patience = whole_number(environ, "VIDBRIDGE_RDZV_TIMEOUT_S", 600, "a number of seconds", 1)
    return Nodes(count, number, host, int(port), float(patience))


def whole_number(
    environ: Mapping[str, str],
    name: str,
    default: int,
    what: str,
    least: int,
    error: Callable[[str, str, str], MachineError] = NodesError,
) -> int:
    """Read a whole number of at least ``least``; where it is not set, ``default``.

    Args:
        what: what it is, for the message.

    Raises:
        MachineError: ``error``: it is something else.
    """
    value = environ.get(name) or str(default)
    if not (value.isdecimal() and int(value) >= least):
        raise error(name, f"{value!r} is not {what}", f"set a whole number >= {least}, or unset it")
    return int(value)


@dataclass(frozen=True)
class Job:
    """A stage that trains.

    Attributes:
        module, arguments: what ``python -m`` is given.
        ranks: number of processes of each node.
        files: configurations of engines, by variable; they may lie elsewhere on each node.
        command: builds the command of this node's processes, from the port at which they meet.
    """

    module: str
    arguments: tuple[str, ...]
    ranks: int
    files: Mapping[str, Path]
    command: Callable[[int], Sequence[str]]

    def setup(self, nodes: Nodes) -> dict[str, str]:
        """All that must be equal on all nodes: by what it is, with the variable or place to correct
        it."""
        package = Path(__file__).parents[2]
        params = Path(paths.PARAMS_FILE)
        return {
            "VIDBRIDGE_NODES": str(nodes.count),
            "VIDBRIDGE_RDZV": nodes.address,
            "VIDBRIDGE_RANKS": str(self.ranks),
            "stage": " ".join((self.module, *self.arguments)),
            "packages": ", ".join(f"{name} {version}" for name, version in versions().items()),
            "code": code_digest([package]),
            paths.PARAMS_FILE: _digest(params) if params.exists() else "",
            **{name: _digest(file) for name, file in self.files.items()},
            **{name: os.environ.get(name, "") for name in SWITCHES},
        }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def ending_children() -> Iterator[None]:
    """Within this context SIGTERM raises, so that the processes of this node are ended."""

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def processes(job: Job, port: int, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(job.command(port), env={**os.environ, **environ})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def scratch_folder() -> Path:
    """Folder that all nodes must share: checkpoints are written there by one and read by all."""
    return Path(os.environ.get("VIDBRIDGE_SCRATCH", paths.SCRATCH))
