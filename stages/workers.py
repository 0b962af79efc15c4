"""Work on many items, a process a core: results in the order of the items, whatever finishes first."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items that travel to a worker together, at most.
CHUNK = 8


class WorkersError(RuntimeError):
    """``VIDBRIDGE_WORKERS`` is no count, or a worker process died."""


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

    Raises:
        WorkersError: see :func:`worker_count`, and where a worker process died.
    """
    workers = min(worker_count(), len(items))
    bar: dict[str, Any] = {"desc": description, "total": len(items), "unit": "clip", "mininterval": 1}
    if workers < 2:
        yield from tqdm(map(work, items), **bar)
        return
    # Spawned, not forked: the parent has threads (metrics), and a fork may copy a lock that one of them holds.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        yield from tqdm(pool.map(work, items, chunksize=min(CHUNK, len(items) // (8 * workers) + 1)), **bar)
    except BaseException as error:
        # Cancelled or failed: what the workers have in hand may take minutes, and nobody wants it any more.
        for child in active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise WorkersError(
                f"{description}: a worker process died (out of memory?); see the lines above, or try fewer: VIDBRIDGE_WORKERS=1"
            ) from error
        raise
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
