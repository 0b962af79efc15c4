"""One owner of a folder that several hosts may share.

The lease of a folder lies in its ``lease`` subfolder: ``N`` names the owner (JSON), ``N.beat``
holds a count that a thread of the owner raises. It relies on what network file systems give as
well: a file is created by one process only (``O_EXCL``), and a folder is listed as it is after this
process has written into it. It relies on no file lock, and on no clock of another host: a process
that cannot look the owner up watches its count, and takes over, as ``N + 1``, when it stood still
for :func:`stages.runtime.liveness.lost_after_s` by the watcher's own clock.

A process that slept for longer than that and wakes up finds its lease gone, and must stop:
:meth:`Lease.check`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from stages.errors import VidbridgeError
from stages.runtime.liveness import Identity, beat_every_s, lost_after_s, me, parse, process_state

#: The subfolder that holds the lease; all else in the folder is the owner's.
FOLDER = "lease"
#: Between two looks of one who waits, and between two sentences of it.
LOOK_S = 1.0
TELL_S = 60.0
_BEAT_DIGITS = 20
_HESITATION_S = 2.0
#: Two who take over at once may both go back a few times; more often is told.
_REFUSED_OFTEN = 20

_P = ParamSpec("_P")
_T = TypeVar("_T")


class LeaseLost(VidbridgeError, RuntimeError):
    """Another process has taken over the folder that this one was working in."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        number: of the lease; each that takes over counts on.
        token: of this very holding.
        process: who; None while it is being written, or where it cannot be read.
        job: what the processes of one training have in common; empty outside of one.
        after: token of the one that it took over from; empty: from nobody.
        beat_every_s: how often the count is raised.
    """

    number: int
    token: str
    process: Identity | None
    job: str = ""
    after: str = ""
    beat_every_s: float = 0.0

    @property
    def shown(self) -> str:
        return "a process that has not said its name" if self.process is None else self.process.shown


class Lease:
    """A folder that is ours until :meth:`release`. Made by :func:`take` only."""

    def __init__(self, folder: Path, number: int, token: str) -> None:
        self.folder, self.number, self.token = folder, number, token
        self._stop = threading.Event()
        self._complained = False
        _beat(folder, number, 0, new=True)
        # In the process that trains, which may be the fork of a warm one: a thread of the parent
        # would not be there.
        self._thread = threading.Thread(target=self._pump, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """
        Raises:
            LeaseLost: the folder is not ours any more. What lies there belongs to another process
                now: do not touch it.
        """
        try:
            lost = self._is_lost()
        except OSError:
            return  # not known to be lost; where that lasts, the thread has said so
        if lost:
            raise LeaseLost(
                f"{self.folder}: {self._successor()} has taken it over, because this process gave no sign of life for longer than"
                " VIDBRIDGE_LOST_AFTER_S; raise that on every host, and start again: the run then waits for the other"
            )

    def before(self, call: Callable[_P, _T]) -> Callable[_P, _T]:
        """``call``, with :meth:`check` before it."""

        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            self.check()
            return call(*args, **kwargs)

        return checked

    def clear(self) -> None:
        """Delete all that the folder holds, but the lease."""
        self.check()
        for path in self.folder.iterdir():
            if path.name == FOLDER:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def release(self) -> None:
        """Let go of the folder; an empty one is removed. Nothing happens to one that is not ours
        any more."""
        self._stop.set()
        self._thread.join()
        try:
            lost = self._is_lost()
        except OSError as error:
            # Whose it is cannot be read; others take it over once this process has ended.
            _say(f"{self.folder}: its lease cannot be read, and is left there ({error.strerror})")
            return
        if not lost:
            # The name last: a folder with a count and no owner is free, one with an owner and no
            # count is not.
            for path in (_beat_file(self.folder, self.number), _file(self.folder, self.number)):
                path.unlink(missing_ok=True)
            # Not where another process has begun to take it meanwhile, nor where something lies.
            with suppress(OSError):
                (self.folder / FOLDER).rmdir()
                self.folder.rmdir()

    def _is_lost(self) -> bool:
        """Whether another process has taken over.

        Raises:
            OSError: our own file cannot be read just now, which says nothing of whose it is
                (``ESTALE``, ``EIO``, ``EMFILE``).
        """
        until = time.monotonic() + _HESITATION_S
        while True:
            try:
                text = _file(self.folder, self.number).read_bytes()
            except FileNotFoundError:
                return True
            if _parsed(self.number, text).token not in (self.token, ""):
                return True
            if not _file(self.folder, self.number + 1).exists():
                return False
            # One who takes over deletes ours next; one who was mistaken goes back.
            if time.monotonic() > until:
                return True
            time.sleep(_HESITATION_S / 20)

    def _successor(self) -> str:
        now = holder(self.folder)
        return "somebody who has left again" if now is None or now.token == self.token else now.shown

    def _pump(self) -> None:
        count = 0
        while not self._stop.wait(beat_every_s()):
            count += 1
            try:
                if self._is_lost():
                    return  # :meth:`check` tells who works here
                _beat(self.folder, self.number, count)
            except OSError as error:
                if not self._complained:
                    self._complained = True
                    print(
                        f"{self.folder}: the sign of life cannot be given ({error.strerror}); another host may take the folder over"
                        f" in {lost_after_s():g} s",
                        file=sys.stderr,
                    )


def holder(folder: Path) -> Holder | None:
    """Who holds ``folder`` now, dead or alive; None: nobody."""
    return max(_held(folder), key=lambda one: one.number, default=None)


def take(folder: Path, what: str, *, wait: bool = True) -> Lease | None:
    """Make ``folder`` ours; with ``wait``, when its owner has let go of it, or is lost.

    Without ``wait`` an owner who can be looked up and lives, or whose count changes while it is
    watched, keeps it, and None is returned. ``what`` begins each sentence that is printed.
    """
    since, told_at = time.monotonic(), -float("inf")
    watch: _Watch | None = None
    refused = 0
    while True:
        if refused >= _REFUSED_OFTEN and time.monotonic() - told_at >= TELL_S:
            told_at = time.monotonic()
            others = ", ".join(one.shown for one in sorted(_held(folder), key=lambda one: one.number)) or "nobody"
            _say(
                f"{what}: {folder} cannot be taken over, though its owner has ended: in it are leases of {others}; trying again."
                f" If none of these lives, delete {folder / FOLDER}"
            )
        found = holder(folder)
        if found is None or _is_gone(found):
            if (lease := _create(folder, found)) is not None:
                if found is not None:
                    _say(f"{what}: {folder} was held by {found.shown}, which has ended; taken over")
                return lease
            refused += 1
            time.sleep(random.uniform(0.05, 0.5))
            continue
        if watch is None or watch.token != found.token:
            watch = _Watch(folder, found)
        if watch.lost():
            if (lease := _create(folder, found)) is not None:
                _say(
                    f"{what}: {folder} was held by {found.shown}, whose sign of life stood still for {watch.still_s:.0f} s; taken over"
                )
                return lease
            refused += 1
            time.sleep(random.uniform(0.05, 0.5))
            continue
        if not wait and (watch.changed or (found.process is not None and process_state(found.process) == "alive")):
            return None
        if time.monotonic() - told_at >= TELL_S:
            waited = time.monotonic() - since
            _say(
                f"{what}: {folder} is held by {found.shown}; waiting until it ends, or gives no sign of life for {watch.patience_s:g} s"
                + (f" (for {waited / 60:.0f} minutes so far)" if waited >= TELL_S / 2 else "")
            )
            told_at = time.monotonic()
        time.sleep(min(LOOK_S, watch.patience_s / 4))


def delete(folder: Path, what: str) -> bool:
    """Delete ``folder`` and all that it holds, unless a living process holds it; False: it does.
    ``what`` begins what is printed."""
    mine = take(folder, what, wait=False)
    if mine is None:
        return False
    try:
        mine.clear()
    finally:
        mine.release()
    return True


def follow(folder: Path) -> None:
    """Wait until the first process of the training that this one belongs to holds ``folder``."""
    while (found := holder(folder)) is None or found.job != _job():
        time.sleep(LOOK_S / 4)


@contextmanager
def held(folder: Path, what: str) -> Iterator[Lease]:
    """Hold ``folder`` for this block, waiting for it if need be."""
    lease = take(folder, what)
    assert lease is not None  # it waited
    try:
        yield lease
    finally:
        lease.release()


class _Watch:
    """The count of one owner, as it is seen from here."""

    def __init__(self, folder: Path, found: Holder) -> None:
        self.token = found.token
        self.changed = False
        self._folder, self._found = folder, found
        #: An owner with longer pauses than ours is given as many of them as we give ourselves.
        self.patience_s = max(lost_after_s(), found.beat_every_s * lost_after_s() / beat_every_s() / 2)
        self._seen = self._look()
        self._since = time.monotonic()
        self._at = self._since

    @property
    def still_s(self) -> float:
        return time.monotonic() - self._since

    def lost(self) -> bool:
        """Whether the count stood still for as long as it may. An owner that can be looked up is
        asked for its process instead."""
        now, last = time.monotonic(), self._at
        self._at = now
        if (seen := self._look()) != self._seen:
            self._seen, self._since, self.changed = seen, now, True
        elif now - last > self.patience_s / 2:
            # It was this process that slept, and the owner may have slept with it (a machine that
            # was suspended).
            self._since = now
        known = self._found.process is not None and process_state(self._found.process) != "elsewhere"
        return not known and self.still_s > self.patience_s

    def _look(self) -> tuple[bytes, bytes]:
        # Opened anew each time: a network file system asks its server then.
        return _bytes(_file(self._folder, self._found.number)), _bytes(_beat_file(self._folder, self._found.number))


def _is_gone(found: Holder) -> bool:
    return found.process is not None and process_state(found.process) == "gone"


def _create(folder: Path, before: Holder | None) -> Lease | None:
    """Try to hold the folder after ``before``; None: another process was faster."""
    number, token = (before.number + 1 if before else 1), uuid.uuid4().hex
    row = {
        "token": token,
        "process": str(me()),
        "job": _job(),
        "after": before.token if before else "",
        "beat_every_s": beat_every_s(),
    }
    path = _file(folder, number)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except (FileExistsError, FileNotFoundError):  # or its owner has just deleted the folder
        return None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(row))
        file.flush()
        os.fsync(file.fileno())
    # Whoever looked before the folder was deleted and made again believes in a number that means
    # nothing now: of two such, the one who comes second sees the other here, and both may go back.
    others = {one.number: one for one in _held(folder) if one.number != number}
    over: list[int] = []
    link = before if before is not None and others.get(before.number) == before else None
    while link is not None:
        # And those that it took over from itself, if it was killed before it deleted them.
        over.append(link.number)
        del others[link.number]
        after = link.after
        link = next((one for one in others.values() if after and one.token == after), None)
    for gone in [one for one in others.values() if _is_gone(one)]:
        over.append(gone.number)
        del others[gone.number]
    if others:
        path.unlink(missing_ok=True)
        return None
    # The oldest first: whoever follows one that is killed here still finds each by the one that
    # took over from it.
    for old in sorted(over):
        for file_over in (_beat_file(folder, old), _file(folder, old)):
            file_over.unlink(missing_ok=True)
    return Lease(folder, number, token)


def _held(folder: Path) -> list[Holder]:
    try:
        names = [path.name for path in (folder / FOLDER).iterdir()]
    except FileNotFoundError:
        return []
    found = (_read(folder, int(name)) for name in names if name.isdecimal())
    return [one for one in found if one is not None]


def _read(folder: Path, number: int) -> Holder | None:
    """Who holds lease ``number``; None: there is no such lease."""
    try:
        text = _file(folder, number).read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return Holder(number, "", None)
    return _parsed(number, text)


def _parsed(number: int, text: bytes) -> Holder:
    try:
        row: dict[str, Any] = json.loads(text)
        process = parse(str(row["process"]))
        return Holder(number, str(row["token"]), process, str(row["job"]), str(row["after"]), float(row["beat_every_s"]))
    except (ValueError, KeyError, TypeError):
        return Holder(number, "", None)  # it is being written


def _beat(folder: Path, number: int, count: int, *, new: bool = False) -> None:
    # In place and always as long: a full disk has room for it.
    with _beat_file(folder, number).open("wb" if new else "r+b") as file:
        file.write(str(count).zfill(_BEAT_DIGITS).encode())


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _file(folder: Path, number: int) -> Path:
    return folder / FOLDER / str(number)


def _beat_file(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number}.beat"


def _job() -> str:
    """What the ranks of one training share, and no other training: where they meet."""
    if "RANK" not in os.environ:
        return ""
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
