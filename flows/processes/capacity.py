"""Cores and memory that this process may use: the machine's, or less in a container.

Limits of control groups of version 2 count; those of version 1 do not.
"""

from __future__ import annotations

import os
from pathlib import Path

#: The process's own control group, as a container sees it.
_GROUP = Path("/sys/fs/cgroup")


def cores(group: Path = _GROUP) -> int:
    """Number of cores that this process may use: its affinity, or the group's quota of time rounded
    down, whichever is less; at least 1.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        allowed = min(allowed, int(quota) // int(period))
    return max(1, allowed)


def free_memory_gb(group: Path = _GROUP) -> float:
    """Memory in GB (10⁹ bytes) that new processes can use without swapping."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = _read(group / "memory.max"), _read(group / "memory.current")
    if limit.isdigit() and used.isdigit():
        # The kernel drops pages of files that were not read for long before it refuses memory.
        counts = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
        free = min(free, int(limit) - int(used) + int(counts.get("inactive_file", "0")))
    return max(0, free) / 1e9


def _read(file: Path) -> str:
    """Content of a file of the kernel; empty where there is none."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (FileNotFoundError, PermissionError):
        return ""
