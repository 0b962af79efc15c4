"""When, on what and with what something was measured."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version


def measured(*packages: str) -> str:
    """Date, machine and versions, as a sentence."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"Measured {date.today()} on {os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, {versions}."
