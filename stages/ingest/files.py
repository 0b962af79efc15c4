"""Files of the videos of a source, brought to this machine batch by batch."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.lib.annotations.annotation import VIDEO_SUFFIXES
from stages.lib.annotations.collect import pictures_elsewhere
from stages.lib.annotations.links import Links
from stages.lib.video import folders
from stages.lib.video.errors import VideoError
from stages.runtime.sources.failures import Changed, Gone
from stages.runtime.sources.remote import RemoteRoot, Version, fetch
from stages.runtime.sources.roots import NameRules
from stages.runtime.sources.store import Known, SourceStore
from stages.runtime.sources.videos import ShardFile


@dataclass(frozen=True)
class LocatedFile:
    """A file that was brought here, by its name in the rows; with a ``problem`` (reason and detail)
    it was not. ``stamp``: size and a number that changes with the content."""

    name: str
    stamp: tuple[int, int]
    path: Path
    problem: tuple[str, str] | None = None

    def here(self) -> Path:
        """Path of the file.

        Raises:
            VideoError: it could not be fetched.
        """
        if self.problem is not None:
            raise VideoError(*self.problem)
        return self.path


def state_of(path: str | Path) -> tuple[int, int]:
    """Size of a file or frame folder, and the time of its last modification in nanoseconds."""
    status = os.stat(path)  # noqa: PTH116 - for many files: a Path costs as much as the call
    return folders.state_of(Path(path)) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)


class Files(ABC):
    """Files of the videos of a source, which are brought here batch by batch."""

    def __init__(self, stamps: Mapping[str, tuple[int, int]], most_bytes: int | None = None) -> None:
        self._stamps = stamps
        self._most_bytes = most_bytes

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Size of a file, and a number that changes with its content; None if there is none."""
        return self._stamps.get(name)

    def batches(self, names: Sequence[str]) -> Iterator[list[LocatedFile]]:
        """Divide the names, in order, into batches of which the files are here when they are
        yielded; a batch takes at most half of the cache."""
        batch: list[str] = []
        size = 0
        for name in names:
            more = self._stamps.get(name, (0, 0))[0]
            if batch and self._most_bytes is not None and size + more > self._most_bytes // 2:
                yield self._located(batch)
                batch, size = [], 0
            batch.append(name)
            size += more
        if batch:
            yield self._located(batch)

    @abstractmethod
    def _located(self, names: Sequence[str]) -> list[LocatedFile]: ...


class LocalFiles(Files):
    """Videos in a folder of their own, or under other names than rows give."""

    def __init__(self, folder: Path, names: NameRules) -> None:
        super().__init__({})
        self._folder, self._names = folder, names

    def stamp(self, name: str) -> tuple[int, int] | None:
        try:
            return state_of(self._folder / self._names.file_of(name))
        except OSError:
            return None

    def _located(self, names: Sequence[str]) -> list[LocatedFile]:
        links = Links(self._folder)
        return [self._file(name, links) for name in names]

    def _file(self, name: str, links: Links) -> LocatedFile:
        path = self._folder / self._names.file_of(name)
        # The view has no pictures, and no links: those of a frame folder are looked at here.
        problem = _leading_out(name, path, links) if path.is_dir() else None
        return LocatedFile(name, self.stamp(name) or (0, 0), path, problem)


def _leading_out(name: str, folder: Path, links: Links) -> tuple[str, str] | None:
    if links.lead_out(folder):
        return "outside-folder", f"video: {name!r} is a link that leaves the folder of the videos; copy its pictures"
    return pictures_elsewhere(name, folder, links)


class RemoteFiles(Files):
    def __init__(self, remote: RemoteRoot, names: NameRules, videos: Mapping[str, Version], store: SourceStore) -> None:
        stamps = {name: (version.size or 0, number(version.tag)) for name, version in videos.items()}
        super().__init__(stamps, store.most_bytes)
        self._remote, self._names, self._videos, self._store = remote, names, videos, store
        self._known = Known(store, remote.address)

    def _located(self, names: Sequence[str]) -> list[LocatedFile]:
        wanted = {self._names.file_of(name): self._videos[name] for name in names if name in self._videos}
        here = fetch(self._remote, self._store, self._known, wanted, "fetch videos")
        return [
            self._file(name, here[self._names.file_of(name)])
            if name in self._videos
            else _not_fetched(name, f"{self._remote.address}/{self._names.file_of(name)}")
            for name in names
        ]

    def _file(self, name: str, found: str | Gone | Changed) -> LocatedFile:
        file, stamp = self._names.file_of(name), self._stamps[name]
        address = f"{name}: {self._remote.address}/{file}"
        if isinstance(found, Gone):
            return LocatedFile(name, stamp, Path(), ("missing-file", f"{address} is not there any more"))
        if isinstance(found, Changed):
            detail = f"{address} changed while it was fetched ({found}); run ingest again"
            return LocatedFile(name, stamp, Path(), ("changed", detail))
        return LocatedFile(name, stamp, self._store.found(found, file))


class ShardFiles(Files):
    def __init__(
        self,
        stamps: Mapping[str, tuple[int, int]],
        where: Mapping[str, tuple[ShardFile, str]],
        store: SourceStore,
    ) -> None:
        super().__init__(stamps, store.most_bytes)
        self._where, self._store = where, store

    def _located(self, names: Sequence[str]) -> list[LocatedFile]:
        for name in names:
            if name not in self._where:
                continue
            shard, sha256 = self._where[name]
            if self._store.find(sha256, name) is None:
                shard.read(VIDEO_SUFFIXES)
        located = []
        for name in names:
            if name not in self._where:
                located.append(_not_fetched(name, "a folder in the tars"))
                continue
            # The tar is identified by its version, so it holds this content again.
            located.append(LocatedFile(name, self._stamps[name], self._store.found(self._where[name][1], name)))
        return located


def _not_fetched(name: str, folder: str) -> LocatedFile:
    """A folder that a row names; frame folders are read on this machine only."""
    detail = (
        f"{name}: {folder} is a folder, and pictures are not fetched; encode them as a video, or copy the folder here"
        " and name its root in ingest.videos"
    )
    return LocatedFile(name, (0, 0), Path(), ("remote-folder", detail))


def number(tag: str) -> int:
    """A number that changes with a tag, in the range of times in nanoseconds."""
    return int(hashlib.sha256(tag.encode()).hexdigest()[:15], 16)
