"""Which links in a source folder may be followed: those that its owner made, not those that a row makes use of.

A row is data and names files of its folder only. Yet large folders consist of links: ``cache.type symlink`` makes each file of a
DVC-tracked folder a link into DVC's cache, snapshots of the Hugging Face hub are links into its blobs, git-annex links into its
objects, and a person links a folder of terabytes into the source folder. A link to a single file anywhere else is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from configparser import Error as ConfigError
from configparser import RawConfigParser
from pathlib import Path


class Links:
    """The places outside a source folder in which its files may lie. ``folder`` itself may be a link."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inside = folder.resolve()
        self._stores: tuple[Path, ...] | None = None

    def lead_out(self, path: Path) -> bool:
        """Whether ``path``, which lies below the folder by its name, is a file elsewhere that must not be read.

        Raises:
            OSError, RuntimeError: it does not exist, or its links go in a circle.
        """
        found = path.resolve(strict=True)
        # The folder that the file stands in may be linked; the file in it is held to that folder.
        homes = [self._inside, *(home.resolve() for home in path.parents if home.is_symlink() and self._folder in home.parents)]
        if any(found.is_relative_to(home) for home in homes):
            return False
        return not self.in_store(found)

    def in_store(self, found: Path) -> bool:
        """Whether a resolved path lies in a store of content whose links stand for the files of this folder."""
        return self.store_of(found) is not None

    def store_of(self, found: Path) -> Path | None:
        """The store that a resolved path lies in, None where it lies in none."""
        if self._stores is None:
            self._stores = tuple(_stores(self._folder))
        return next((store for store in self._stores if found.is_relative_to(store)), None)


def walk(folder: Path) -> Iterator[Path]:
    """Every file below the folder, those behind linked folders included; a folder that is met again on its own path is not entered."""
    yield from _walk(folder, frozenset([folder.resolve()]))


def _walk(folder: Path, entered: frozenset[Path]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        # A row that names a file in there is told so; nothing else can be said of it.
        return
    for entry in listed:
        path = folder / entry.name
        linked = entry.is_symlink()
        # Path.is_dir() says no of a link that leads nowhere, or in a circle, where an entry raises.
        if not (path.is_dir() if linked else entry.is_dir()):
            yield path
        elif not linked:
            yield from _walk(path, entered)
        elif (real := path.resolve()) not in entered:
            yield from _walk(path, entered | {real})


def _stores(folder: Path) -> Iterator[Path]:
    """Stores of content that link into a folder: DVC's cache of the project that it is in and of this project, the hub's, git-annex's."""
    for parent in dict.fromkeys([*folder.absolute().parents, *folder.resolve().parents, Path.cwd(), *Path.cwd().parents]):
        if (parent / ".dvc").is_dir():
            yield from _dvc_caches(parent / ".dvc")
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            yield (parent.parent / "blobs").resolve()
        if (parent / ".git/annex/objects").is_dir():
            yield (parent / ".git/annex/objects").resolve()


def _dvc_caches(dvc: Path) -> Iterator[Path]:
    """The cache of a DVC project: its folder ``cache``, and ``cache.dir`` of each of its configuration files that names one."""
    yield (dvc / "cache").resolve()
    shared = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    systems = os.environ.get("XDG_CONFIG_DIRS", "").split(os.pathsep)[0] or "/etc/xdg"
    folders = (
        os.environ.get("DVC_SYSTEM_CONFIG_DIR") or f"{systems}/dvc",
        os.environ.get("DVC_GLOBAL_CONFIG_DIR") or shared / "dvc",
        dvc,
    )
    for file in (*(Path(folder) / "config" for folder in folders), dvc / "config.local"):
        # DVC's own reader would come with DVC, which nothing that determines a result imports.
        parser = RawConfigParser(strict=False, allow_no_value=True)
        try:
            parser.read(file, encoding="utf-8")
        except (ConfigError, UnicodeDecodeError):
            # DVC complains of it wherever it runs; a link into a cache that cannot be told stays one that leads out.
            continue
        named = parser.get("cache", "dir", fallback=None)
        if named:
            yield (file.parent / named.strip("'\"")).resolve()
