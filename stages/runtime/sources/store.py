"""Cache of fetched files on disk, by content: one copy whatever it is called and wherever it came
from.

Layout, below ``VIDBRIDGE_SOURCE_CACHE`` (``.vidbridge/sources``)::

    objects/ab/abcd….mp4   a file under its SHA-256 and its own suffix, read-only, complete
    known/ROOT.jsonl       which content an object of a source had, by its name and version
    shards/KEY.json        what a tar holds (stages.runtime.sources.shards)
    views/ROOT/DIGEST/     names of a source's files, and its rows (stages.ingest.source)
    partial/, locks/       files on their way in, and claims on them

Several processes may use one folder. A file gets its name when it is complete and on the disk; one
that was cut short is continued. The least recently used files go when the bound is reached. The
folder must be on a local disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from filelock import FileLock

from stages.errors import InputError
from stages.runtime import paths
from stages.runtime.sources.bounds import most_bytes_of
from stages.runtime.sources.failures import disk_full

CACHE_VARIABLE, SIZE_VARIABLE = "VIDBRIDGE_SOURCE_CACHE", "VIDBRIDGE_SOURCE_CACHE_GB"
#: Default of VIDBRIDGE_SOURCE_CACHE_GB: bound on fetched files, in GB.
MOST_GB = 100.0
#: A file handed out within this many seconds stays, whatever the bound: it is about to be opened.
IN_USE_S = 300.0
#: Fraction of the bound that is kept when files are removed, so that they are rarely counted.
_KEPT_SHARE = 0.9
#: Age at which a partial file is given up.
_ABANDONED_S = 7 * 24 * 3600.0


class SourceStore:
    """The cache in ``folder``, of at most ``most_bytes`` of files."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._held: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "most_bytes": self.most_bytes}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def find(self, sha256: str, name: str) -> Path | None:
        """Path of the file with this content, and mark it as used now; None if it is not here.

        ``name``: any name with its suffix, by which decoders guess the container.
        """
        path = self._object(sha256, name)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError:  # A cache that may only be read: its files keep their age.
            return path if path.is_file() else None
        return path

    def found(self, sha256: str, name: str) -> Path:
        """Path of a file that was put in or found just now, and is kept for a while whatever the
        bound."""
        path = self.find(sha256, name)
        assert path is not None
        return path

    def add(
        self, key: str, name: str, size: int | None, write: Callable[[Path], None], known: Callable[[], str | None]
    ) -> str:
        """Put a file in, and return its SHA-256.

        ``write`` gets the path of a partial file and completes it; where one of the same ``key``
        was cut short, its beginning is there already. One process writes a key at a time; the
        others wait, and ``known`` tells them its SHA-256.

        Raises:
            SourceAccessError: no room on the disk.
        """
        with self.claim("object", key):
            if (sha256 := known()) is not None and self.find(sha256, name) is not None:
                return sha256
            part = self.folder / "partial" / key
            with _writing():
                part.parent.mkdir(parents=True, exist_ok=True)
                write(part)
                found = part.stat().st_size
                if size is not None and found != size:
                    part.unlink()
                    raise OSError(f"{name}: {found:,} bytes came, {size:,} were listed")
                return self.keep(part, name)

    def keep(self, part: Path, name: str, sha256: str | None = None) -> str:
        """Move a complete file, written below :meth:`scratch` or by :meth:`add`, to its place."""
        if sha256 is None:
            with part.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        path = self._object(sha256, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = part.stat().st_size
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o444)
        part.replace(path)
        self._count(size)
        return sha256

    def scratch(self) -> Path:
        """Folder of partial files."""
        folder = self.folder / "partial"
        with _writing():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def claim(self, kind: str, key: str) -> Iterator[None]:
        """Wait until no other process works on ``key``. A claim ends with its process; all keys
        share 256 locks a kind."""
        with _writing():
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "locks" / f"{kind}-{key[:2]}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def prune(self, unused_s: float = IN_USE_S) -> int:
        """Remove the least recently used files until the bound holds. Returns the bytes freed."""
        files = []
        for path in (self.folder / "objects").glob("*/*"):
            with suppress(FileNotFoundError):  # Another process removes it.
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        held = sum(size for _, size, _ in files)
        freed, now = 0, time.time()
        for used, size, path in sorted(files) if held > self.most_bytes else ():
            if held - freed <= self.most_bytes * _KEPT_SHARE or now - used < unused_s:
                break
            path.unlink(missing_ok=True)
            freed += size
        for part in (self.folder / "partial").glob("*"):
            with suppress(FileNotFoundError):
                if now - part.stat().st_mtime > _ABANDONED_S:
                    part.unlink()
        self._held = held - freed
        return freed

    def _count(self, added: int) -> None:
        with self._lock:
            if self._held is None or self._held + added > self.most_bytes:
                self.prune()
            else:
                self._held += added

    def _object(self, sha256: str, name: str) -> Path:
        return self.folder / "objects" / sha256[:2] / f"{sha256}{PurePosixPath(name).suffix}"


class Known:
    """The content that objects of one source had, by name and version. Lines are only appended, so
    that a process that is ended loses none. The file is read when it is first asked."""

    def __init__(self, store: SourceStore, root: str) -> None:
        self._store, self._root = store, root
        self._path = store.folder / "known" / f"{digest(root)}.jsonl"
        self._contents: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._read_bytes = 0

    def __getstate__(self) -> dict[str, object]:
        return {"store": self._store, "root": self._root}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _read(self) -> None:
        """Read the lines that were appended since, by any process."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                with suppress(ValueError, KeyError, TypeError):  # cut short by a kill
                    row = json.loads(line)
                    self._contents[row["name"], row["version"]] = row["sha256"]

    def get(self, name: str, version: str) -> str | None:
        """SHA-256 of this version of an object, as any process found it; None if none did."""
        if (name, version) not in self._contents:
            with self._lock:
                self._read()
        return self._contents.get((name, version))

    def put(self, name: str, version: str, sha256: str) -> None:
        line = json.dumps({"name": name, "version": version, "sha256": sha256})
        with self._lock, _writing():
            self._contents[name, version] = sha256
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # One write a line, with a break before it: a line that was cut short stays alone.
            with self._path.open("ab", buffering=0) as file:
                file.write(f"\n{line}\n".encode())


def digest(*parts: str) -> str:
    """Name of a thing in the store: a hash of its parts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def open_store(root: Path | None = None) -> SourceStore:
    """The cache that ``VIDBRIDGE_SOURCE_CACHE`` and ``VIDBRIDGE_SOURCE_CACHE_GB`` set; ``root``:
    the project's folder, else the working folder.

    Raises:
        InputError: the bound is not a number above 0.
    """
    most_bytes = most_bytes_of(SIZE_VARIABLE, MOST_GB, InputError)
    named = os.environ.get(CACHE_VARIABLE, "").strip()
    folder = Path(named).expanduser() if named else (root or Path()) / paths.SOURCES
    return SourceStore(folder.absolute(), most_bytes)


@contextmanager
def _writing() -> Iterator[None]:
    """Raise a full disk as what it is."""
    import errno

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(error) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and error.filename:
            raise InputError(
                CACHE_VARIABLE,
                f"{error.filename} cannot be written to",
                f"set {CACHE_VARIABLE} to a folder that can be",
            ) from error
        raise
