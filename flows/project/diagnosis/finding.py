"""A line of `vidbridge doctor`, and how programs and packages are looked up."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

State = Literal["ok", "warn", "missing"]
_PROBE_S = 60


@dataclass(frozen=True)
class Finding:
    """One line: subject, state, detail, and remedy (empty if none is needed)."""

    what: str
    state: State
    found: str
    todo: str = ""


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def output_of(*command: str) -> str | None:
    """Output of a program; None if it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_S, stdin=subprocess.DEVNULL, check=False
        )
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
