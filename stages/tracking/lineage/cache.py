"""Folders by content: ``dvc://<hash>.dir/<path>`` found in the project's DVC cache, else in its remote. Read-only.

Outside of a project the cache folder takes the place of that cache (:mod:`stages.tracking.lineage.cache_folder`), and the environment names the remote.

A URI names content, never a repository, a host or a file on this machine. Who can write to the registry can name any content of the
project's remote, and who can write to the remote as well can name content of their own; neither can make a reader write outside the
folder that it is putting together: lists are checked whole before anything is placed (:mod:`stages.tracking.lineage.listing`), and links are
never written through (:mod:`stages.tracking.lineage.placing`).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime.paths import LOCK_FILE
from stages.tracking.lineage.cache_folder import CacheRepo, check_writable, is_cache, mark_used, most_bytes, prune
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
    shown_name,
    within,
)
from stages.tracking.lineage.uri import TrackingError, quiet, shown

SCHEME = "dvc"
#: A whole folder is written ``dvc:///<hash>.dir``: MLflow servers refuse a source without a path.
_URI = re.compile(r"dvc:///?(?P<oid>[0-9a-f]{32}\.dir)(?:/(?P<path>.*))?")


class MissingContent(TrackingError):
    """An object is neither in the cache nor, undamaged, in the remote, which did answer."""


@dataclass(frozen=True)
class Source:
    """A folder (``oid``: hash of an out, ends with ``.dir``) and a path inside it, ``""`` for the whole."""

    oid: str
    path: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}://{self.oid}/{self.path}" if self.path else f"{SCHEME}:///{self.oid}"


def parse_source(uri: str, what: str = "") -> Source:
    """Read a ``dvc://`` URI. ``what`` has it, for the error.

    Raises:
        TrackingError: it is none, or its path leaves the folder.
    """
    name = f"{what}: model source {uri[:300]!r}" if what else f"model source {uri[:300]!r}"
    match = _URI.fullmatch(uri)
    if not match:
        raise TrackingError(
            f"{name}: expected dvc://<32 hex digits>.dir/<path>, as vidbridge register writes it; take another version, or delete this one"
        )
    path = (match["path"] or "").strip("/")
    if path and (fault := path_fault(path)):
        raise TrackingError(f"{name}: the path may not leave the folder: it {fault}")
    return Source(match["oid"], path)


def placed(files: Mapping[str, str], source: Source, strip: str = "") -> dict[str, tuple[str, str]]:
    """The files below ``source.path`` among those of its folder: where each lands (less the leading folder ``strip``), its path in the
    folder, and its hash."""
    inside = {path: md5 for path, md5 in files.items() if path == source.path or _below(path, source.path)}
    return {path.removeprefix(strip).lstrip("/") or path.rpartition("/")[2]: (path, md5) for path, md5 in inside.items()}


class ContentStore:
    """Objects of one DVC project, or of a cache folder: cache first, then remote; whatever is fetched stays in the cache and is verified by
    its hash."""

    def __init__(self, repo: Any, root: Path) -> None:
        self.repo, self.root = repo, root
        self.cache = repo.cache.local
        #: Whether something has come from the remote.
        self.fetched = False
        self._lists: dict[str, dict[str, str]] = {}

    def remote_name(self) -> str | None:
        """The remote this project uses, None where none is configured."""
        return self.repo.config["core"].get("remote") or None

    def remote(self) -> Any | None:
        """The remote's objects, None where none is configured.

        Raises:
            TrackingError: it is configured in a way that DVC does not understand.
        """
        return self._remote("remote") if self.remote_name() else None

    def has(self, oid: str) -> bool:
        """Whether the object lies in the cache, and holds what its name says.

        Raises:
            TrackingError: it is no hash.
        """
        from dvc_objects.errors import ObjectFormatError

        _refuse_foreign([oid], LOCK_FILE)
        try:
            # It is read-only once its hash was looked at. Else another process is at that just now, or was killed before: look ourselves.
            self.cache.check(oid)
        except (FileNotFoundError, ObjectFormatError):
            return False
        return True

    def files(self, oid: str, what: str = "") -> dict[str, str]:
        """The files of a folder: relative path to hash, each fit to be placed below a folder. ``what`` names the folder, for errors.

        Raises:
            ListError: the list could write elsewhere, or is none.
            TrackingError: neither cache nor remote has it.
        """
        if oid not in self._lists:
            self._lists[oid] = parse_list(self.list_bytes(oid, what), oid, what)
        return self._lists[oid]

    def list_bytes(self, oid: str, what: str = "") -> bytes:
        """The list of a folder's files as it is kept, verified by its hash and not looked at."""
        if not is_hash(oid) or not oid.endswith(".dir"):
            raise ListError(
                f"{what or 'folder'}: {oid[:200]!r} is no hash of a folder (32 hex digits and '.dir'); run its stage again"
            )
        self._refuse_long(oid, what)
        self.fetch([oid], f"{what}: folder {oid}" if what else oid)
        path = Path(self.cache.oid_to_path(oid))
        if path.stat().st_size > MAX_BYTES:
            raise too_long(oid, path.stat().st_size, what)
        text = path.read_bytes()
        if hashlib.md5(text, usedforsecurity=False).hexdigest() != oid.removesuffix(".dir"):
            raise ListError(f"{what or 'folder'}: {path} is not what its name says; remove it, and it is fetched again")
        return text

    def sub_hash(self, oid: str, path: str) -> str | None:
        """The hash that DVC gives to ``path`` inside folder ``oid`` when a stage depends on that part only; None: no such part."""
        from dvc_data.hashfile.tree import Tree

        files = self.files(oid)
        if path in files:
            return files[path]
        inside = [{"md5": md5, "relpath": name.removeprefix(f"{path}/")} for name, md5 in files.items() if _below(name, path)]
        if not inside:
            return None
        tree = Tree.from_list(inside)
        tree.digest()
        return str(tree.hash_info.value)

    def read(self, oid: str, path: str) -> bytes | None:
        """The bytes of one file of a folder, None where the folder has no such file."""
        file = self.files(oid).get(path)
        if file is None:
            return None
        self.fetch([file], f"{oid}/{path}")
        return Path(self.cache.oid_to_path(file)).read_bytes()

    def size(self, oid: str) -> int | None:
        """Bytes of a file, None where only the remote has it."""
        path = Path(self.cache.oid_to_path(oid))
        return path.stat().st_size if path.exists() else None

    def place(self, source: Source, folder: Path, strip: str = "") -> None:
        """Put the files of ``source`` into ``folder`` (weights as hard links to the cache where the file system allows it).

        A file lands under its path inside the out, less the leading folder ``strip``.

        Raises:
            ListError: the folder's list could write elsewhere; nothing was placed.
            TrackingError: neither cache nor remote has them, nothing lies under that path, or a link lies in the way.
        """
        files = placed(self.files(source.oid), source, strip)
        if not files:
            raise TrackingError(f"{source.uri}: the folder holds nothing under that path")
        self.fetch([md5 for _, md5 in files.values()], source.uri)
        for path, (_, md5) in files.items():
            self._put(folder, path, md5)

    def place_file(self, source: Source, target: Path) -> None:
        """Put the one file that ``source`` names to ``target``.

        Raises:
            ListError, TrackingError: as `place`, or it names a folder.
        """
        md5 = self.files(source.oid).get(source.path)
        if md5 is None:
            raise TrackingError(f"{source.uri}: the folder holds no file of that name")
        self.fetch([md5], source.uri)
        self._put(target.parent, target.name, md5)

    def _put(self, folder: Path, path: str, md5: str) -> None:
        """Place one object; and look at what was placed unless it is the very file whose hash was looked at in the cache."""
        object_ = Path(self.cache.oid_to_path(md5))
        before = object_.stat()
        put_file(folder, path, object_)
        after = object_.stat()
        settled = stat.S_IMODE(after.st_mode) == self.cache.CACHE_MODE
        if settled and (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            return
        # Another process has put its own copy into the cache meanwhile; or this file system knows no modes.
        placed_file = folder / path
        with placed_file.open("rb") as made:
            found = hashlib.file_digest(made, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != md5:
            placed_file.unlink()
            raise TrackingError(f"{placed_file}: is not the object {md5}, which changed while it was placed; try again")

    def fetch(self, oids: Sequence[str], what: str) -> None:
        """Make sure the objects lie in the cache; ``what`` names them in the error.

        Raises:
            MissingContent: neither the cache nor the remote has one of them.
            TrackingError: the remote does not answer, or it is no hash: that would be a path on this machine.
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
        self.fetched = True
        self._transfer(remote, self.cache, {HashInfo("md5", oid) for oid in missing}, what)
        # DVC drops what does not match its hash, and says nothing.
        if lost := [oid for oid in missing if not self.has(oid)]:
            raise self._missing(
                what, lost[0], f"nor, undamaged, in the remote {shown_name(self.remote_name())} ({shown(remote.path)})"
            )

    def push(self, oids: Sequence[str]) -> int:
        """Copy the folders and files ``oids`` to the remote, with all they hold; returns how many objects were new there.

        Raises:
            TrackingError: no remote, it does not answer, or an object is neither here nor there.
        """
        from dvc_data.hashfile.hash_info import HashInfo

        # DVC would take a path for one, and copy that file of this machine to the remote.
        _refuse_foreign(oids, "dvc push")
        remote = self._remote("dvc push")
        every = {HashInfo("md5", oid) for oid in oids} | {
            HashInfo("md5", file) for oid in oids if oid.endswith(".dir") for file in self.files(oid).values()
        }
        return self._transfer(self.cache, remote, every, "dvc push")

    def _refuse_long(self, oid: str, what: str) -> None:
        """Ask the remote for the size of a list before it is fetched; where it does not say, the list is looked at when it is here."""
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
            return  # Not there, or no answer: the fetch that follows says it with a remedy.
        if size is not None and size > MAX_BYTES:
            raise too_long(oid, size, what)

    def check_remote(self) -> None:
        """Write an object to the remote, list it and remove it, so that a run learns before it starts what its end would tell it.

        Raises:
            TrackingError: naming the remote, what its libraries say, and the remedy. It comes within :data:`PROBE_S` seconds.
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
            raise self._missing(what, what, f"and no remote is configured (dvc remote add -d NAME URL, or {REMOTE_VARIABLE})")
        try:
            return self.repo.cloud.get_remote_odb(name)
        except (DvcException, ImportError) as error:
            # No package for this kind of remote is an ImportError, and names the package.
            remedy = f"check .dvc/config and {REMOTE_VARIABLE}"
            if is_cache(self.root):
                remedy = f"outside of a project give its URL in {REMOTE_VARIABLE}, or add it: dvc remote add --global NAME URL"
            said = "; ".join(str(error).split("\n"))
            raise TrackingError(f"DVC remote {shown_name(name)}: {said}; {remedy}") from error
        except Exception as error:
            if not is_of_remote(error):
                raise
            raise remote_error(name, what, error) from error

    def _transfer(self, source: Any, target: Any, items: set[Any], what: str) -> int:
        from dvc_data.hashfile.transfer import transfer

        lost: set[Any] = set()
        with remote_errors(self.remote_name(), what):
            # Verified on the way in: the remote is written by others. `shallow`: a folder's list comes without its files.
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
                f"DVC remote {shown_name(self.remote_name())}: {what}: {len(done.failed)} objects failed, first {first}; why stands above;"
                " try again"
            )
        return len(done.transferred)

    def _missing(self, what: str, oid: str, where: str) -> MissingContent:
        if is_cache(self.root):
            there = f"neither in the cache folder {self.root} {where}"
            if not self.remote_name():
                there = f"not in the cache folder {self.root}, and {REMOTE_VARIABLE} is not set"
            return MissingContent(
                f"{what}: object {oid} is {there}; set {REMOTE_VARIABLE} to the URL of the DVC remote that holds it (on the machine that"
                " made it: dvc push), or VIDBRIDGE_PROJECT to a clone of the project"
            )
        return MissingContent(
            f"{what}: object {oid} is neither in the DVC cache of {self.root} {where}; on the machine that made it run dvc push, here run"
            " dvc fetch, or set VIDBRIDGE_PROJECT to the project that holds it"
        )


@contextmanager
def open_content(root: Path) -> Iterator[ContentStore]:
    """The objects of the DVC project at ``root``, or of a cache folder. ``VIDBRIDGE_DVC_REMOTE`` (a remote's name or its URL) replaces the
    default remote; outside of a project a name is one of the person's own DVC configuration (``dvc remote add --global``).

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
        raise TrackingError(f"{error}; type: git init && git add -A && git commit -m start") from error
    except NotDvcRepoError as error:
        raise TrackingError(f"{root}: {error}; set VIDBRIDGE_PROJECT to a clone of the project, or run dvc init") from error
    except ConfigError as error:
        if changes and FROM_ENVIRONMENT in changes.get("remote", {}) and FROM_ENVIRONMENT in str(error):
            said = shown(os.environ[REMOTE_VARIABLE])
            raise TrackingError(
                f"{REMOTE_VARIABLE}: {said}: no URL of a DVC remote ({str(error).partition(' for dictionary value')[0]}); give one such as"
                " s3://BUCKET/PATH, ssh://HOST/PATH or /absolute/path"
            ) from error
        what = "DVC's configuration" if is_cache(root) else str(root)
        raise TrackingError(f"{what}: {error}; correct it, or set VIDBRIDGE_PROJECT to a clone of the project") from error


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
        raise TrackingError(f"{what}: {foreign[:200]!r} is no hash of DVC (32 hex digits); run the stage that made it again")


def _below(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")
