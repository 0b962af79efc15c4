"""CPU time of pieces of work, and storage of measurements; the line above their tables is
:func:`stages.runtime.machine.measured`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path


def cpu_s(work: Callable[[], object]) -> float:
    """Run a piece of work; return the CPU seconds that this process took."""
    started = time.process_time()
    work()
    return time.process_time() - started


def keep(lines: Iterable[str], out: Path) -> None:
    """Write the lines of a page of measurements, replacing an earlier one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
