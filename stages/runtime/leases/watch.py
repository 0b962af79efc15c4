"""Observation of an owner that cannot be looked up, through the count that it increments."""

from __future__ import annotations

import time
from pathlib import Path

from stages.runtime.leases.holder import Holder, beat_file, lease_file
from stages.runtime.liveness import beat_every_s, lost_after_s, process_state


class Watch:
    """Observation of the count of one owner."""

    def __init__(self, folder: Path, owner: Holder) -> None:
        self.token = owner.token
        self.changed = False
        self._folder, self._owner = folder, owner
        #: An owner with longer intervals than ours gets as many of them as we allow ourselves.
        self.patience_s = max(lost_after_s(), owner.beat_every_s * lost_after_s() / beat_every_s() / 2)
        self._seen = self._look()
        self._since = time.monotonic()
        self._at = self._since

    @property
    def still_s(self) -> float:
        return time.monotonic() - self._since

    def lost(self) -> bool:
        """Return whether the count has not changed for too long. For an owner that can be looked
        up, its process counts instead."""
        now, last = time.monotonic(), self._at
        self._at = now
        if (seen := self._look()) != self._seen:
            self._seen, self._since, self.changed = seen, now, True
        elif now - last > self.patience_s / 2:
            # This process was suspended, and the owner may have been suspended with it (on the same
            # machine).
            self._since = now
        can_look_up = self._owner.process is not None and process_state(self._owner.process) != "elsewhere"
        return not can_look_up and self.still_s > self.patience_s

    def _look(self) -> tuple[bytes, bytes]:
        # Opened again each time: a network file system then asks its server.
        return _bytes(lease_file(self._folder, self._owner.number)), _bytes(beat_file(self._folder, self._owner.number))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
