"""Content by hash: resolve ``dvc://<hash>.dir/<path>`` in the project's DVC cache, else in its
remote. Read-only.

Outside a project the cache folder replaces that cache
(:mod:`stages.tracking.lineage.cache_folder`), and the environment names the remote.

A URI names content, never a repository, a host or a file on this machine. An account that can write
to the registry can name any content of the project's remote; one that can also write to the remote
can name content of its own. Neither can make a reader write outside its target folder: lists are
checked whole before any file is placed (:mod:`stages.tracking.lineage.listing`), and links are
never written through (:mod:`stages.tracking.lineage.placing`).
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages.runtime.paths import LOCK_FILE, STATE
from stages.tracking.lineage.cache_folder import check_writable, is_cache, mark_used
from stages.tracking.lineage.listing import MAX_BYTES, ListError, is_hash, parse_list, too_long
from stages.tracking.lineage.placing import put_file
from stages.tracking.lineage.remote import PROBE_S, is_of_remote, probe, remote_errors, remote_label, within
from stages.tracking.lineage.source import Source, below, placed
from stages.tracking.lineage.transfer import missing_content, open_remote, remote_name, transfer_objects
from stages.tracking.lineage.uri import TrackingError, display_uri


class ContentStore:
    """Objects of one DVC project, or of a cache folder: cache first, then remote.

    Fetched objects stay in the cache and are verified by their hash.
    """

    def __init__(self, repo: Any, root: Path) -> None:
        self.repo, self.root = repo, root
        self.cache = repo.cache.local
        #: True once an object has come from the remote.
        self.fetched = False
        self._lists: dict[str, dict[str, str]] = {}
        self._lock = FileLock(root / STATE / "fetch.lock")

    def remote_name(self) -> str | None:
        """Name of the remote this project uses; None if none is configured."""
        return remote_name(self.repo)

    def remote(self) -> Any | None:
        """The remote's object database; None if none is configured.

        Raises:
            TrackingError: DVC does not understand its configuration.
        """
        return open_remote(self.repo, self.root, "remote") if self.remote_name() else None

    def has(self, oid: str) -> bool:
        """Return whether the cache has the object with the content its hash names.

        Raises:
            TrackingError: it is not a hash.
        """
        from dvc_objects.errors import ObjectFormatError

        _refuse_foreign([oid], LOCK_FILE)
        try:
            # DVC makes an object read-only once its hash is verified. If it is writable, another
            # process is writing or verifying it now, or was killed before. DVC removes what it
            # finds incomplete, so the check waits for the writer.
            with nullcontext() if self._is_verified(oid) else self._exclusive():
                self.cache.check(oid)
        except (FileNotFoundError, ObjectFormatError):
            return False
        return True

    def _is_verified(self, oid: str) -> bool:
        path = Path(self.cache.oid_to_path(oid))
        return not path.exists() or not path.stat().st_mode & 0o222

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the cache against other processes of ours that fetch into it; a cache that cannot
        be written is read without."""
        try:
            (self.root / STATE).mkdir(mode=0o700, exist_ok=True)
            self._lock.acquire()
        except OSError:
            yield
            return
        try:
            yield
        finally:
            self._lock.release()

    def files(self, oid: str, what: str = "") -> dict[str, str]:
        """Read the list of a folder: relative path to hash, each safe to place below a folder.

        ``what`` names the folder in errors.

        Raises:
            ListError: a path could lie outside the folder, or it is not a list.
            TrackingError: neither cache nor remote has it.
        """
        if oid not in self._lists:
            self._lists[oid] = parse_list(self.list_bytes(oid, what), oid, what)
        return self._lists[oid]

    def list_bytes(self, oid: str, what: str = "") -> bytes:
        """Bytes of a folder's list as stored, verified by hash but not parsed."""
        if not is_hash(oid) or not oid.endswith(".dir"):
            raise ListError(
                f"{what or 'folder'}",
                f"{oid[:200]!r} is not a hash of a folder (32 hex digits and '.dir')",
                "run its stage again",
            )
        self._refuse_long(oid, what)
        self.fetch([oid], f"{what}: folder {oid}" if what else oid)
        path = Path(self.cache.oid_to_path(oid))
        if path.stat().st_size > MAX_BYTES:
            raise too_long(oid, path.stat().st_size, what)
        text = path.read_bytes()
        if hashlib.md5(text, usedforsecurity=False).hexdigest() != oid.removesuffix(".dir"):
            raise ListError(
                f"{what or 'folder'}",
                f"{path} does not match the hash in its name",
                "remove it, and it is fetched again",
            )
        return text

    def sub_hash(self, oid: str, path: str) -> str | None:
        """Compute the hash that DVC gives ``path`` inside folder ``oid`` when a stage depends on
        that part only. None: no such part."""
        from dvc_data.hashfile.tree import Tree

        files = self.files(oid)
        if path in files:
            return files[path]
        inside = [
            {"md5": md5, "relpath": name.removeprefix(f"{path}/")} for name, md5 in files.items() if below(name, path)
        ]
        if not inside:
            return None
        tree = Tree.from_list(inside)
        tree.digest()
        return str(tree.hash_info.value)

    def read(self, oid: str, path: str) -> bytes | None:
        """Read one file of a folder; None if the folder has no such file."""
        file = self.files(oid).get(path)
        if file is None:
            return None
        self.fetch([file], f"{oid}/{path}")
        return Path(self.cache.oid_to_path(file)).read_bytes()

    def size(self, oid: str) -> int | None:
        """Size of a file in bytes; None if only the remote has it."""
        path = Path(self.cache.oid_to_path(oid))
        return path.stat().st_size if path.exists() else None

    def place(self, source: Source, folder: Path, strip: str = "") -> None:
        """Put the files of ``source`` into ``folder`` (weights as hard links to the cache where the
        file system allows it).

        A file's target is its path inside the out, without the leading folder ``strip``.

        Raises:
            ListError: the folder's list could write elsewhere; no file was placed.
            TrackingError: neither cache nor remote has them, no file lies under that path, or a
                link blocks a target.
        """
        files = placed(self.files(source.oid), source, strip)
        if not files:
            raise TrackingError(source.uri, "the folder holds nothing under that path", "correct the path")
        self.fetch([md5 for _, md5 in files.values()], source.uri)
        for path, (_, md5) in files.items():
            self._put(folder, path, md5)

    def place_file(self, source: Source, target: Path) -> None:
        """Copy the one file that ``source`` names to ``target``.

        Raises:
            ListError, TrackingError: as `place`, or it names a folder.
        """
        md5 = self.files(source.oid).get(source.path)
        if md5 is None:
            raise TrackingError(source.uri, "the folder holds no file of that name", "correct the name")
        self.fetch([md5], source.uri)
        self._put(target.parent, target.name, md5)

    def _put(self, folder: Path, path: str, md5: str) -> None:
        """Place one object. Verify the copy unless it is the very file whose hash was verified in
        the cache."""
        object_ = Path(self.cache.oid_to_path(md5))
        before = object_.stat()
        put_file(folder, path, object_)
        after = object_.stat()
        settled = stat.S_IMODE(after.st_mode) == self.cache.CACHE_MODE
        if settled and (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            return
        # Another process has meanwhile put its own copy into the cache; or this file system has no
        # modes.
        placed_file = folder / path
        with placed_file.open("rb") as file:
            md5_of_copy = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5_of_copy != md5:
            placed_file.unlink()
            raise TrackingError(
                str(placed_file), f"is not the object {md5}, which changed while it was placed", "try again"
            )

    def fetch(self, oids: Sequence[str], what: str) -> None:
        """Bring the objects into the cache; ``what`` names them in the error.

        Raises:
            MissingContent: neither the cache nor the remote has one of them.
            TrackingError: the remote does not answer, or an oid is not a hash: DVC would take it
                for a path on this machine.
        """
        from dvc_data.hashfile.hash_info import HashInfo

        _refuse_foreign(oids, what)
        missing = sorted({oid for oid in oids if not self.has(oid)})
        if is_cache(self.root):
            mark_used(*(Path(self.cache.oid_to_path(oid)) for oid in oids if oid not in missing))
        if not missing:
            return
        remote = open_remote(self.repo, self.root, what)
        if is_cache(self.root):
            check_writable(self.root, what)
        with self._exclusive():
            # Another process may have fetched them meanwhile.
            if wanted := {HashInfo("md5", oid) for oid in missing if not self.has(oid)}:
                self.fetched = True
                transfer_objects(self.cache, remote, self.cache, wanted, self.remote_name(), what)
            # DVC silently drops objects that do not match their hash.
            lost = [oid for oid in missing if not self.has(oid)]
        if lost:
            raise missing_content(
                self.root,
                self.remote_name(),
                what,
                lost[0],
                f"nor, undamaged, in the remote {remote_label(self.remote_name())} ({display_uri(remote.path)})",
            )

    def push(self, oids: Sequence[str]) -> int:
        """Copy the folders and files ``oids`` to the remote, with all they hold. Returns the number
        of objects new there.

        Raises:
            TrackingError: there is no remote, it does not answer, or an object is in neither place.
        """
        from dvc_data.hashfile.hash_info import HashInfo

        # DVC would take a path for a hash, and copy that file of this machine to the remote.
        _refuse_foreign(oids, "dvc push")
        remote = open_remote(self.repo, self.root, "dvc push")
        every = {HashInfo("md5", oid) for oid in oids} | {
            HashInfo("md5", file) for oid in oids if oid.endswith(".dir") for file in self.files(oid).values()
        }
        return transfer_objects(self.cache, self.cache, remote, every, self.remote_name(), "dvc push")

    def _refuse_long(self, oid: str, what: str) -> None:
        """Refuse a list that is too large before it is fetched, if the remote reports its size;
        otherwise it is checked once it is here."""
        if self.has(oid) or not self.remote_name():
            return
        remote = open_remote(self.repo, self.root, what or oid)
        try:
            size = remote.fs.size(remote.oid_to_path(oid))
        except NotImplementedError:
            return
        except Exception as error:
            if not is_of_remote(error):
                raise
            return  # Not there, or no answer: the fetch that follows reports it with a remedy.
        if size is not None and size > MAX_BYTES:
            raise too_long(oid, size, what)

    def check_remote(self) -> None:
        """Write an object to the remote, list it and remove it, so that a run fails at its start
        and not at its end.

        Raises:
            TrackingError: names the remote, the error of its libraries, and the remedy. Raised
                within :data:`PROBE_S` seconds.
        """
        what = "a probe cannot be written"
        name = self.remote_name()

        def ask() -> None:
            remote = open_remote(self.repo, self.root, what)
            with remote_errors(name, what):
                probe(remote.fs, remote.path)

        within(PROBE_S, ask, name)


def _refuse_foreign(oids: Iterable[str], what: str) -> None:
    if foreign := next((oid for oid in oids if not is_hash(oid)), None):
        raise TrackingError(
            what, f"{foreign[:200]!r} is not a hash of DVC (32 hex digits)", "run the stage that made it again"
        )
