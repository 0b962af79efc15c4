"""Machine of a run or a measurement: versions, processor, GPUs, and how much of it this process may
use. Circumstance: in tags and metrics of a run, never in an out.

Of a container's limits those of control groups of version 2 count; those of version 1 do not.
"""

from __future__ import annotations

import os
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Packages that results may depend on, and that differ between machines most often.
PACKAGES = ("torch", "transformers", "trl", "deepspeed", "prefect", "dvc", "mlflow", "decord", "ffmpeg-python", "numpy")
#: Time for which the use of cores is measured, in seconds.
_LOOKED_S = 0.3
#: The process's own control group, as a container sees it.
_GROUP = Path("/sys/fs/cgroup")


def versions() -> dict[str, str]:
    """Installed versions of Python and of :data:`PACKAGES`; decord and deepspeed exist for some
    systems only."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def machine() -> dict[str, str]:
    """System, processor, cores and memory of this machine, without its name."""
    import psutil

    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
    }


def gpus_in_use() -> list[str]:
    """Names of the GPUs that this stage uses, one per process; empty on a CPU.

    Uses torch only if the stage has imported it, so that data stages pay for no import. GPUs of a
    judge's or a generation server are not known here.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name()] * int(os.environ.get("WORLD_SIZE", "1"))


def cores(group: Path = _GROUP) -> int:
    """Number of cores that this process may use: its affinity, or the group's quota of time rounded
    down, whichever is less; at least 1.
    """
    allowed = len(_affinity())
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


def idle_cores(bytes_each: int) -> int:
    """Number of cores of this process that are free now, at most as many as free memory has room
    for at ``bytes_each``. The last one counts if a quarter of it is free, since a process on that
    much still helps one that has a core to itself. Takes a third of a second."""
    import psutil

    busy = psutil.cpu_percent(interval=_LOOKED_S, percpu=True)
    mine = _affinity()
    idle = int(sum(1 - percent / 100 for core, percent in enumerate(busy) if core in mine) + 0.75)
    return min(idle, cores(), int(free_memory_gb() * 1e9 / bytes_each))


def measured(*packages: str) -> str:
    """Sentence on the date, machine and package versions of a measurement."""
    installed = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"Measured {date.today()} on {os.cpu_count()} cores of {platform.machine()}, Python"
        f" {platform.python_version()}, {installed}."
    )


def _affinity() -> set[int]:
    """Numbers of the cores on which this process may run; where the system tells none, of all."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _read(file: Path) -> str:
    """Content of a file of the kernel; empty where there is none."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (FileNotFoundError, PermissionError):
        return ""


def _processor() -> str:
    """Model of the processor; on Linux, Python itself reports only its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
