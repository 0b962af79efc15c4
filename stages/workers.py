"""Work on many items, a process a core: results in the order of the items, and an item that hangs or kills its process is one lost item.

Everything that maps over clips comes through :func:`map_items`, some of it by way of :func:`map_whole`: a cluster engine would come
to this place.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import dataclass
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
class Lost:
    """An item without a result: its process died on each try, or it took longer than it may."""

    reason: Literal["worker-died", "timeout"]
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
) -> Iterator[Result | Lost]:
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
        if isinstance(result, Lost):
            raise WorkersError(f"{name(item)}: {result.detail}{remedy}")
        made.append(result)
    return made


class Aside(Generic[Item, Result]):
    """A process that does ``work`` beside this one, call after call: what hangs or kills it there harms nothing here.

    It is started at once, makes its imports meanwhile, and ends with this process at the latest.
    """

    def __init__(self, work: Callable[[Item], Result]) -> None:
        self._work = work
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(1, initializer=_begin, initargs=[work], context=context)
        self._pool.schedule(_nothing)

    def __call__(self, item: Item, timeout_s: float) -> Result | Lost:
        """The result, or why there is none. An exception of ``work`` is raised here."""
        future = _schedule(self._pool, self._work, item, timeout_s)
        return _result(self._pool, self._work, item, future, timeout_s)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._pool.stop()
        self._pool.join()


def _schedule(pool: ProcessPool, work: Callable[[Item], Result], item: Item, timeout_s: float) -> ProcessFuture[Result]:
    future: ProcessFuture[Result] = pool.schedule(work, args=[item], timeout=timeout_s)
    return future


def _result(
    pool: ProcessPool, work: Callable[[Item], Result], item: Item, future: ProcessFuture[Any], timeout_s: float
) -> Result | Lost:
    for tries in range(1, TRIES + 1):
        try:
            result: Result = future.result()
        except OutOfTime:
            return Lost("timeout", f"not done within {timeout_s:g} s; its process was ended")
        except ProcessExpired as error:
            if tries == TRIES:
                how = f"its process died {TRIES} times (exit status {error.exitcode}: out of memory, or a decoder crashed)"
                return Lost("worker-died", how)
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
