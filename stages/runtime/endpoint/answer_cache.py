"""Cache of judge answers by request: one SQLite file shared by several processes, so that each
request is sent once.

Only readable answers are kept. The folder must be on a local disk: SQLite's write-ahead log needs
shared memory.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stages.runtime.endpoint.settings import JudgeError

_BUSY_S = 30.0


class Cache:
    """Cache of answers by key (SHA-256 in hex). The process that claims a key sends its request; a
    claim ends with :meth:`release`, or with its process."""

    def __init__(self, table: sqlite3.Connection, locks: BinaryIO) -> None:
        self._table = table
        self._locks = locks

    def get(self, key: str) -> str | None:
        row = self._table.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, answer: str) -> None:
        self._table.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))

    def claim(self, key: str) -> bool:
        """Claim a key; False while another process has it."""
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(key))
        except (BlockingIOError, PermissionError):  # POSIX lets a system say either
            return False
        return True

    def release(self, key: str) -> None:
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _byte(key))


def _byte(key: str) -> int:
    # A lock on one byte of an empty file, at a different offset for each key; the kernel frees it
    # when the process dies.
    return 1 + int(key[:14], 16)


@contextmanager
def open_cache(folder: Path) -> Iterator[Cache]:
    """Open the cache in ``folder``, and create it if it does not exist.

    Raises:
        JudgeError: the folder cannot be used, or the file is damaged.
    """
    file = folder / "answers.db"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "claims").open("ab") as locks:
            table = sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None)
            try:
                # One process at a time: SQLite does not wait while the journal's mode changes.
                fcntl.lockf(locks, fcntl.LOCK_EX, 1, 0)
                table.execute("PRAGMA journal_mode = WAL")
                table.execute("PRAGMA synchronous = NORMAL")
                table.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
                )
                fcntl.lockf(locks, fcntl.LOCK_UN, 1, 0)
                yield Cache(table, locks)
            finally:
                table.close()
    except (sqlite3.Error, OSError) as error:
        raise JudgeError(
            "VIDBRIDGE_JUDGE_CACHE",
            f"{file}: {error}",
            "delete that file (its answers are requested again), or set a folder on a local disk with free space",
        ) from error
