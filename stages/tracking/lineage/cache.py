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
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from stages.runtime.paths import LOCK_FILE, STATE
from stages.runtime.plain import one_line
from stages.tracking.lineage.cache_folder import CacheRepo, check_writable, is_cache, mark_used, most_bytes, prune
from stages.tracking.lineage.git import FIRST_COMMIT
from stages.tracking.lineage.listing import MAX_BYTES, ListError, is_hash, parse_list, path_fault, too_long
from stages.tracking.lineage.placing import put_file
from stages.tracking.lineage.remote import (
    FROM_ENVIRONMENT,
    PROBE_S,
    REMOTE_VARIABLE,
    is_of_remote,
    probe,
    remote_error,
    remote_errors,
    remote_label,
    within,
)
from stages.tracking.lineage.uri import TrackingError, display_uri, quiet

SCHEME = "dvc"
#: A whole folder is written ``dvc:///<hash>.dir``: MLflow servers refuse a source without a path.
_URI = re.compile(r"dvc:///?(?P<oid>[0-9a-f]{32}\.dir)(?:/(?P<path>.*))?")


class MissingContent(TrackingError):
    """An object is neither in the cache nor, undamaged, in the remote, which did answer."""


@dataclass(frozen=True)
class Source:
    """A folder (``oid``: hash of an out, ends with ``.dir``) and a path inside it, ``""`` for the
    whole."""

    oid: str
    path: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}://{self.oid}/{self.path}" if self.path else f"{SCHEME}:///{self.oid}"


def parse_source(uri: str, what: str = "") -> Source:
    """Read a ``dvc://`` URI. ``what`` names its owner in the error.

    Raises:
        TrackingError: it is not such a URI, or its path leaves the folder.
    """
    name = f"{what}: model source {uri[:300]!r}" if what else f"model source {uri[:300]!r}"
    match = _URI.fullmatch(uri)
    if not match:
        raise TrackingError(
            name,
            "expected dvc://<32 hex digits>.dir/<path>, as vidbridge register writes it",
            "take another version, or delete this one",
        )
    path = (match["path"] or "").strip("/")
    if path and (fault := path_fault(path)):
        raise TrackingError(
            name, f"the path may not leave the folder: it {fault}", "take another version, or delete this one"
        )
    return Source(match["oid"], path)


