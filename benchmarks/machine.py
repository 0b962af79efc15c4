"""What all measurements share: the line above their tables (when, on what, with what), and how they are kept."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path


def measured(*packages: str) -> str:
    """Date, machine and versions, as a sentence."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"Measured {date.today()} on {os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, {versions}."


def keep(lines: Iterable[str], out: Path) -> None:
    """Write the lines of a page of measurements, in the place of an earlier one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
