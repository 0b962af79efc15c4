"""Signs of life, for runs whose process cannot be looked up: a run that is at work raises a count, and who watches sees whether it moves.

Nothing is concluded from a time that a store or another host tells. A count that stands still while *this* process reaches the store says
that its owner is lost; while the store is away, nothing is learned, since nobody's count could be raised. What was watched is kept with
the run, so that several short looks add up to a long one. Who was taken for lost and was not says so with its next sign of life
(:class:`stages.tracking.runs.outbox.Outbox`).
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

#: Tags of a run in MLflow: whose it is, its count, what watchers keep, and why it was ended by another one.
PROCESS_TAG, COUNT_TAG, NOTE_TAG, LOST_TAG = (f"vidbridge.{name}" for name in ("process", "heartbeat", "still", "lost"))
#: Two looks that lie further apart than so many beats had something between them: the store was away, or this process slept.
_GAP = 3.0
#: A count of a run that lives may stand still for one beat, and is not worth a note.
_WORTH = 2.0
_END_S = 5.0
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sign:
    """Of one run: its count, and ``note``, which is what earlier watchers kept with it."""

    count: str
    note: str = ""


class Runs(Protocol):
    """The runs of one store that are said to be at work, and whose process cannot be looked up from here."""

    def signs(self) -> Mapping[str, Sign]:
        """Of each run, by its id. Those of which it is known that their process has ended are ended."""
        ...

    def note(self, run: str, text: str) -> None:
        """Keep ``text`` with the run."""
        ...

    def end(self, run: str) -> None:
        """End a run that is lost."""
        ...


@dataclass
class Watch:
    """How long, in seconds of looking, each count has stood still."""

    patience_s: float
    every_s: float
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    _looked_at: float | None = None

    def look(self, signs: Mapping[str, Sign], now_s: float) -> list[str]:
        """Take in what is there at ``now_s`` (of a clock that only goes on); returns the runs that are lost."""
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
        """What to keep with each run whose count stood still."""
        return {run: f"{count} {still_s:.0f}" for run, (count, still_s) in self._seen.items() if still_s >= _WORTH * self.every_s}


def _read(note: str) -> tuple[str, float]:
    count, _, still = note.partition(" ")
    return (count, float(still)) if still.isdecimal() else ("", 0.0)


def watched_once(runs: Runs) -> None:
    """End the runs that are known to be lost."""
    _quietly(lambda: _look(Watch(lost_after_s(), beat_every_s()), runs))


@contextmanager
def watching(runs: Runs) -> Iterator[None]:
    """End runs that turn out to be lost: those that are known to be at once, others in a thread, for this block."""
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
        # Each by itself: one that this account may not end keeps no other.
        _quietly(partial(runs.end, run))


def _quietly(call: Callable[[], None]) -> bool:
    """Watching is done beside a run, and no fault of the store may end that; the next look decides."""
    try:
        call()
    except Exception as error:  # a client of MLflow's or Prefect's raises what its transport does
        _LOGGER.debug("signs of life cannot be read or written: %s", error)
        return False
    return True
