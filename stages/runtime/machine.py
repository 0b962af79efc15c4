"""The machine that a run or a measurement was on: versions, processor, GPUs. Circumstance: tags and
metrics of a run, never part of an out."""

from __future__ import annotations

import os
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: What results may depend on, and what moves between machines most often.
PACKAGES = ("torch", "transformers", "trl", "deepspeed", "prefect", "dvc", "mlflow", "decord", "ffmpeg-python", "numpy")


def versions() -> dict[str, str]:
    """Installed versions of Python and of :data:`PACKAGES`; decord and deepspeed exist for some
    systems only."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, str]:
    """System, processor, cores and memory of this machine; not its name, which says nothing to
    others."""
    import psutil

    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
    }


def gpus_in_use() -> list[str]:
    """The names of the GPUs that this stage works on, one for each of its processes; empty where it
    works on a CPU.

    Asks torch only where the stage has imported it, so that a stage of data pays for no import. A
    judge's or a generation server's own GPUs belong to those servers and are not known here.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name()] * int(os.environ.get("WORLD_SIZE", "1"))


def measured(*packages: str) -> str:
    """When, on what and with which packages something was measured, as a sentence."""
    installed = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"Measured {date.today()} on {os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, {installed}."


def _processor() -> str:
    """The processor's model: Python itself knows only its architecture on Linux."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
