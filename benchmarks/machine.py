"""Storage of measurements; the line above their tables is
:func:`stages.runtime.machine.measured`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def keep(lines: Iterable[str], out: Path) -> None:
    """Write the lines of a page of measurements, replacing an earlier one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
