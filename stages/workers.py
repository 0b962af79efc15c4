"""Work on many items, a process a core: results in the order of the items, whatever finishes first."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items that travel to a worker together.
CHUNK = 8


class WorkersError(ValueError):
    """``VIDBRIDGE_WORKERS`` is no count."""


def worker_count() -> int:
    """``VIDBRIDGE_WORKERS``, else the cores that this process may use.

    Raises:
        WorkersError: the variable is no whole number of at least 1.
    """
    named = os.environ.get("VIDBRIDGE_WORKERS", "")
    if not named:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not named.isdecimal() or int(named) < 1:
        raise WorkersError(
            f"VIDBRIDGE_WORKERS: {named!r} is no number of processes; give a whole number of at least 1, or unset it"
        )
    return int(named)


def map_items(work: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
    """``work`` of each item, in order, with a progress bar; one worker means this process.

    Args:
        work: a function of a module (or a ``partial`` of one), since it travels to other processes.
        items: what to work on.
        description: stands before the bar.
    """
    workers = min(worker_count(), len(items))
    bar = {"desc": description, "total": len(items), "unit": "clip", "mininterval": 1}
    if workers < 2:
        yield from tqdm(map(work, items), **bar)
        return
    # Spawned, not forked: the parent has threads (metrics), and a fork may copy a lock that one of them holds.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        yield from tqdm(pool.map(work, items, chunksize=CHUNK), **bar)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
