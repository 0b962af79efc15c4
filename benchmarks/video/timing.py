"""CPU time of pieces of work, run in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.machine import cpu_s


def medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, run in turn, so that a drift of the machine affects all alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(cpu_s(work))
    return {name: statistics.median(times) for name, times in taken.items()}
