"""Which process something belongs to, and whether that process has ended.

A process number says nothing by itself: two containers have a process 1 each, under one host name
if they share the host's network, and a number is given again. A process is told by the boot of its
kernel, its PID namespace, its number there and the moment it started. Only one who shares boot and
namespace can look it up. Of any other process nothing is said here: whether it lives is seen by its
heartbeat, a count that it renews (:mod:`stages.runtime.lease`,
:mod:`stages.tracking.runs.heartbeats`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from stages.errors import VidbridgeError

ProcessState = Literal["alive", "gone", "elsewhere"]
#: How long a heartbeat may stand still, unless ``VIDBRIDGE_LOST_AFTER_S`` says otherwise: saving a
#: large model may hold Python up.
LOST_AFTER_S = 300.0
#: A heartbeat is renewed so many times within that time.
_BEATS = 20
_FIELDS = 5
#: Fields of ``/proc/PID/stat`` behind the command's name: state, and start in clock ticks since the
#: boot.
_STATE, _START = 0, 19


class LivenessError(VidbridgeError, ValueError):
    """``VIDBRIDGE_LOST_AFTER_S`` is not a number of seconds."""


@dataclass(frozen=True)
class Identity:
    """Of one process. Processes of one ``boot`` and ``namespace`` can look each other up;
    ``started`` has no unit and is only compared."""

    boot: str
    namespace: str
    pid: int
    started: str
    host: str

    def __str__(self) -> str:
        return f"{self.boot}/{self.namespace}/{self.pid}/{self.started}/{self.host}"

    @property
    def shown(self) -> str:
        """For a person."""
        return f"process {self.pid} on {self.host}"


def me() -> Identity:
    """Of this process; after a fork, of the child."""
    return Identity(_boot(), _namespace(), os.getpid(), _started("self") or "unknown", socket.gethostname())


def identity_of(pid: int) -> Identity | None:
    """Of another process of this machine; None: there is no such process."""
    started = _started(pid)
    return Identity(_boot(), _namespace(), pid, started, socket.gethostname()) if started else None


def parse(text: str) -> Identity | None:
    """What ``str(identity)`` wrote; None: it is not that."""
    parts = text.strip().split("/", _FIELDS - 1)
    if len(parts) != _FIELDS or not parts[2].isdecimal() or not all(parts):
        return None
    boot, namespace, pid, started, host = parts
    return Identity(boot, namespace, int(pid), started, host)


def process_state(other: Identity) -> ProcessState:
    """Whether a process lives; ``elsewhere``: it cannot be told from here (another boot, PID
    namespace or host name)."""
    if not _comparable(other):
        return "elsewhere"
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass  # it is somebody else's
    except OverflowError:
        return "elsewhere"  # not a number that a process of ours could have
    started = _started(other.pid)
    if started is None:
        # It ended between the two questions, or this user may not see it (hidepid).
        return "elsewhere" if _exists(other.pid) else "gone"
    return "alive" if started == other.started else "gone"  # another one has the number, or its parent has not asked how it ended


def owner_is_gone(text: str) -> bool:
    """Whether the process that left ``text``, which is ``str(me())``, has certainly ended. False
    also where it cannot be told from here."""
    owner = parse(text)
    return owner is not None and process_state(owner) == "gone"


def lost_after_s(environ: Mapping[str, str] = os.environ) -> float:
    """``VIDBRIDGE_LOST_AFTER_S``: how long a heartbeat that cannot be looked at otherwise stands
    still before its process counts as lost.

    Raises:
        LivenessError: it is not a number of seconds.
    """
    given = environ.get("VIDBRIDGE_LOST_AFTER_S", "").strip()
    if not given:
        return LOST_AFTER_S
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e7:
        raise LivenessError(f"VIDBRIDGE_LOST_AFTER_S: {given!r} is not a number of seconds; set 1 or more, or unset it")
    return seconds


def beat_every_s() -> float:
    """Seconds between two heartbeats of this process."""
    return lost_after_s() / _BEATS


def _comparable(other: Identity) -> bool:
    # The host name as well: machines that were copied while they ran have one boot.
    mine = (_boot(), _namespace(), socket.gethostname())
    return "unknown" not in mine and mine == (other.boot, other.namespace, other.host) and _proc_is_ours()


def _proc_is_ours() -> bool:
    """Whether /proc numbers processes as this process sees them: in a PID namespace that was given
    none of its own, it does not."""
    if sys.platform != "linux":
        return True
    try:
        return str(Path("/proc/self").readlink()) == str(os.getpid())
    except OSError:
        return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        asked = subprocess.run(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            return asked.stdout.strip()
    # Another kernel: the machine, by the address of its network card. Starts of processes are times
    # there, and tell boots apart.
    return f"node-{uuid.getnode():x}"


def _namespace() -> str:
    """Number of this process's PID namespace; not kept, since a child may have been given one of
    its own."""
    if sys.platform != "linux":
        return "none"
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "unknown"


def _started(pid: int | Literal["self"]) -> str | None:
    """When a process started, in a unit that the kernel never corrects; empty: it has ended, and
    nobody asked how; None: not to be seen."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        ended = len(fields) <= _START or fields[_STATE] in (b"Z", b"X", b"x")
        return "" if ended else fields[_START].decode()
    import psutil

    try:
        process = psutil.Process(None if pid == "self" else pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None
