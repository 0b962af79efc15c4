"""Worker processes: map a function over many items, in order. An item that hangs or kills its
process fails alone.

Everything that maps over clips uses :func:`map_items`, directly or through :func:`map_whole`; a
cluster engine would be added here.
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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, NoReturn, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool
from tqdm import tqdm

from stages.errors import MachineError
from stages.runtime.machine import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items submitted ahead of the one that is awaited, per worker: enough to keep workers busy, few
#: enough to hold in memory.
AHEAD = 16
#: Number of attempts for an item whose process died. Two, since another process may have used up
#: the memory.
TRIES = 2


class WorkersError(MachineError, RuntimeError):
    """``VIDBRIDGE_WORKERS`` is not a number of processes, or an item failed that the result cannot
    do without."""


@dataclass(frozen=True)
class ItemFailure:
    """Failure of one item: its process died on each attempt, it ran into its time limit, or it did
    not start in time."""

    reason: Literal["worker-died", "timeout", "waiting"]
    detail: str


def worker_count() -> int:
    """Number of worker processes: ``VIDBRIDGE_WORKERS``, or the number of cores that this process
    may use.

    Raises:
        WorkersError: the variable is not a whole number >= 1.
    """
    value = os.environ.get("VIDBRIDGE_WORKERS", "")
    if not value:
        return cores()
    if not value.isdecimal() or int(value) < 1:
        raise WorkersError(
            "VIDBRIDGE_WORKERS", f"{value!r} is not a number of processes", "set a whole number >= 1, or unset it"
        )
    return int(value)


#: In a worker of a map with ``sizes``: how much of each item is done, shared with the parent, and
#: the index of the present one.
_done: Any = None
_present = 0
#: Interval in which the parent looks at it.
_LOOKED_EVERY_S = 0.5


def advance(done: float) -> None:
    """Tell how much of the present item is done, in the unit of its size; nobody is told outside of
    a map with ``sizes``."""
    if _done is not None:
        _done[_present] = done


def map_items(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    *,
    timeout_s: float,
    unit: str = "clip",
    sizes: Sequence[float] | None = None,
) -> Iterator[Result | ItemFailure]:
    """Yield ``work(item)`` of each item, in order, with a progress bar. An exception of ``work``
    ends the map, with a note on the item.

    Args:
        work: a function of a module (or a ``partial`` of one), since it is pickled for other
            processes.
        items: arguments of ``work``.
        description: label of the progress bar.
        unit: unit of the progress bar.
        timeout_s: time limit of one item; after that its process is killed and replaced.
        sizes: of items that take long, in ``unit``: the bar then moves within an item, as far as
            ``work`` calls :func:`advance`.

    Raises:
        WorkersError: see :func:`worker_count`.
    """
    workers = min(worker_count(), len(items))
    if not workers:
        return
    # Spawned, not forked: the parent has threads (metrics), and a fork may copy a lock that one of
    # them holds.
    context = multiprocessing.get_context("spawn")
    # Without a lock: a worker that is killed would never release it.
    done = None if sizes is None else context.RawArray("d", len(items))
    numbered = partial(_numbered, work)
    with (
        tqdm(desc=description, total=_size(sizes, len(items)), unit=unit, mininterval=1) as bar,
        _watched(bar, done),
        ProcessPool(workers, initializer=_start, initargs=[work, done], context=context) as pool,
    ):

        def result_of(number: int, future: ProcessFuture[Result]) -> Result | ItemFailure:
            result = _result(pool, numbered, (number, items[number]), future, timeout_s)
            if sizes is None or done is None:
                bar.update()
            else:
                done[number] = sizes[number]
            return result

        try:
            waiting: deque[tuple[int, ProcessFuture[Result]]] = deque()
            for number, item in enumerate(items):
                if len(waiting) >= AHEAD * workers:
                    yield result_of(*waiting.popleft())
                waiting.append((number, _schedule(pool, numbered, (number, item), timeout_s)))
            while waiting:
                yield result_of(*waiting.popleft())
        except BaseException:
            # Cancelled or failed: items in progress may take minutes, and their results are no
            # longer needed.
            pool.stop()
            raise


def _size(sizes: Sequence[float] | None, items: int) -> int:
    return items if sizes is None else round(sum(sizes))


def _numbered(work: Callable[[Item], Result], item: tuple[int, Item]) -> Result:
    """Do the work of an item, and remember which one it is, for :func:`advance`."""
    global _present
    _present = item[0]
    return work(item[1])


@contextmanager
def _watched(bar: tqdm[NoReturn], done: Any) -> Iterator[None]:
    """Move the bar to the sum of ``done`` until the block ends; None: leave it alone."""
    if done is None:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOKED_EVERY_S):
            bar.update(min(round(sum(done)), bar.total) - bar.n)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        bar.update(min(round(sum(done)), bar.total) - bar.n)


def map_whole(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    *,
    timeout_s: float,
    name: Callable[[Item], str],
    remedy: str,
    unit: str = "clip",
) -> list[Result]:
    """Map as :func:`map_items` does, where every result is required: the first failed item raises
    an error.

    Args:
        name: returns the name of an item, for the message.
        remedy: what to do then.

    Raises:
        WorkersError: an item failed; or see :func:`worker_count`.
    """
    results: list[Result] = []
    for item, result in zip(items, map_items(work, items, description, timeout_s=timeout_s, unit=unit), strict=True):
        if isinstance(result, ItemFailure):
            raise WorkersError(name(item), result.detail, remedy)
        results.append(result)
    return results


class IsolatedWorker(Generic[Item, Result]):
    """Pool of processes that call ``work`` apart from this process: an item that hangs, crashes or
    takes too much memory harms only them.

    They are forked, in 20 ms, from a process that has done its imports (``preload``) and nothing
    else, so that a killed one is replaced at once. All end with this process at the latest. It may
    be called from many threads; items are taken in order.

    Args:
        work: a function of a module.
        processes: number of items that are processed at once.
        memory_bytes: memory that a process may take beyond its imports; more is a ``MemoryError``,
            or the end of the process (Linux). None: no limit.
    """

    def __init__(self, work: Callable[[Item], Result], *, processes: int = 1, memory_bytes: int | None = None) -> None:
        self._work = work
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([work.__module__])
        self._pool = ProcessPool(
            processes, initializer=partial(_start_isolated, memory_bytes), initargs=[work], context=context
        )
        self._pool.schedule(_no_work)

    def __call__(self, item: Item, timeout_s: float, within_s: float | None = None) -> Result | ItemFailure:
        """Return the result of one item, or its failure. An exception of ``work`` is raised here.

        Args:
            timeout_s: time limit of the work, once it has started.
            within_s: time limit that includes waiting for earlier items; None: no limit.
        """
        future = _schedule(self._pool, self._work, item, timeout_s)
        return _result(self._pool, self._work, item, future, timeout_s, within_s)

    def close(self) -> None:
        """Stop all processes, even while they work."""
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
                how = (
                    f"its process died {TRIES} times (exit status {error.exitcode}: out of memory, or a decoder"
                    " crashed)"
                )
                return ItemFailure("worker-died", how)
            future = _schedule(pool, work, item, timeout_s)
        except Exception as error:
            error.add_note(f"item: {item!r}"[:500])
            raise
        else:
            return result
    raise AssertionError("unreachable")


def _no_work() -> None:
    """Do nothing: the call that starts a process before it is needed."""


def _start(_work: object, done: Any = None) -> None:
    """Initialise a worker. Receiving the work imports its module, which then takes none of the
    first item's time.

    A worker whose parent was killed would wait for items for ever, so it ends itself.
    """
    global _done
    _done = done
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_isolated(memory_bytes: int | None, work: object) -> None:
    _start(work)
    if memory_bytes is not None and sys.platform == "linux":
        import resource

        # Only written pages of this process count: mapped shared libraries, of which torch has
        # many, use no memory.
        limit = _data_bytes() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it (``VmData`` of proc(5))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
