"""Signs of life for runs whose process cannot be looked up: a live run raises a count, and watchers
see whether it moves.

No conclusion rests on the time of a store or of another host. A count that does not move while
*this* process reaches the store shows that its owner is lost; while the store is away nothing can
be concluded, since no run could raise its count. Observations are stored with the run, so that
several short looks add up to a long one. A run that was wrongly taken for lost corrects that with
its next sign of life (:class:`stages.tracking.runs.outbox.Outbox`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from stages.runtime.liveness import beat_every_s, lost_after_s

#: Tags of a run in MLflow: its owner, its count, the watchers' notes, and why another process ended
#: it.
PROCESS_TAG, COUNT_TAG, NOTE_TAG, LOST_TAG = (f"vidbridge.{name}" for name in ("process", "heartbeat", "still", "lost"))
#: Two looks more than this many beats apart had an interruption between them: the store was away,
#: or this process slept.
_GAP = 3.0
#: The count of a live run may stand still for one beat, which is not worth a note.
_WORTH = 2.0
_END_S = 5.0
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sign:
    """A run's count, and ``note``, stored with it by earlier watchers."""

    count: str
    note: str = ""


class Runs(Protocol):
    """Runs of one store that are recorded as running, and whose process cannot be looked up from
    here."""

    def signs(self) -> Mapping[str, Sign]:
        """Signs of life by run id. Runs whose process has certainly ended are ended."""
        ...

    def note(self, run: str, text: str) -> None:
        """Store ``text`` with the run."""
        ...

    def end(self, run: str) -> None:
        """End a lost run."""
        ...


@dataclass
class Watch:
    """Time, in seconds of looking, for which each count has stood still."""

    patience_s: float
    every_s: float
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    _looked_at: float | None = None

    def look(self, signs: Mapping[str, Sign], now_s: float) -> list[str]:
        """Record the counts at ``now_s`` (of a monotonic clock). Returns the lost runs."""
        gap = 0.0 if self._looked_at is None else now_s - self._looked_at
        self._looked_at = now_s
        before, self._seen = self._seen, {}
        for run, sign in signs.items():
            count, still_s = before.get(run) or _read(sign.note)
            if count != sign.count:
                still_s = 0.0
            elif run in before and gap <= _GAP * self.every_s:
                still_s += gap
            self._seen[run] = (sign.count, still_s)
        return [run for run, (_, still_s) in self._seen.items() if still_s >= self.patience_s]

    def notes(self) -> dict[str, str]:
        """Notes to store with each run whose count stood still."""
        return {
            run: f"{count} {still_s:.0f}"
            for run, (count, still_s) in self._seen.items()
            if still_s >= _WORTH * self.every_s
        }


def _read(note: str) -> tuple[str, float]:
    count, _, still = note.partition(" ")
    return (count, float(still)) if still.isdecimal() else ("", 0.0)


def watched_once(runs: Runs) -> None:
    """End the runs that are already certain to be lost."""
    _quietly(lambda: _look(Watch(lost_after_s(), beat_every_s()), runs))


@contextmanager
def watching(runs: Runs) -> Iterator[None]:
    """End lost runs: those already certain at once, others from a thread, for the duration of this
    block."""
    every_s = beat_every_s()
    watch, stop = Watch(lost_after_s(), every_s), threading.Event()
    _quietly(lambda: _look(watch, runs))

    def pump() -> None:
        while not stop.wait(every_s):
            _quietly(lambda: _look(watch, runs))

    thread = threading.Thread(target=pump, name="lost-runs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_END_S)
        if not thread.is_alive():
            for run, text in watch.notes().items():
                if not _quietly(partial(runs.note, run, text)):
                    break


def _look(watch: Watch, runs: Runs) -> None:
    signs = runs.signs()
    for run in watch.look(signs, time.monotonic()):
        # Each by itself: a run that this account may not end must not stop the others.
        _quietly(partial(runs.end, run))


def _quietly(call: Callable[[], None]) -> bool:
    """Call and log any failure. Watching accompanies a run, which a fault of the store must not
    end; the next look decides."""
    try:
        call()
    except Exception as error:  # a client of MLflow's or Prefect's raises what its transport does
        _LOGGER.debug("signs of life cannot be read or written: %s", error)
        return False
    return True
