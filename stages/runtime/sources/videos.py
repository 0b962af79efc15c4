"""Where the file of a clip lies: in a folder, or in the cache of fetched files, which fetches what
it lacks.

After ingest a file is known by its SHA-256. What is in the cache needs no network, and what is
fetched again is compared: where bytes come from changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from stages.runtime.sources.addresses import SHARD_SUFFIX, is_remote, is_web
from stages.runtime.sources.failures import Changed, Gone, SourceAccessError, access_error
from stages.runtime.sources.remote import RemoteRoot, fetch_one
from stages.runtime.sources.roots import NameRules, Roots, files_below
from stages.runtime.sources.shards import Shard, ShardError, noted_shard, read_shard
from stages.runtime.sources.store import Known, SourceStore, open_store


class Videos(Protocol):
    """Files of clips."""

    def path(self, name: str, sha256: str) -> Path:
        """Path of the file that a clip names ``name``, with this content where it is fetched.

        Raises:
            SourceAccessError: it cannot be fetched, or is not the one that ingest saw.
        """
        ...


class FolderVideos(NamedTuple):
    """Videos in a folder of this machine."""

    folder: Path
    names: NameRules

    def path(self, name: str, sha256: str) -> Path:  # noqa: ARG002 (files are read in place)
        return self.folder / self.names.file_of(name)


class RemoteVideos:
    """Videos in a bucket or on a web server, as files or in tars."""

    def __init__(self, roots: Roots, store: SourceStore) -> None:
        self._roots, self._store = roots, store
        self._remote = RemoteRoot(roots.folder, roots.field)
        self._known = Known(store, self._remote.address)
        self._shards: ShardVideos | None = None

    def path(self, name: str, sha256: str) -> Path:
        file = self._roots.names.file_of(name)
        if (found := self._store.find(sha256, file)) is not None:
            return found
        if self._shards is not None or self._roots.file is not None:
            return self._in_shards().path(name, sha256)
        remote = self._remote
        try:
            version = remote.version(file)
            here = fetch_one(remote, self._store, self._known, file, version)
        except Gone as error:
            if not is_web(remote.address) and self._roots.in_shards(remote.listing()):
                return self._in_shards().path(name, sha256)
            raise _changed(remote.field, f"{remote.address}/{file}", "there is no such object any more") from error
        except Changed as error:
            raise _changed(remote.field, f"{remote.address}/{file}", f"it changes right now ({error})") from error
        if here != sha256:
            seen = f"it has SHA-256 {here[:12]}…, and ingest saw {sha256[:12]}…"
            raise _changed(remote.field, f"{remote.address}/{file}", seen)
        return self._store.found(here, file)

    def _in_shards(self) -> ShardVideos:
        self._shards = self._shards or ShardVideos(self._roots, self._store)
        return self._shards


class ShardVideos:
    """Videos in tars, of this machine or of a bucket."""

    def __init__(self, roots: Roots, store: SourceStore) -> None:
        self._roots, self._store = roots, store

    def path(self, name: str, sha256: str) -> Path:
        if (found := self._store.find(sha256, name)) is not None:
            return found
        suffixes = frozenset((PurePosixPath(name).suffix.lower(),))
        for shard in shards_at(self._roots, self._store):
            noted = noted_shard(self._store, shard.identity, suffixes)
            if noted is not None and name not in noted.videos:
                continue
            read = shard.read(suffixes)
            if name in read.videos and read.videos[name].sha256 == sha256:
                return self._store.found(sha256, name)
        raise _changed(
            self._roots.field, f"{self._roots.folder}: {name}", "no tar holds the video that ingest saw any more"
        )


class ShardFile(NamedTuple):
    """A tar of a source: its name, what changes with its content, and how to read it."""

    name: str
    identity: str
    size: int
    remote: RemoteRoot | None
    path: Path
    store: SourceStore

    def read(self, suffixes: frozenset[str]) -> Shard:
        """Read the tar, with its videos in the store afterwards; fetch it first where it is remote.

        Raises:
            ShardError: it is no tar.
            SourceAccessError: it cannot be fetched, or there is no room.
        """
        noted = noted_shard(self.store, self.identity, suffixes)
        if noted is not None and all(self.store.find(video.sha256, name) for name, video in noted.videos.items()):
            return noted
        here = self._here()
        try:
            shard = read_shard(here, self.store, self.identity, suffixes)
        except ShardError as error:
            if self.remote is None:
                raise
            raise ShardError.from_error(error, field=f"{self.remote.address}/{self.name}") from error
        if self.remote is not None:
            # Its videos stand beside it now, each under its own content.
            here.unlink(missing_ok=True)
        return shard

    def _here(self) -> Path:
        if self.remote is None:
            return self.path
        try:
            version = self.remote.version(self.name)
            sha256 = fetch_one(self.remote, self.store, Known(self.store, self.remote.address), self.name, version)
        except (Gone, Changed) as error:
            address = f"{self.remote.address}/{self.name}"
            raise _changed(self.remote.field, address, f"it was listed, and is not there now ({error})") from error
        return self.store.found(sha256, self.name)


def shards_at(roots: Roots, store: SourceStore) -> Iterator[ShardFile]:
    """The tars of the videos' folder, or the one of them that is named, in order of their names."""
    only = roots.file
    if is_remote(roots.folder):
        remote = RemoteRoot(roots.folder, roots.field)
        try:
            listed = remote.listing() if only is None else {only: remote.version(only)}
        except Gone as error:
            raise access_error(roots.field, f"{roots.folder}/{only}", FileNotFoundError()) from error
        for name, version in listed.items():
            if name.endswith(SHARD_SUFFIX):
                identity = f"{roots.folder}/{name} {version.text}"
                yield ShardFile(name, identity, version.size or 0, remote, Path(), store)
        return
    folder = Path(roots.folder)
    for name in [only] if only is not None else sorted(files_below(folder, deep=True)):
        if name.endswith(SHARD_SUFFIX):
            path = folder / name
            status = path.stat()
            identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
            yield ShardFile(name, identity, status.st_size, None, path, store)


def open_videos(roots: Roots, root: Path | None = None) -> Videos:
    """The videos of a source, whatever it is. ``root``: the project's folder, else the working
    folder. Asks no server yet.

    Raises:
        InputError: the cache's bound is not a number.
    """
    if root is not None:
        roots = roots.below(root)
    if is_remote(roots.folder):
        return RemoteVideos(roots, open_store(root))
    if roots.local_shards:
        return ShardVideos(roots, open_store(root))
    return FolderVideos(Path(roots.folder), roots.names)


def _changed(field: str, address: str, seen: str) -> SourceAccessError:
    return SourceAccessError(
        field, f"{address}: changed since ingest: {seen}", "run ingest again (vidbridge run), or restore the object"
    )
