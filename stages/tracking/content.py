"""Folders by content: ``dvc://<hash>.dir/<path>`` found in the project's DVC cache, else in its remote. Read-only.

A URI names content, never a repository, a host or a file on this machine: whoever can write to the registry still cannot make a
reader open anything but bytes of the expected hash from the reader's own project.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.tracking.uri import TrackingError, quiet

SCHEME = "dvc"
#: A whole folder is written ``dvc:///<hash>.dir``: MLflow servers refuse a source without a path.
_URI = re.compile(r"dvc:///?(?P<oid>[0-9a-f]{32}\.dir)(?:/(?P<path>.*))?")
#: Weights are linked from the cache (nobody edits them in place); smaller files are copied, because people do edit configurations.
LINK_BYTES = 1 << 20
REMOTE_VARIABLE = "VIDBRIDGE_DVC_REMOTE"


@dataclass(frozen=True)
class Source:
    """A folder (``oid``: hash of an out, ends with ``.dir``) and a path inside it, ``""`` for the whole."""

    oid: str
    path: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}://{self.oid}/{self.path}" if self.path else f"{SCHEME}:///{self.oid}"


def parse_source(uri: str) -> Source:
    """Read a ``dvc://`` URI.

    Raises:
        TrackingError: it is none, or its path leaves the folder.
    """
    match = _URI.fullmatch(uri)
    if not match:
        raise TrackingError(
            f"model source {uri!r}: expected dvc://<32 hex digits>.dir/<path>; run vidbridge register to write it anew"
        )
    path = (match["path"] or "").strip("/")
    if any(part in ("", ".", "..") for part in path.split("/") if path) or "\\" in path:
        raise TrackingError(f"model source {uri!r}: the path may not leave the folder")
    return Source(match["oid"], path)


class ContentStore:
    """Objects of one DVC project: cache first, then remote; whatever is fetched stays in the cache and is verified by its hash."""

    def __init__(self, repo: Any, root: Path) -> None:
        self.repo, self.root = repo, root
        self.cache = repo.cache.local
        self._trees: dict[str, Any] = {}

    def remote_name(self) -> str | None:
        """The remote this project uses, None where none is configured."""
        return self.repo.config["core"].get("remote") or None

    def has(self, oid: str) -> bool:
        """Whether the object lies in the cache."""
        return bool(self.cache.exists(oid))

    def files(self, oid: str) -> dict[str, str]:
        """The files of a folder: relative path to hash."""
        return {"/".join(parts): str(item.value) for parts, _, item in self._tree(oid)}

    def sub_hash(self, oid: str, path: str) -> str | None:
        """The hash that DVC gives to ``path`` inside folder ``oid`` when a stage depends on that part only; None: no such part."""
        parts = tuple(path.split("/"))
        tree = self._tree(oid)
        if (entry := tree.as_trie().get(parts)) is not None:
            return str(entry[1].value)
        part = tree.get_obj(self.cache, parts)
        return str(part.hash_info.value) if part is not None and len(part) else None

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
            TrackingError: neither cache nor remote has them, or nothing lies under that path.
        """
        files = self.files(source.oid)
        inside = {path: file for path, file in files.items() if path == source.path or _below(path, source.path)}
        if not inside:
            raise TrackingError(f"{source.uri}: the folder holds nothing under that path")
        self.fetch(list(inside.values()), source.uri)
        for path, file in inside.items():
            _put(Path(self.cache.oid_to_path(file)), folder / (path.removeprefix(strip).lstrip("/") or Path(path).name))

    def fetch(self, oids: Sequence[str], what: str) -> None:
        """Make sure the objects lie in the cache; ``what`` names them in the error.

        Raises:
            TrackingError: neither the cache nor the remote has one of them.
        """
        from dvc_data.hashfile.hash_info import HashInfo

        missing = sorted({oid for oid in oids if not self.has(oid)})
        if not missing:
            return
        remote = self._remote(what)
        self._transfer(remote, self.cache, {HashInfo("md5", oid) for oid in missing}, what)
        # DVC drops what does not match its hash, and says nothing.
        if lost := [oid for oid in missing if not self.has(oid)]:
            raise self._missing(what, lost[0], f"nor, undamaged, in the remote {self.remote_name()!r} ({remote.path})")

    def push(self, oids: Sequence[str]) -> int:
        """Copy the folders and files ``oids`` to the remote, with all they hold; returns how many objects were new there.

        Raises:
            TrackingError: no remote, it does not answer, or an object is neither here nor there.
        """
        from dvc_data.hashfile.hash_info import HashInfo

        remote = self._remote("dvc push")
        every = {HashInfo("md5", oid) for oid in oids} | {
            HashInfo("md5", file) for oid in oids if oid.endswith(".dir") for file in self.files(oid).values()
        }
        return self._transfer(self.cache, remote, every, "dvc push")

    def _tree(self, oid: str) -> Any:
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree

        if oid not in self._trees:
            self.fetch([oid], oid)
            self._trees[oid] = Tree.load(self.cache, HashInfo("md5", oid))
        return self._trees[oid]

    def _remote(self, what: str) -> Any:
        from dvc.exceptions import DvcException

        if not self.remote_name():
            raise self._missing(what, what, f"and no remote is configured (dvc remote add -d NAME URL, or {REMOTE_VARIABLE})")
        try:
            return self.repo.cloud.get_remote_odb(self.remote_name())
        except DvcException as error:
            raise TrackingError(f"DVC remote {self.remote_name()!r}: {error}; check .dvc/config and {REMOTE_VARIABLE}") from error

    def _transfer(self, source: Any, target: Any, items: set[Any], what: str) -> int:
        from dvc.exceptions import DvcException
        from dvc_data.hashfile.transfer import transfer

        lost: set[Any] = set()
        try:
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
        except (DvcException, OSError) as error:
            raise TrackingError(
                f"DVC remote {self.remote_name()!r}: {what}: {error}; check that it is reachable and writable"
            ) from error
        if done.failed:
            first = next(iter(done.failed)).value
            raise TrackingError(
                f"DVC remote {self.remote_name()!r}: {what}: {len(done.failed)} objects failed, first {first}; try again: dvc push"
            )
        return len(done.transferred)

    def _missing(self, what: str, oid: str, where: str) -> TrackingError:
        return TrackingError(
            f"{what}: object {oid} is neither in the DVC cache of {self.root} {where}; on the machine that made it run dvc push, here run"
            " dvc pull, or set VIDBRIDGE_PROJECT to the project that holds it"
        )


@contextmanager
def open_content(root: Path) -> Iterator[ContentStore]:
    """The objects of the DVC project at ``root``; ``VIDBRIDGE_DVC_REMOTE`` (a remote's name or its URL) replaces the default remote.

    Raises:
        TrackingError: ``root`` is no DVC project.
    """
    quiet()
    from dvc.config import ConfigError
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(root), config=_configured(os.environ.get(REMOTE_VARIABLE))) as repo:
            yield ContentStore(repo, root)
    except (NotDvcRepoError, ConfigError) as error:
        raise TrackingError(f"{root}: {error}; set VIDBRIDGE_PROJECT to a clone of the project, or run dvc init") from error


def _configured(remote: str | None) -> Mapping[str, Any] | None:
    if not remote:
        return None
    if "/" in remote:
        return {"remote": {"vidbridge-environment": {"url": remote}}, "core": {"remote": "vidbridge-environment"}}
    return {"core": {"remote": remote}}


def _below(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if source.stat().st_size >= LINK_BYTES:
        try:
            os.link(source, target)
        except OSError:
            pass  # Another file system, or one without links: the copy below.
        else:
            return
    shutil.copyfile(source, target)
