"""Lease of a folder that several hosts may share: one process owns it at a time.

The lease is kept in the ``lease`` subfolder: ``N`` names the owner (JSON), ``N.beat`` holds a count
that a thread of the owner increments. It relies only on guarantees that network file systems give
too: a file is created by one process only (``O_EXCL``), and a listing is current after this process
has written into the folder. It needs no file lock, and no clock of another host: a process that
cannot look the owner up watches its count, and takes over as ``N + 1`` when the count has not
changed for :func:`stages.runtime.liveness.lost_after_s` by the watcher's own clock.

A process that was suspended for longer than that finds its lease gone when it wakes up, and must
stop: :meth:`Lease.check`.
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
from pathlib import Path
from typing import ParamSpec, TypeVar

from stages.errors import MachineError
from stages.runtime.leases.holder import (
    FOLDER,
    Holder,
    beat_file,
    holder,
    holders,
    lease_file,
    parse_holder,
    write_beat,
)
from stages.runtime.leases.watch import Watch
from stages.runtime.liveness import beat_every_s, lost_after_s, me, process_state

#: Pause between two polls of a waiting process, and between two of its messages.
LOOK_S = 1.0
TELL_S = 60.0
_HESITATION_S = 2.0
#: Two processes that take over at once may both withdraw a few times; after this many, a message is
#: printed.
_REFUSED_OFTEN = 20

_P = ParamSpec("_P")
_T = TypeVar("_T")


class LeaseLost(MachineError, RuntimeError):
    """Another process has taken over the folder that this one was working in."""


class Lease:
    """A folder owned by this process until :meth:`release`. Created only by :func:`take`."""

    def __init__(self, folder: Path, number: int, token: str) -> None:
        self.folder, self.number, self.token = folder, number, token
        self._stop = threading.Event()
        self._complained = False
        write_beat(folder, number, 0, new=True)
        # In the process that trains, which may be the fork of a warm one: a thread of the parent
        # would not be there.
        self._thread = threading.Thread(target=self._pump, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that this process still owns the folder.

        Raises:
            LeaseLost: another process owns the folder and everything in it now; do not touch it.
        """
        try:
            lost = self._is_lost()
        except OSError:
            return  # not known to be lost; where that lasts, the thread has said so
        if lost:
            raise LeaseLost(
                str(self.folder),
                f"{self._successor()} has taken it over, because this process gave no sign of life for"
                " longer than VIDBRIDGE_LOST_AFTER_S",
                "raise that on every host, and start again: the run then waits for the other",
            )

    def before(self, call: Callable[_P, _T]) -> Callable[_P, _T]:
        """Wrap ``call`` so that :meth:`check` runs before it."""

        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            self.check()
            return call(*args, **kwargs)

        return checked

    def clear(self) -> None:
        """Delete everything in the folder except the lease."""
        self.check()
        for path in self.folder.iterdir():
            if path.name == FOLDER:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def release(self) -> None:
        """Release the folder, and remove it if it is empty. A folder that another process has taken
        over is left alone."""
        self._stop.set()
        self._thread.join()
        try:
            lost = self._is_lost()
        except OSError as error:
            # The owner cannot be read; others take the folder over once this process has ended.
            _say(f"{self.folder}: its lease cannot be read, and is left there ({error.strerror})")
            return
        if not lost:
            # The name last: a folder with a count and no owner is free, one with an owner and no
            # count is not.
            for path in (beat_file(self.folder, self.number), lease_file(self.folder, self.number)):
                path.unlink(missing_ok=True)
            # Fails where another process has started to take the folder meanwhile, or where it is
            # not empty.
            with suppress(OSError):
                (self.folder / FOLDER).rmdir()
                self.folder.rmdir()

    def _is_lost(self) -> bool:
        """Return whether another process has taken over.

        Raises:
            OSError: our own file cannot be read now, which does not show who owns the folder
                (``ESTALE``, ``EIO``, ``EMFILE``).
        """
        until = time.monotonic() + _HESITATION_S
        while True:
            try:
                text = lease_file(self.folder, self.number).read_bytes()
            except FileNotFoundError:
                return True
            if parse_holder(self.number, text).token not in (self.token, ""):
                return True
            if not lease_file(self.folder, self.number + 1).exists():
                return False
            # A process that takes over deletes our file next; one that was mistaken withdraws.
            if time.monotonic() > until:
                return True
            time.sleep(_HESITATION_S / 20)

    def _successor(self) -> str:
        now = holder(self.folder)
        return "a process that has released it again" if now is None or now.token == self.token else now.display_name

    def _pump(self) -> None:
        count = 0
        while not self._stop.wait(beat_every_s()):
            count += 1
            try:
                if self._is_lost():
                    return  # :meth:`check` tells who works here
                write_beat(self.folder, self.number, count)
            except OSError as error:
                if not self._complained:
                    self._complained = True
                    print(
                        f"{self.folder}: the sign of life cannot be given ({error.strerror}); another host may take the"
                        f" folder over in {lost_after_s():g} s",
                        file=sys.stderr,
                    )


