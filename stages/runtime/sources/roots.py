"""Roots of a source, as ``params.yaml`` names them: of its rows and its videos, and how rows name
files. No client of servers is imported here, since every command reads the parameters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stages.runtime.sources.addresses import ROW_SUFFIXES, SHARD_SUFFIX, is_remote, place_of

#: Suffixes of rows. A text is no table of rows beside shards: a licence, a list of the shards.
_ROWS = ROW_SUFFIXES - {".txt"}


class NameRules(NamedTuple):
    """How a name in the rows becomes the path of a file: ``strip`` is taken from its front, ``add``
    put there, ``extension`` put behind it."""

    strip: str = ""
    add: str = ""
    extension: str = ""

    def file_of(self, name: str) -> str:
        return f"{self.add}{name.removeprefix(self.strip)}{self.extension}"

    def name_of(self, file: str) -> str | None:
        """The name by which rows mean a file; None if they can mean it by none."""
        if not (file.startswith(self.add) and file.endswith(self.extension) and file != self.add):
            return None
        return self.strip + file[len(self.add) : len(file) - len(self.extension)]


class Roots(NamedTuple):
    """Where a source is: ``source`` (its rows), ``videos`` (None: beside them), and how rows name
    files."""

    source: str
    videos: str | None
    names: NameRules

    def below(self, root: Path) -> Roots:
        """The same, with paths of this machine counted from ``root``."""
        source, videos = (
            address if address is None or is_remote(address) else str(root / Path(address).expanduser())
            for address in (self.source, self.videos)
        )
        assert source is not None
        return Roots(source, videos, self.names)

    @property
    def field(self) -> str:
        """The parameter that names the folder of the videos."""
        return "ingest.source" if self.videos is None else "ingest.videos"

    @property
    def folder(self) -> str:
        """The folder of the videos."""
        return place_of(self.source if self.videos is None else self.videos).root

    @property
    def file(self) -> str | None:
        """The only shard of the videos, where the address names one."""
        named = place_of(self.source if self.videos is None else self.videos).file
        return named if named is not None and named.endswith(SHARD_SUFFIX) else None

    def in_shards(self, names: Iterable[str]) -> bool:
        """True if a folder with files of these names holds the videos in shards."""
        suffixes = {PurePosixPath(name).suffix.lower() for name in names}
        return SHARD_SUFFIX in suffixes and (self.videos is not None or not suffixes & _ROWS)

    @property
    def local_shards(self) -> bool:
        """True if the videos lie in tars on this machine."""
        if is_remote(self.folder):
            return False
        if self.file is not None:
            return True
        top = {PurePosixPath(name).suffix.lower() for name in files_below(Path(self.folder), deep=False)}
        if self.videos is None and top & _ROWS:
            return False  # the usual folder of many videos, which is not walked for this
        return self.in_shards(files_below(Path(self.folder), deep=True))


def files_below(folder: Path, deep: bool) -> Iterator[str]:
    """Names of the files in a folder, or also below it; with forward slashes."""
    for parent, folders, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        yield from ((below / name).as_posix() for name in names)
        if not deep:
            folders.clear()
