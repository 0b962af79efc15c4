"""Seconds, peak memory and busy share of a piece of work on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A line of a part's table.

    Attributes:
        what: first cell.
        values: number in each column, by its name, which says the unit.
    """

    what: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Took:
    """Wall seconds of a work, and the most memory that tensors held during it, in GiB (0 on a
    CPU)."""

    seconds: float
    gib: float

    def values(self, busy: float | None = None) -> dict[str, float]:
        """Columns of a row; ``busy``: share of the seconds."""
        found = {"s": self.seconds}
        if self.gib:
            found["peak GiB"] = self.gib
        return found if busy is None else {**found, "busy %": 100 * busy}


def wait() -> None:
    """Wait until the device has done what it was told to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Work, *, repeats: int = 1, warm: bool = True) -> Took:
    """Median of so many runs, after one that is not counted (``warm``): it loads kernels."""
    if warm:
        work()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - began)
    return Took(statistics.median(seconds), peak_gib())


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def busy_s(work: Work) -> float:
    """Seconds of a run during which the device worked: the union of its kernels' and copies' times,
    as torch.profiler reports them; on a CPU, of the operators'.

    Divide them by the seconds of a run *without* the profiler, which slows the host down and not
    the kernels.
    """
    with recording() as record:
        work()
        wait()
    return device_s(record)


def recording() -> Any:
    """Profiler of the device's own activity."""
    return profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU])


def device_s(record: Any) -> float:
    """Seconds during which the device worked, of a profiler that has stopped."""
    return union_s((event.time_range.start, event.time_range.end) for event in record.events()) / 1e6


def union_s(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans, in their unit."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