def take(folder: Path, what: str, *, wait: bool = True) -> Lease | None:
    """Take the lease of ``folder``; with ``wait``, once its owner has released it or is lost.

    Without ``wait``, None is returned if the owner can be looked up and lives, or if its count
    changes while it is watched. Messages start with ``what``.
    """
    since, told_at = time.monotonic(), -float("inf")
    watch: Watch | None = None
    refused = 0
    while True:
        if refused >= _REFUSED_OFTEN and time.monotonic() - told_at >= TELL_S:
            told_at = time.monotonic()
            others = (
                ", ".join(lease.display_name for lease in sorted(holders(folder), key=lambda lease: lease.number))
                or "nobody"
            )
            _say(
                f"{what}: {folder} cannot be taken over, though its owner has ended: in it are leases of {others};"
                f" trying again. If none of these lives, delete {folder / FOLDER}"
            )
        owner = holder(folder)
        if owner is None or _is_gone(owner):
            if (lease := _create(folder, owner)) is not None:
                if owner is not None:
                    _say(f"{what}: {folder} was held by {owner.display_name}, which has ended; taken over")
                return lease
            refused += 1
            time.sleep(random.uniform(0.05, 0.5))
            continue
        if watch is None or watch.token != owner.token:
            watch = Watch(folder, owner)
        if watch.lost():
            if (lease := _create(folder, owner)) is not None:
                _say(
                    f"{what}: {folder} was held by {owner.display_name}, whose sign of life stood still for"
                    f" {watch.still_s:.0f} s; taken over"
                )
                return lease
            refused += 1
            time.sleep(random.uniform(0.05, 0.5))
            continue
        if not wait and (watch.changed or (owner.process is not None and process_state(owner.process) == "alive")):
            return None
        if time.monotonic() - told_at >= TELL_S:
            waited = time.monotonic() - since
            _say(
                f"{what}: {folder} is held by {owner.display_name}; waiting until it ends, or gives no sign of life"
                f" for {watch.patience_s:g} s"
                + (f" (for {waited / 60:.0f} minutes so far)" if waited >= TELL_S / 2 else "")
            )
            told_at = time.monotonic()
        time.sleep(min(LOOK_S, watch.patience_s / 4))


def delete(folder: Path, what: str) -> bool:
    """Delete ``folder`` with its content; False if a living process owns it. Messages start with
    ``what``."""
    lease = take(folder, what, wait=False)
    if lease is None:
        return False
    try:
        lease.clear()
    finally:
        lease.release()
    return True


def follow(folder: Path) -> None:
    """Wait until the first process of this process's training owns ``folder``."""
    while (owner := holder(folder)) is None or owner.job != _job():
        time.sleep(LOOK_S / 4)


@contextmanager
def held(folder: Path, what: str) -> Iterator[Lease]:
    """Own ``folder`` during this block; waits for it if necessary."""
    lease = take(folder, what)
    assert lease is not None  # it waited
    try:
        yield lease
    finally:
        lease.release()


def _is_gone(owner: Holder) -> bool:
    return owner.process is not None and process_state(owner.process) == "gone"


def _create(folder: Path, before: Holder | None) -> Lease | None:
    """Try to create the lease that follows ``before``; None: another process was faster."""
    number, token = (before.number + 1 if before else 1), uuid.uuid4().hex
    row = {
        "token": token,
        "process": str(me()),
        "job": _job(),
        "after": before.token if before else "",
        "beat_every_s": beat_every_s(),
    }
    path = lease_file(folder, number)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except (FileExistsError, FileNotFoundError):  # or its owner has just deleted the folder
        return None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(row))
        file.flush()
        os.fsync(file.fileno())
    # A process that looked before the folder was deleted and created again uses an outdated number:
    # of two such processes, the second sees the other here, and both may withdraw.
    others = {lease.number: lease for lease in holders(folder) if lease.number != number}
    over: list[int] = []
    link = before if before is not None and others.get(before.number) == before else None
    while link is not None:
        # Also the leases that it took over itself, if it was killed before it deleted them.
        over.append(link.number)
        del others[link.number]
        after = link.after
        link = next((lease for lease in others.values() if after and lease.token == after), None)
    for ended in [lease for lease in others.values() if _is_gone(lease)]:
        over.append(ended.number)
        del others[ended.number]
    if others:
        path.unlink(missing_ok=True)
        return None
    # The oldest first: if this process is killed here, its successor still finds each lease through
    # the one that followed it.
    for old in sorted(over):
        for file_over in (beat_file(folder, old), lease_file(folder, old)):
            file_over.unlink(missing_ok=True)
    return Lease(folder, number, token)


def _job() -> str:
    """Id that the ranks of one training share, and no other training: their rendezvous address."""
    if "RANK" not in os.environ:
        return ""
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
