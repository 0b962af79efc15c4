"""Policy for links in a source folder: links of its owner are followed, links that an annotation
could exploit are not.

A row is data and names files of its folder only. Yet large folders consist of links: ``cache.type
symlink`` makes each file of a DVC-tracked folder a link into DVC's cache, snapshots of the Hugging
Face hub are links into its blobs, git-annex links into its objects, and people link folders of
terabytes into the source folder. A link to a single file anywhere else is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from configparser import Error as ConfigError
from configparser import RawConfigParser
from pathlib import Path


class Links:
    """The locations outside a source folder in which its files may lie. ``folder`` itself may be a
    link."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._inside = folder.resolve()
        self._stores: tuple[Path, ...] | None = None
        self._leads_out: dict[str, bool] = {}

    def lead_out(self, path: Path) -> bool:
        """True if ``path``, whose name lies below the folder, is a file elsewhere that must not be
        read.

        Raises:
            OSError, RuntimeError: it does not exist, or its links form a loop.
        """
        if stat.S_ISLNK(os.lstat(path).st_mode):
            return self._lead_out(path)
        # All files of a folder that are no links themselves lead where the folder does.
        folder = os.path.dirname(path)  # noqa: PTH120 - for many files
        known = self._leads_out.get(folder)
        if known is None:
            known = self._leads_out[folder] = self._lead_out(path)
        return known

    def _lead_out(self, path: Path) -> bool:
        target = path.resolve(strict=True)
        # The file's folder may be a link; the file must lie in the folder that this link names.
        homes = [
            self._inside,
            *(home.resolve() for home in path.parents if home.is_symlink() and self._folder in home.parents),
        ]
        if any(target.is_relative_to(home) for home in homes):
            return False
        return not self.in_store(target)

    def in_store(self, target: Path) -> bool:
        """True if a resolved path lies in a content store whose links represent the files of this
        folder."""
        return self.store_of(target) is not None

    def store_of(self, target: Path) -> Path | None:
        """Find the content store in which a resolved path lies, or None."""
        if self._stores is None:
            self._stores = tuple(_stores(self._folder))
        return next((store for store in self._stores if target.is_relative_to(store)), None)


def walk(folder: Path) -> Iterator[str]:
    """Iterate over every file below the folder, also in linked folders, by its name below it, with
    forward slashes; a folder that contains itself by a link is entered once."""
    yield from _walk(folder, "", frozenset([folder.resolve()]))


def _walk(folder: Path, below: str, entered: frozenset[Path]) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        # A row that names a file in this folder gets a reject of its own.
        return
    for entry in listed:
        name, linked = below + entry.name, entry.is_symlink()
        # Path.is_dir() is False for a broken or looping link, for which an entry raises.
        if not (Path(entry.path).is_dir() if linked else entry.is_dir()):
            yield name
        elif not linked:
            yield from _walk(Path(entry.path), f"{name}/", entered)
        elif (real := Path(entry.path).resolve()) not in entered:
            yield from _walk(Path(entry.path), f"{name}/", entered | {real})


def _stores(folder: Path) -> Iterator[Path]:
    """Iterate over content stores of a folder: the DVC cache of its project and of this project,
    the hub's blobs, git-annex's objects."""
    for parent in dict.fromkeys(
        [*folder.absolute().parents, *folder.resolve().parents, Path.cwd(), *Path.cwd().parents]
    ):
        if (parent / ".dvc").is_dir():
            yield from _dvc_caches(parent / ".dvc")
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            yield (parent.parent / "blobs").resolve()
        if (parent / ".git/annex/objects").is_dir():
            yield (parent / ".git/annex/objects").resolve()


def _dvc_caches(dvc: Path) -> Iterator[Path]:
    """Iterate over the caches of a DVC project: its folder ``cache``, and ``cache.dir`` of each
    configuration file that sets it."""
    yield (dvc / "cache").resolve()
    shared = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    systems = os.environ.get("XDG_CONFIG_DIRS", "").split(os.pathsep)[0] or "/etc/xdg"
    folders = (
        os.environ.get("DVC_SYSTEM_CONFIG_DIR") or f"{systems}/dvc",
        os.environ.get("DVC_GLOBAL_CONFIG_DIR") or shared / "dvc",
        dvc,
    )
    for file in (*(Path(folder) / "config" for folder in folders), dvc / "config.local"):
        # DVC's own parser would need DVC, which no code that determines a result imports.
        parser = RawConfigParser(strict=False, allow_no_value=True)
        try:
            parser.read(file, encoding="utf-8")
        except (ConfigError, UnicodeDecodeError):
            # DVC reports this fault itself; a link into a cache that is unknown here counts as one
            # that leads out.
            continue
        named = parser.get("cache", "dir", fallback=None)
        if named:
            yield (file.parent / named.strip("'\"")).resolve()
