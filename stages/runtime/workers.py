"""Work on many items, a process a core: results in the order of the items, and an item that hangs or kills its process is one lost item.

Everything that maps over clips comes through :func:`map_items`, some of it by way of :func:`map_whole`: a cluster engine would come
to this place.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool
from tqdm import tqdm

from stages.errors import VidbridgeError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items handed out ahead of the one that is waited for, for each worker: enough that none waits, few enough to hold in memory.
AHEAD = 16
#: How often an item whose process died is tried: a second time, since it may have died of a neighbour's hunger for memory.
TRIES = 2


class WorkersError(VidbridgeError, RuntimeError):
    """``VIDBRIDGE_WORKERS`` is no count, or an item was lost that nothing can do without."""


@dataclass(frozen=True)
class ItemFailure:
    """An item without a result: its process died on each try, it took longer than it may, or its turn did not come in time."""

    reason: Literal["worker-died", "timeout", "waiting"]
    detail: str


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


def map_items(
    work: Callable[[Item], Result], items: Sequence[Item], description: str, *, timeout_s: float, unit: str = "clip"
) -> Iterator[Result | ItemFailure]:
    """``work`` of each item, in order, with a progress bar. An exception of ``work`` ends the whole, with a note that names the item; what
    it returns is an answer.

    Args:
        work: a function of a module (or a ``partial`` of one), since it travels to other processes.
        items: what to work on.
        description: stands before the bar.
        unit: what the bar counts.
        timeout_s: after so many seconds on one item its process is killed and replaced.

    Raises:
        WorkersError: see :func:`worker_count`.
    """
    workers = min(worker_count(), len(items))
    if not workers:
        return
    # Spawned, not forked: the parent has threads (metrics), and a fork may copy a lock that one of them holds.
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(desc=description, total=len(items), unit=unit, mininterval=1) as bar,
        ProcessPool(workers, initializer=_begin, initargs=[work], context=context) as pool,
    ):
        try:
            waiting: deque[tuple[Item, ProcessFuture[Result]]] = deque()
            for item in items:
                if len(waiting) >= AHEAD * workers:
                    yield _result(pool, work, *waiting.popleft(), timeout_s)
                    bar.update()
                waiting.append((item, _schedule(pool, work, item, timeout_s)))
            while waiting:
                yield _result(pool, work, *waiting.popleft(), timeout_s)
                bar.update()
        except BaseException:
            # Cancelled or failed: what the workers have in hand may take minutes, and nobody wants it any more.
            pool.stop()
            raise


def map_whole(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    *,
    timeout_s: float,
    name: Callable[[Item], str],
    remedy: str = "",
    unit: str = "clip",
) -> list[Result]:
    """:func:`map_items` where nothing can do without an item: the first that is lost ends the whole.

    Args:
        name: how the message calls an item.
        remedy: ends the message.

    Raises:
        WorkersError: an item was lost (``<name>: <what happened><remedy>``); or see :func:`worker_count`.
    """
    made: list[Result] = []
    for item, result in zip(items, map_items(work, items, description, timeout_s=timeout_s, unit=unit), strict=True):
        if isinstance(result, ItemFailure):
            raise WorkersError(f"{name(item)}: {result.detail}{remedy}")
        made.append(result)
    return made


class IsolatedWorker(Generic[Item, Result]):
    """Processes that do ``work`` beside this one, call after call: what hangs or kills one, or takes too much memory there, harms nothing
    here.

    They are forked, in 20 ms, from one that has made its imports (``preload``) and does nothing else: one that had to be ended is
    replaced at once. All end with this process at the latest. It may be called from many threads; items are taken in order.

    Args:
        work: a function of a module.
        processes: how many items are worked on at once.
        memory_bytes: what a process may take beyond what its imports take; more is a ``MemoryError``, or its end (Linux). None: any.
    """

    def __init__(self, work: Callable[[Item], Result], *, processes: int = 1, memory_bytes: int | None = None) -> None:
        self._work = work
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([work.__module__])
        self._pool = ProcessPool(processes, initializer=partial(_begin_aside, memory_bytes), initargs=[work], context=context)
        self._pool.schedule(_nothing)

    def __call__(self, item: Item, timeout_s: float, within_s: float | None = None) -> Result | ItemFailure:
        """The result, or why there is none. An exception of ``work`` is raised here.

        Args:
            timeout_s: how long the work may take, once it has begun.
            within_s: how long it is waited for, with what comes before it; None: as long as that takes.
        """
        future = _schedule(self._pool, self._work, item, timeout_s)
        return _result(self._pool, self._work, item, future, timeout_s, within_s)

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.stop()
        self._pool.join()


def _schedule(pool: ProcessPool, work: Callable[[Item], Result], item: Item, timeout_s: float) -> ProcessFuture[Result]:
    future: ProcessFuture[Result] = pool.schedule(work, args=[item], timeout=timeout_s)
    return future


def _result(
    pool: ProcessPool,
    work: Callable[[Item], Result],
    item: Item,
    future: ProcessFuture[Any],
    timeout_s: float,
    within_s: float | None = None,
) -> Result | ItemFailure:
    ends = None if within_s is None else time.monotonic() + within_s
    for tries in range(1, TRIES + 1):
        try:
            result: Result = future.result(None if ends is None else max(ends - time.monotonic(), 0))
        except OutOfTime:
            if not future.done():
                future.cancel()
                return ItemFailure("waiting", f"not done within {within_s:g} s, with what came before it")
            return ItemFailure("timeout", f"not done within {timeout_s:g} s; its process was ended")
        except ProcessExpired as error:
            if tries == TRIES:
                how = f"its process died {TRIES} times (exit status {error.exitcode}: out of memory, or a decoder crashed)"
                return ItemFailure("worker-died", how)
            future = _schedule(pool, work, item, timeout_s)
        except Exception as error:
            error.add_note(f"item: {item!r}"[:500])
            raise
        else:
            return result
    raise AssertionError("unreachable")


def _nothing() -> None:
    """The first call of a process that has to be there before it is needed."""


def _begin(_work: object) -> None:
    """What a worker does before its first item. It is given the work so that the import of its module takes none of the item's time.

    A worker whose parent was killed would wait for items for ever: it ends itself.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin_aside(memory_bytes: int | None, work: object) -> None:
    _begin(work)
    if memory_bytes is not None and sys.platform == "linux":
        import resource

        # Written pages of this process alone: what shared libraries map, and torch maps a great deal, is no use of memory.
        limit = _data_bytes() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it (``VmData`` of proc(5))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
