"""The cache folder: content of versions on a machine that has no clone of the project.

``VIDBRIDGE_CACHE``, else ``$XDG_CACHE_HOME/vidbridge``, else ``~/.cache/vidbridge``. Its layout is
that of a project's state:

- ``CACHEDIR.TAG``: marks it as a cache, for backup programs and for us;
- ``files/md5/``: objects by content, as DVC stores them (read-only once their hash was verified);
- ``.vidbridge/loaded``, ``.vidbridge/servable``: assembled models
  (:mod:`stages.tracking.registry.assembling`), weights linked to objects.

All of it can be removed: missing content is fetched again from the remote. `prune` keeps it below
``VIDBRIDGE_CACHE_GB``.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime.paths import LOADED, PIPELINE_FILE, SERVABLE, STATE
from stages.runtime.project import ProjectError, find_project
from stages.runtime.sources.bounds import most_bytes_of
from stages.tracking.lineage.uri import TrackingError

CACHE_VARIABLE, SIZE_VARIABLE = "VIDBRIDGE_CACHE", "VIDBRIDGE_CACHE_GB"
TAG_FILE = "CACHEDIR.TAG"
#: From https://bford.info/cachedir/.
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by vidbridge. What is missing here is fetched again.\n"
OBJECTS = "files/md5"
MOST_GB = 100.0
#: Content used within this many seconds is kept whatever the bound: another process may be
#: assembling or serving it.
IN_USE_S = 24 * 3600.0


def reading_root() -> Path:
    """Root of the content that is read here: the project's folder, or the cache folder outside a
    project.

    Raises:
        TrackingError: ``VIDBRIDGE_PROJECT`` is not a project's folder, or the cache folder cannot
            be used.
    """
    try:
        return find_project() or cache_folder()
    except ProjectError as error:
        raise TrackingError.from_error(error) from error


def cache_folder() -> Path:
    """Path of the cache folder, created with access for its owner only if it is missing.

    Raises:
        TrackingError: it cannot be created or read, or it is a project.
    """
    name, folder = _configured_folder()
    remedy = f"set {CACHE_VARIABLE} to a folder that can be written to, and has room for a model"
    try:
        if (folder / PIPELINE_FILE).exists() or (folder / ".dvc").exists():
            raise TrackingError(name, f"{str(folder)!r} is a project's folder", "name one of its own, or unset it")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_cache(folder):
            # A DVC remote or another cache has the same layout, and `prune` must never remove from
            # those.
            if (folder / "files").exists():
                raise TrackingError(
                    name, f"{str(folder)!r} holds objects that are not ours", "name a new or an empty folder"
                )
            (folder / TAG_FILE).write_text(_TAG, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TrackingError(
            name, f"{str(folder)!r} cannot be used as the cache folder ({reason})", f"{remedy}"
        ) from error
    return folder


def is_cache(root: Path) -> bool:
    """Return whether this folder is a cache folder, not a project."""
    return (root / TAG_FILE).is_file()


def most_bytes() -> int:
    """Largest size of the cache folder in bytes (``VIDBRIDGE_CACHE_GB``, 100 if unset).

    Raises:
        TrackingError: the variable is not a number above 0.
    """
    return most_bytes_of(SIZE_VARIABLE, MOST_GB, TrackingError)


def check_writable(root: Path, what: str) -> None:
    """Check that content can be put into the cache folder ``root``, which lacks ``what``.

    Raises:
        TrackingError: it is not writable.
    """
    if not os.access(root, os.W_OK | os.X_OK):
        raise TrackingError(
            what,
            f"is not in the cache folder {root}, which cannot be written to",
            f"set {CACHE_VARIABLE} to a folder that can, or fill this one where it is writable",
        )


def mark_used(*paths: Path) -> None:
    """Record that these were used now, so that `prune` keeps them. If that fails, only their age
    keeps them."""
    for path in paths:
        with suppress(OSError):
            os.utime(path)


@dataclass(frozen=True)
class RemovableItem:
    """One removable item: an object, an assembled model, or the partial work of a process that was
    killed."""

    path: Path
    used_s: float


def removable_items(root: Path) -> list[RemovableItem]:
    """List all removable items of a cache folder, least recently used first."""
    items = []
    for path in _removable(root):
        with suppress(FileNotFoundError):  # Another process is removing it right now.
            items.append(RemovableItem(path, path.lstat().st_mtime))
    return sorted(items, key=lambda item: item.used_s)


def prune(root: Path, most: int, unused_s: float = IN_USE_S) -> int:
    """Remove the least recently used items until the cache folder ``root`` holds at most ``most``
    bytes. Returns the bytes freed.

    Items used within the last ``unused_s`` seconds stay, whatever the size.

    Raises:
        TrackingError: ``root`` is not a cache folder.
    """
    if not is_cache(root):
        raise TrackingError(str(root), f"is not a cache folder (no {TAG_FILE})", "nothing was removed")
    before = size = _bytes(root)
    now = time.time()
    for item in removable_items(root):
        if size <= most or now - item.used_s < unused_s:
            break
        _remove(item.path)
        # Weights are hard links to objects: their bytes are freed when both are removed.
        size = _bytes(root)
    return before - size


class CacheRepo:
    """The part of a DVC repository that reading objects needs, for a cache folder: its cache, and
    remotes as DVC opens them.

    Remotes are those of the user's and the system's DVC configuration, and the one that ``changes``
    names. Neither a ``.dvc`` folder nor git is read.

    Raises:
        dvc.config.ConfigError: a configuration cannot be read.
    """

    def __init__(self, root: Path, changes: dict[str, Any] | None) -> None:
        from dvc.cachemgr import CacheManager
        from dvc.config import Config
        from dvc.data_cloud import DataCloud
        from dvc.fs import localfs
        from dvc_data.hashfile.state import StateNoop

        own = {"cache": {"dir": str(root), "type": ["copy"]}}
        self.config = Config(None, config={**(changes or {}), **own})
        self.fs, self.state = localfs, StateNoop()
        # Folder of DVC's index of a remote, and its owner; no index is used here.
        self.local_dvc_dir = self.site_cache_dir = self.data_index = None
        self.cache, self.cloud = CacheManager(self), DataCloud(self)


def _configured_folder() -> tuple[str, Path]:
    """The variable that sets the folder's path, and that path."""
    if path := os.environ.get(CACHE_VARIABLE, "").strip():
        return CACHE_VARIABLE, _expanded(path)
    # The specification ignores relative paths: https://specifications.freedesktop.org/basedir-spec
    if (base := os.environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return "XDG_CACHE_HOME", Path(base) / "vidbridge"
    return "HOME", _expanded("~") / ".cache" / "vidbridge"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise TrackingError(
            "HOME", "not set, and this user has no home folder", f"set {CACHE_VARIABLE} to a folder for the cache"
        ) from error


def _removable(root: Path) -> Iterator[Path]:
    inside = root.resolve()
    # Folders whose name starts with a dot are incomplete.
    for folder, is_item in ((LOADED, Path.is_dir), (SERVABLE, Path.is_dir), (Path(OBJECTS), Path.is_file)):
        for path in (root / folder).glob("*/*"):
            # A link among the folders above could lead anywhere.
            if is_item(path) and path.resolve() == inside / path.relative_to(root):
                yield path
    # Logs of servers, one per host.
    yield from (root / STATE).glob("serving-*.log*")


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not path.is_dir():
            path.unlink()
            return
        # Rename first, so that no reader finds half a model there.
        gone = path.with_name(f".gone-{uuid.uuid4().hex}")
        path.replace(gone)
        shutil.rmtree(gone)


def _bytes(root: Path) -> int:
    """Size of all files below in bytes; a file with several links counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                status = Path(parent, name).lstat()
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
