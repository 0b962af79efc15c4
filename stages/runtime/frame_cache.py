"""Cache of decoded frames on disk: one file per entry, shared by all processes of a machine and by
successive stages.

An entry is a ``.npy`` file followed by the CRC-32 of its bytes. It is memory-mapped when it is
read, so that processes share its pages and none holds a copy. It gets its name only when it is
complete, even if its writer is killed. The folder must be on a local disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from tqdm import tqdm

Pixels = npt.NDArray[np.uint8]

#: Free space that is left for other writers on the disk: training writes checkpoints there.
LEFT_FREE_BYTES = 5_000_000_000
#: Fraction of its limit that the store keeps when it removes entries, so that it rarely has to scan
#: them.
_KEPT_SHARE = 0.9
_CRC_BYTES = 4
#: Age at which an incomplete entry is abandoned by its writer.
_ABANDONED_S = 3600.0


@dataclass
class StoreStats:
    """Counts of a store. ``hits``: entries read; ``misses``: entries that were decoded instead."""

    hits: int = 0
    misses: int = 0


class FrameStore:
    """Store of frames by key (SHA-256 in hex of everything that the pixels depend on); the least
    recently used entries are removed.

    A failure of the disk is not an error: entries that cannot be written or read are decoded again,
    with one warning.

    Args:
        folder: folder of the entries; created when the first one is written.
        most_bytes: limit of the size of all entries, incomplete ones included.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.stats = StoreStats()
        self.folder = folder
        self.most_bytes = most_bytes
        self._keeps = True
        self._warned = False

    def fetch(self, key: str, decode: Callable[[], Pixels]) -> tuple[Pixels, bool]:
        """Return the pixels under ``key``, uint8, read-only if they come from the disk; and whether
        the disk has them now.

        Processes that fetch the same key at once decode it once: the others wait and read.
        """
        cached = self._read(key)
        if cached is None and self._keeps:
            with self._claimed(key):
                cached = self._read(key)
                if cached is None:
                    self.stats.misses += 1
                    pixels = decode()
                    return pixels, self._write(key, pixels)
        if cached is None:
            self.stats.misses += 1
            return decode(), False
        self.stats.hits += 1
        return cached, True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _read(self, key: str) -> Pixels | None:
        path = self._path(key)
        try:
            mapped = np.lib.format.open_memmap(path, mode="r")
            with path.open("rb") as file:
                head = file.read(mapped.offset)
                file.seek(mapped.nbytes, os.SEEK_CUR)
                if file.read() != _checksum(head, mapped):
                    raise ValueError("its checksum does not fit")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError) as error:
            tqdm.write(f"warning: {path}: damaged ({error}); it is decoded again", file=sys.stderr)
            path.unlink(missing_ok=True)
            return None
        except OSError as error:
            self._warn_once(f"{self.folder}: {error.strerror}; entries that cannot be read there are decoded again")
            return None
        return np.asarray(mapped)

    @contextmanager
    def _claimed(self, key: str) -> Iterator[None]:
        """Wait until no other process decodes ``key``. A claim ends with its process. All keys
        share 256 locks, which stay few."""
        lock = FileLock(self.folder / "locks" / key[:2])
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            self._give_up(error)
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def _write(self, key: str, pixels: Pixels) -> bool:
        """Write an entry. Only the process that claimed the key calls this, so an incomplete entry
        has one writer."""
        whole, head = np.ascontiguousarray(pixels), _header(pixels)
        size = len(head) + whole.nbytes + _CRC_BYTES
        if not self._keeps or size > self.most_bytes:
            return False
        path = self._path(key)
        part = path.with_suffix(".part")
        try:
            self._take_room(part, size)
            with part.open("r+b") as file:
                file.write(head)
                file.write(whole.data)
                file.write(_checksum(head, whole))
            with self._room_lock():
                part.replace(path)
        except OSError as error:
            self._give_up(error)
            part.unlink(missing_ok=True)
            return False
        return True

    def _room_lock(self) -> FileLock:
        """Lock held while files appear, so that a process that counts them sees all of them."""
        return FileLock(self.folder / "locks" / "room")

    def _take_room(self, part: Path, size: int) -> None:
        """Reserve ``size`` bytes: remove old entries, and create ``part`` with that size, so that
        no other process takes the space."""
        with self._room_lock():
            tally = self.folder / "used_bytes"
            try:
                used = int(tally.read_text(encoding="ascii"))
            except (FileNotFoundError, ValueError):  # not there yet, or its writer was killed
                used = self._shrink(self.most_bytes)
            if used + size > self.most_bytes:
                used = self._shrink(int(self.most_bytes * _KEPT_SHARE) - size)
            if shutil.disk_usage(self.folder).free - size < LEFT_FREE_BYTES:
                raise OSError(errno.ENOSPC, f"less than {LEFT_FREE_BYTES / 1e9:g} GB would be left free")
            tally.write_text(str(used + size), encoding="ascii")
            with part.open("wb") as file:
                file.truncate(size)

    def _shrink(self, most_bytes: int) -> int:
        """Remove the least recently used entries until at most ``most_bytes`` are left; returns how
        many bytes there are then."""
        used, removable = 0, []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # it was damaged, or could not be written
                continue
            if path.suffix in (".npy", ".part"):
                used += status.st_size
                if path.suffix == ".npy" or time.time() - status.st_mtime > _ABANDONED_S:
                    removable.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(removable):
            if used <= most_bytes:
                break
            path.unlink(missing_ok=True)
            used -= size
        return used

    def _give_up(self, error: OSError | NotImplementedError) -> None:
        self._keeps = False
        reason = getattr(error, "strerror", None) or error
        self._warn_once(
            f"VIDBRIDGE_FRAME_CACHE: {self.folder}: {reason}; no more frames are kept there, and the run goes on"
            " without: free some space, lower VIDBRIDGE_FRAME_DISK_GB, or name a folder on another disk of this"
            " machine"
        )

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            tqdm.write(f"warning: {message}", file=sys.stderr)


def _header(pixels: Pixels) -> bytes:
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(pixels)))
    return head.getvalue()


def _checksum(head: bytes, pixels: Pixels) -> bytes:
    return zlib.crc32(pixels.data, zlib.crc32(head)).to_bytes(_CRC_BYTES, "big")