def placed(files: Mapping[str, str], source: Source, strip: str = "") -> dict[str, tuple[str, str]]:
    """Select the files below ``source.path`` from those of its folder.

    Returns target path (without the leading folder ``strip``) to the path in the folder and the
    hash.
    """
    inside = {path: md5 for path, md5 in files.items() if path == source.path or _below(path, source.path)}
    return {
        path.removeprefix(strip).lstrip("/") or path.rpartition("/")[2]: (path, md5) for path, md5 in inside.items()
    }


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
        return self.repo.config["core"].get("remote") or None

    def remote(self) -> Any | None:
        """The remote's object database; None if none is configured.

        Raises:
            TrackingError: DVC does not understand its configuration.
        """
        return self._remote("remote") if self.remote_name() else None

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
            {"md5": md5, "relpath": name.removeprefix(f"{path}/")} for name, md5 in files.items() if _below(name, path)
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
        remote = self._remote(what)
        if is_cache(self.root):
            check_writable(self.root, what)
        with self._exclusive():
            # Another process may have fetched them meanwhile.
            if wanted := {HashInfo("md5", oid) for oid in missing if not self.has(oid)}:
                self.fetched = True
                self._transfer(remote, self.cache, wanted, what)
            # DVC silently drops objects that do not match their hash.
            lost = [oid for oid in missing if not self.has(oid)]
        if lost:
            raise self._missing(
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
        remote = self._remote("dvc push")
        every = {HashInfo("md5", oid) for oid in oids} | {
            HashInfo("md5", file) for oid in oids if oid.endswith(".dir") for file in self.files(oid).values()
        }
        return self._transfer(self.cache, remote, every, "dvc push")

    def _refuse_long(self, oid: str, what: str) -> None:
        """Refuse a list that is too large before it is fetched, if the remote reports its size;
        otherwise it is checked once it is here."""
        if self.has(oid) or not self.remote_name():
            return
        remote = self._remote(what or oid)
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
            remote = self._remote(what)
            with remote_errors(name, what):
                probe(remote.fs, remote.path)

        within(PROBE_S, ask, name)

    def _remote(self, what: str) -> Any:
        from dvc.exceptions import DvcException

        name = self.remote_name()
        if not name:
            raise self._missing(
                what, what, f"and no remote is configured (dvc remote add -d NAME URL, or {REMOTE_VARIABLE})"
            )
        try:
            return self.repo.cloud.get_remote_odb(name)
        except (DvcException, ImportError) as error:
            # A missing package for this kind of remote is an ImportError, which names the package.
            remedy = f"check .dvc/config and {REMOTE_VARIABLE}"
            if is_cache(self.root):
                remedy = (
                    f"outside a project set its URL in {REMOTE_VARIABLE}, or add it: dvc remote add --global NAME URL"
                )
            message = "; ".join(str(error).split("\n"))
            raise TrackingError(f"DVC remote {remote_label(name)}", message, remedy) from error
        except Exception as error:
            if not is_of_remote(error):
                raise
            raise remote_error(name, what, error) from error

    def _transfer(self, source: Any, target: Any, items: set[Any], what: str) -> int:
        from dvc_data.hashfile.transfer import transfer

        lost: set[Any] = set()
        with remote_errors(self.remote_name(), what):
            # Verified on arrival: others write to the remote. `shallow`: a folder's list comes
            # without its files.
            done = transfer(
                source,
                target,
                items,
                verify=target is self.cache,
                cache_odb=self.cache,
                shallow=True,
                validate_status=lambda status: lost.update(status.missing),
            )
        if done.failed:
            first = next(iter(done.failed)).value
            raise TrackingError(
                f"DVC remote {remote_label(self.remote_name())}",
                f"{what}: {len(done.failed)} objects failed, first {first}; the log above says why",
                "try again",
            )
        return len(done.transferred)

    def _missing(self, what: str, oid: str, where: str) -> MissingContent:
        if is_cache(self.root):
            location = f"neither in the cache folder {self.root} {where}"
            if not self.remote_name():
                location = f"not in the cache folder {self.root}, and {REMOTE_VARIABLE} is not set"
            return MissingContent(
                what,
                f"object {oid} is {location}",
                f"set {REMOTE_VARIABLE} to the URL of the DVC remote that holds it"
                " (on the machine that made it: dvc push), or VIDBRIDGE_PROJECT to a clone of the project",
            )
        return MissingContent(
            what,
            f"object {oid} is neither in the DVC cache of {self.root} {where}",
            "on the machine that made it run"
            " dvc push, here run dvc fetch, or set VIDBRIDGE_PROJECT to the project that holds it",
        )


@contextmanager
def open_content(root: Path) -> Iterator[ContentStore]:
    """Open the objects of the DVC project at ``root``, or of a cache folder.

    ``VIDBRIDGE_DVC_REMOTE`` (a remote's name or its URL) replaces the default remote. Outside a
    project a name refers to the user's own DVC configuration (``dvc remote add --global``).

    Raises:
        TrackingError: ``root`` is neither, or a configuration of DVC cannot be read.
    """
    quiet()
    from dvc.config import ConfigError
    from dvc.exceptions import NotDvcRepoError
    from dvc.scm import SCMError

    changes = _configured(os.environ.get(REMOTE_VARIABLE, "").strip())
    try:
        if is_cache(root):
            with _cached(root, changes) as content:
                yield content
            return
        from dvc.repo import Repo

        with Repo(str(root), config=changes) as repo:
            yield ContentStore(repo, root)
    except SCMError as error:
        raise TrackingError(str(root), one_line(error), f"type: {FIRST_COMMIT}") from error
    except NotDvcRepoError as error:
        raise TrackingError(
            str(root), error, "set VIDBRIDGE_PROJECT to a clone of the project, or run dvc init"
        ) from error
    except ConfigError as error:
        if changes and FROM_ENVIRONMENT in changes.get("remote", {}) and FROM_ENVIRONMENT in str(error):
            remote_name = display_uri(os.environ[REMOTE_VARIABLE])
            raise TrackingError(
                REMOTE_VARIABLE,
                f"{remote_name}: not a URL of a DVC remote ({str(error).partition(' for dictionary value')[0]})",
                "set one such as s3://BUCKET/PATH, ssh://HOST/PATH or /absolute/path",
            ) from error
        what = "DVC's configuration" if is_cache(root) else str(root)
        raise TrackingError(what, error, "correct it, or set VIDBRIDGE_PROJECT to a clone of the project") from error


@contextmanager
def _cached(root: Path, changes: dict[str, Any] | None) -> Iterator[ContentStore]:
    most = most_bytes()
    content = ContentStore(CacheRepo(root, changes), root)
    yield content
    if content.fetched:
        prune(root, most)


def _configured(remote: str) -> dict[str, Any] | None:
    if not remote:
        return None
    if "/" in remote:
        return {"remote": {FROM_ENVIRONMENT: {"url": remote}}, "core": {"remote": FROM_ENVIRONMENT}}
    return {"core": {"remote": remote}}


def _refuse_foreign(oids: Iterable[str], what: str) -> None:
    if foreign := next((oid for oid in oids if not is_hash(oid)), None):
        raise TrackingError(
            what, f"{foreign[:200]!r} is not a hash of DVC (32 hex digits)", "run the stage that made it again"
        )


def _below(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")
