"""The cache folder: where a version's content is kept on a machine that has no clone of the project.

``VIDBRIDGE_CACHE``, else ``$XDG_CACHE_HOME/vidbridge``, else ``~/.cache/vidbridge``. It is laid out as a project's state is:

- ``CACHEDIR.TAG``: what marks it as a cache, for backups and for us;
- ``files/md5/``: objects by content, as DVC keeps them (read-only once their hash was looked at);
- ``.vidbridge/loaded``, ``.vidbridge/servable``: models put together (:mod:`stages.tracking.registry.assembling`), weights linked to objects.

All of it can be removed: what is needed again comes from the remote. `prune` keeps it below ``VIDBRIDGE_CACHE_GB``.
"""

from __future__ import annotations

import math
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
from stages.tracking.lineage.uri import TrackingError

CACHE_VARIABLE, SIZE_VARIABLE = "VIDBRIDGE_CACHE", "VIDBRIDGE_CACHE_GB"
TAG_FILE = "CACHEDIR.TAG"
#: As https://bford.info/cachedir/ has it.
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by vidbridge. What is missing here is fetched again.\n"
OBJECTS = "files/md5"
MOST_GB = 100.0
#: What was used later than so many seconds ago is kept, whatever the bound says: somebody may be putting it together, or serve it.
IN_USE_S = 24 * 3600.0


def reading_root() -> Path:
    """Where content is kept that is read here: the project's folder, outside of one the cache folder.

    Raises:
        TrackingError: ``VIDBRIDGE_PROJECT`` is not a project's folder, or the cache folder cannot be used.
    """
    try:
        return find_project() or cache_folder()
    except ProjectError as error:
        raise TrackingError(str(error)) from error


def cache_folder() -> Path:
    """The cache folder, made for its owner alone where it is not there yet.

    Raises:
        TrackingError: it cannot be made, cannot be read, or is a project.
    """
    name, folder = _place()
    remedy = f"set {CACHE_VARIABLE} to a folder that can be written to, and has room for a model"
    try:
        if (folder / PIPELINE_FILE).exists() or (folder / ".dvc").exists():
            raise TrackingError(f"{name}: {str(folder)!r} is a project's folder; name one of its own, or unset it")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_cache(folder):
            # A DVC remote or another cache is laid out alike, and nothing of those may be removed one day.
            if (folder / "files").exists():
                raise TrackingError(f"{name}: {str(folder)!r} holds objects that are not ours; name a new or an empty folder")
            (folder / TAG_FILE).write_text(_TAG, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TrackingError(f"{name}: {str(folder)!r} cannot be used as the cache folder ({reason}); {remedy}") from error
    return folder


def is_cache(root: Path) -> bool:
    """Whether this folder is a cache folder, and no project."""
    return (root / TAG_FILE).is_file()


def most_bytes() -> int:
    """How large the cache folder may become (``VIDBRIDGE_CACHE_GB``, 100 where it is not set).

    Raises:
        TrackingError: the variable is no number above 0.
    """
    given = os.environ.get(SIZE_VARIABLE, "").strip()
    try:
        size_gb = float(given) if given else MOST_GB
    except ValueError:
        size_gb = math.nan
    if not 0 < size_gb < 1e9:
        raise TrackingError(f"{SIZE_VARIABLE}: {given!r} is not a number of GB; set one above 0, or unset it ({MOST_GB:g})")
    return int(size_gb * 1e9)


def check_writable(root: Path, what: str) -> None:
    """Raises:
    TrackingError: nothing can be put into the cache folder ``root``, where ``what`` is missing.
    """
    if not os.access(root, os.W_OK | os.X_OK):
        raise TrackingError(
            f"{what}: is not in the cache folder {root}, which cannot be written to; set {CACHE_VARIABLE} to a folder that can, or fill"
            " this one where it is writable"
        )


def mark_used(*paths: Path) -> None:
    """Note that these were used just now, so that `prune` keeps them. Where that may not be noted, they are kept by their age alone."""
    for path in paths:
        with suppress(OSError):
            os.utime(path)


@dataclass(frozen=True)
class Kept:
    """One thing that can be removed: an object, a model put together, or what a process that was killed left half-made."""

    path: Path
    used_s: float


def kept(root: Path) -> list[Kept]:
    """All that a cache folder holds and could do without, the longest unused first."""
    found = []
    for path in _removable(root):
        with suppress(FileNotFoundError):  # Another process removes it just now.
            found.append(Kept(path, path.lstat().st_mtime))
    return sorted(found, key=lambda item: item.used_s)


def prune(root: Path, most: int, unused_s: float = IN_USE_S) -> int:
    """Remove what was unused for the longest time until the cache folder ``root`` holds at most ``most`` bytes; returns the bytes freed.

    What was used within the last ``unused_s`` seconds stays, whatever its size.

    Raises:
        TrackingError: ``root`` is no cache folder.
    """
    if not is_cache(root):
        raise TrackingError(f"{root}: is no cache folder (no {TAG_FILE}); nothing was removed")
    before = size = _bytes(root)
    now = time.time()
    for item in kept(root):
        if size <= most or now - item.used_s < unused_s:
            break
        _remove(item.path)
        # Weights are linked to objects: they are gone when both are.
        size = _bytes(root)
    return before - size


class CacheRepo:
    """What is asked of a DVC repository to read objects, for a cache folder: its cache, and remotes as DVC opens them.

    Remotes are those of the person's and the system's DVC configuration, and the one that ``changes`` names. Neither a ``.dvc`` folder
    nor git is asked.

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
        # Where DVC would keep an index of a remote, and whose: nothing here uses one.
        self.local_dvc_dir = self.site_cache_dir = self.data_index = None
        self.cache, self.cloud = CacheManager(self), DataCloud(self)


def _place() -> tuple[str, Path]:
    """The variable that says where the folder is, and where that is."""
    if given := os.environ.get(CACHE_VARIABLE, "").strip():
        return CACHE_VARIABLE, _expanded(given)
    # Relative ones are to be ignored: https://specifications.freedesktop.org/basedir-spec
    if (base := os.environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        return "XDG_CACHE_HOME", Path(base) / "vidbridge"
    return "HOME", _expanded("~") / ".cache" / "vidbridge"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise TrackingError(
            f"HOME: not set, and this user has no home folder, so there is no place for a cache folder; set {CACHE_VARIABLE} to one"
        ) from error


def _removable(root: Path) -> Iterator[Path]:
    inside = root.resolve()
    # Folders with a dot before their name are half-made.
    for folder, wanted in ((LOADED, Path.is_dir), (SERVABLE, Path.is_dir), (Path(OBJECTS), Path.is_file)):
        for path in (root / folder).glob("*/*"):
            # A link among the folders above could lead anywhere.
            if wanted(path) and path.resolve() == inside / path.relative_to(root):
                yield path
    # Logs of servers, a host's each.
    yield from (root / STATE).glob("serving-*.log*")


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not path.is_dir():
            path.unlink()
            return
        # First out of the way: nobody finds half a model there.
        gone = path.with_name(f".gone-{uuid.uuid4().hex}")
        path.replace(gone)
        shutil.rmtree(gone)


def _bytes(root: Path) -> int:
    """Bytes of all files below, each once however many links it has."""
    sizes: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                found = Path(place, name).lstat()
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
