"""Identity of processes across containers and hosts, and checks whether a process has ended.

A process number does not identify a process: two containers each have a process 1, under one host
name if they share the host's network, and numbers are reused. A process is identified by the boot
of its kernel, its PID namespace, its number there and its start time. Only a process of the same
boot and namespace can look it up. The state of any other process is not known here: it is observed
through its heartbeat, a count that it renews (:mod:`stages.runtime.leases.lease`,
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

from stages.errors import InputError

ProcessState = Literal["alive", "gone", "elsewhere"]
#: Longest time without a heartbeat, unless ``VIDBRIDGE_LOST_AFTER_S`` sets another: saving a large
#: model may block Python.
LOST_AFTER_S = 300.0
#: Number of heartbeats within that time.
_BEATS = 20
_FIELDS = 5
#: Fields of ``/proc/PID/stat`` behind the command's name: state, and start in clock ticks since the
#: boot.
_STATE, _START = 0, 19


class LivenessError(InputError, ValueError):
    """``VIDBRIDGE_LOST_AFTER_S`` is not a number of seconds."""


@dataclass(frozen=True)
class Identity:
    """Identity of one process. Processes of one ``boot`` and ``namespace`` can look each other up;
    ``started`` has no unit and is only compared."""

    boot: str
    namespace: str
    pid: int
    started: str
    host: str

    def __str__(self) -> str:
        return f"{self.boot}/{self.namespace}/{self.pid}/{self.started}/{self.host}"

    @property
    def display_name(self) -> str:
        """Text for people."""
        return f"process {self.pid} on {self.host}"


def me() -> Identity:
    """Identity of this process; after a fork, of the child."""
    return Identity(_boot(), _namespace(), os.getpid(), _started("self") or "unknown", socket.gethostname())


def identity_of(pid: int) -> Identity | None:
    """Identity of another process of this machine; None if it does not exist."""
    started = _started(pid)
    return Identity(_boot(), _namespace(), pid, started, socket.gethostname()) if started else None


def parse(text: str) -> Identity | None:
    """Parse the text of ``str(identity)``; None if it has another form."""
    parts = text.strip().split("/", _FIELDS - 1)
    if len(parts) != _FIELDS or not parts[2].isdecimal() or not all(parts):
        return None
    boot, namespace, pid, started, host = parts
    return Identity(boot, namespace, int(pid), started, host)


def process_state(other: Identity) -> ProcessState:
    """State of a process; ``elsewhere``: it cannot be looked up from here (another boot, PID
    namespace or host name)."""
    if not _comparable(other):
        return "elsewhere"
    try:
        os.kill(other.pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass  # it belongs to another user
    except OverflowError:
        return "elsewhere"  # not a number that a process of ours could have
    started = _started(other.pid)
    if started is None:
        # It ended between the two checks, or this user may not see it (hidepid).
        return "elsewhere" if _exists(other.pid) else "gone"
    return "alive" if started == other.started else "gone"  # its number was reused, or it is a zombie


def owner_is_gone(text: str) -> bool:
    """Return whether the process that wrote ``text``, its ``str(me())``, has certainly ended. False
    if it cannot be looked up from here."""
    owner = parse(text)
    return owner is not None and process_state(owner) == "gone"


def lost_after_s(environ: Mapping[str, str] = os.environ) -> float:
    """Read ``VIDBRIDGE_LOST_AFTER_S``: time without a heartbeat after which a process that cannot
    be looked up counts as lost.

    Raises:
        LivenessError: it is not a number of seconds.
    """
    text = environ.get("VIDBRIDGE_LOST_AFTER_S", "").strip()
    if not text:
        return LOST_AFTER_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e7:
        raise LivenessError(
            "VIDBRIDGE_LOST_AFTER_S", f"{text!r} is not a number of seconds", "set 1 or more, or unset it"
        )
    return seconds


def beat_every_s() -> float:
    """Seconds between two heartbeats of this process."""
    return lost_after_s() / _BEATS


def _comparable(other: Identity) -> bool:
    # The host name as well: machines that were cloned while running have the same boot id.
    own = (_boot(), _namespace(), socket.gethostname())
    return "unknown" not in own and own == (other.boot, other.namespace, other.host) and _proc_is_ours()


def _proc_is_ours() -> bool:
    """Return whether /proc numbers processes as this process sees them; it does not in a PID
    namespace without a /proc of its own."""
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
        result = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False
        )
        if result.returncode == 0 and result.stdout.strip():
            return result.stdout.strip()
    # Other kernels: the address of the network card identifies the machine; start times of
    # processes distinguish boots there.
    return f"node-{uuid.getnode():x}"


def _namespace() -> str:
    """Number of this process's PID namespace; not cached, since a child may have its own."""
    if sys.platform != "linux":
        return "none"
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "unknown"


def _started(pid: int | Literal["self"]) -> str | None:
    """Start time of a process, in a unit that the kernel never adjusts; empty: it is a zombie;
    None: it is not visible."""
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
