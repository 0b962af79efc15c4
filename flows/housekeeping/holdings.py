"""Objects in DVC's cache and remote: which are needed, by whom, and which by nobody."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.errors import FlowError
from flows.housekeeping.needs import MANIFESTS, REFS, REGISTERED, Lists, Need
from flows.housekeeping.registry_needs import Standing, named_oids, oids_of
from stages.runtime.bounded_yaml import YamlError, parse_yaml
from stages.runtime.plain import redacted
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.listing import is_hash

NOBODY = "nobody needs it"
NOT_OURS = "shared, and nothing says that it is this project's"
NO_AGE = "the remote does not say how old it is"
#: Objects that are removed by one request.
_CHUNK = 500


@dataclass(frozen=True)
class Held:
    """An object in its place. ``mtime``: seconds since the epoch, None if the store does not report
    it; ``inode``: device, number, links.
    """

    oid: str
    path: str
    size: int
    mtime: float | None
    inode: tuple[int, int, int] | None = None


@dataclass
class Place:
    """A cache or a remote. ``shared``: other projects may use it, so only objects proven to be this
    project's own are freed.
    """

    kind: str
    odb: Any
    shared: bool
    held: list[Held] = field(default_factory=list)


def inventory(kind: str, odb: Any, *, shared: bool) -> Place:
    """Every object of a cache or remote.

    Raises:
        FlowError: it cannot be listed.
    """
    from dvc.fs import LocalFileSystem

    try:
        listed = _local(odb.path) if isinstance(odb.fs, LocalFileSystem) else _elsewhere(odb)
        return Place(kind, odb, shared, sorted(listed, key=lambda one: one.oid))
    except Exception as error:  # whatever the remote's library raises
        raise FlowError(kind, f"{redacted(str(error))}", "it cannot be listed, so nothing was freed") from error


def _local(base: str) -> Iterator[Held]:
    for folder, _, files in os.walk(base):
        prefix = Path(folder).name
        for name in files:
            oid = prefix + name
            if len(prefix) != 2 or not is_hash(oid):
                continue
            path = f"{folder}{os.sep}{name}"
            with suppress(FileNotFoundError):
                status = os.lstat(path)
                yield Held(oid, path, status.st_size, status.st_mtime, (status.st_dev, status.st_ino, status.st_nlink))


def _elsewhere(odb: Any) -> Iterator[Held]:
    with suppress(FileNotFoundError):
        for path, about in odb.fs.fs.find(odb.path, detail=True).items():
            parts = path.rsplit("/", 2)
            oid = "".join(parts[-2:])
            if is_hash(oid) and about.get("type") != "directory":
                yield Held(oid, path, int(about.get("size") or 0), _mtime(about))


def _mtime(about: Mapping[str, Any]) -> float | None:
    for key in ("LastModified", "last_modified", "mtime", "updated"):
        value = about.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    return None


@dataclass
class Verdicts:
    """Objects of a place that stay, with the reason and with who needs them; the rest is free."""

    kept: dict[str, str]
    free: list[Held]


class Judge:
    """Decider about objects: who needs them, whose they are, how old they are.

    Args:
        needs: of projects and registry, the strongest reasons first.
        registered: versions that nothing needs and that are registered all the same.
        ours: content that this project's own history, or one of its versions, names (folders and
            single files).
        keep_s: younger objects stay.
    """

    def __init__(
        self, lists: Lists, needs: Sequence[Need], registered: Sequence[Standing], ours: Iterable[str], keep_s: float
    ) -> None:
        self.lists = lists
        self.keep_s = keep_s
        self.why: dict[str, str] = {}
        for need in sorted(needs, key=lambda need: need.why == MANIFESTS):
            for oid in lists.expand(need):
                self.why.setdefault(oid, f"{REFS}: {need.who}" if need.why == REFS else need.why)
        #: Object to the version that would lose it.
        self.registered = {
            oid: f"{one.version.model} version {one.version.number}"
            for one in registered
            for oid in lists.expand(Need(REGISTERED, "", oids_of(one.version)))
        }
        self._ours = ours
        self._own: frozenset[str] | None = None

    def judge(self, place: Place, elsewhere: frozenset[str] | None) -> Verdicts:
        """Decide about the objects of a place. ``elsewhere``: objects with another copy; None: that
        is not known, or not to be relied on.
        """
        kept: dict[str, str] = {}
        free: list[Held] = []
        now = time.time()
        for one in place.held:
            why = self.why.get(one.oid)
            if why is None and one.oid in self.registered and (elsewhere is None or one.oid not in elsewhere):
                why = REGISTERED
            if why is None and one.mtime is None:
                why = NO_AGE
            if why is None and one.mtime is not None and now - one.mtime < self.keep_s:
                why = f"younger than {self.keep_s / 86400:g} days (--keep-days)"
            if why is None and place.shared and one.oid not in self.own:
                why = NOT_OURS
            if why is None:
                free.append(one)
            else:
                kept[one.oid] = why
        return Verdicts(kept, free)

    @property
    def own(self) -> frozenset[str]:
        """Hashes proven to be this project's own, the files of its folders included."""
        if self._own is None:
            self._own = frozenset(oid for oid in self.lists.expand(Need("", "", frozenset(self._ours))))
        return self._own


def own_oids(history: Iterable[str], standing: Sequence[Standing], models: frozenset[str]) -> frozenset[str]:
    """Hashes that this project's history, or a version of one of its models, names."""
    return frozenset(history).union(*(named_oids(one.version) for one in standing if one.version.model in models))


def bytes_of(held: Iterable[Held]) -> int:
    """Space that removing these objects frees: a file that is linked from elsewhere too frees
    nothing.
    """
    total = 0
    links: dict[tuple[int, int], int] = {}
    for one in held:
        if one.inode is None:
            total += one.size
            continue
        device, number, count = one.inode
        links[device, number] = links.get((device, number), 0) + 1
        if links[device, number] == count:
            total += one.size
    return total


def remove(place: Place, held: Sequence[Held]) -> int:
    """Remove objects, lists of folders first (a list whose files are gone would be believed);
    returns how many had vanished already.

    An object that was written again since it was listed stays.
    """
    from dvc.fs import LocalFileSystem

    vanished = 0
    ordered = sorted(held, key=lambda one: not one.oid.endswith(".dir"))
    if isinstance(place.odb.fs, LocalFileSystem):
        for one in ordered:
            try:
                if os.lstat(one.path).st_mtime == one.mtime:
                    Path(one.path).unlink()
            except FileNotFoundError:
                vanished += 1
    else:
        for lists in (True, False):
            # One request may remove in any order.
            paths = [one.path for one in ordered if one.oid.endswith(".dir") is lists]
            for start in range(0, len(paths), _CHUNK):
                vanished += _remove_elsewhere(place, paths[start : start + _CHUNK])
    return vanished


def _remove_elsewhere(place: Place, paths: list[str]) -> int:
    try:
        place.odb.fs.remove(paths)
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever the remote's library raises
        raise FlowError(
            place.kind,
            f"{redacted(str(error))}",
            "what was freed before stays freed, do it again to free the rest",
        ) from error
    else:
        return 0
    vanished = 0
    for path in paths:
        try:
            place.odb.fs.remove(path)
        except FileNotFoundError:
            vanished += 1
    return vanished


def remove_files(odb: Any, paths: Sequence[str]) -> None:
    """Remove files of a remote that are not objects."""
    for path in paths:
        with suppress(FileNotFoundError):
            odb.fs.remove(path)


def forget_index(odb: Any) -> None:
    """Drop DVC's index of the remote: it would believe deleted objects to be present, and never
    push them again.
    """
    from dvc_data.hashfile.db import get_index

    get_index(odb).clear()


def spent_entries(content: ContentStore, left: frozenset[str], elsewhere: frozenset[str] | None) -> list[Path]:
    """Entries of DVC's run cache whose outs are neither in the cache (``left``: what stays there)
    nor in the remote.

    DVC believes an entry only where its outs are; spent ones would pile up, and the newest one of a
    stage hides those before it.

    Args:
        elsewhere: what stays in the remote; None: it is asked.
    """
    folder = Path(content.repo.stage_cache.cache_dir)
    outs = {path: _entry_outs(path.read_bytes(), str(path)) for path in sorted(folder.glob("*/*/*")) if path.is_file()}
    missing = {oid for oids in outs.values() for oid in oids} - left
    if elsewhere is not None:
        missing -= elsewhere
    elif missing and content.remote_name():
        try:
            remote = content.remote()
            assert remote is not None
            missing -= set(remote.oids_exist(sorted(missing)))
        except Exception:  # it does not answer: what it has is unknown, so every entry may still be of use
            return []
    return [path for path, oids in outs.items() if oids & missing]


def spent_elsewhere(content: ContentStore, freed: frozenset[str]) -> tuple[Any, list[str]]:
    """The remote, and the entries of its run cache that name content ``freed`` there.

    Raises:
        FlowError: it does not answer.
    """
    try:
        odb = content.repo.cloud.get_remote_odb(content.remote_name(), "gc", hash_name="md5-dos2unix")
        folder = odb.fs.join(odb.path, "runs")
        if not freed or not odb.fs.exists(folder):
            return odb, []
        paths = sorted(odb.fs.find(folder))
        return odb, [path for path in paths if _entry_outs(bytes(odb.fs.cat_file(path)), path) & freed]
    except FileNotFoundError:
        return None, []  # another one was faster
    except Exception as error:  # whatever the remote's library raises
        raise FlowError(
            "remote", f"{redacted(str(error))}", "its run cache cannot be listed, so nothing was freed"
        ) from error


def _entry_outs(text: bytes, name: str) -> frozenset[str]:
    try:
        table = parse_yaml(text.decode("utf-8"), name) or {}
        found = {str(out.get("md5") or "") for out in table.get("outs") or ()}
    except (YamlError, UnicodeDecodeError, AttributeError, TypeError):
        return frozenset()  # DVC drops it itself when it comes across it
    return frozenset(oid for oid in found if is_hash(oid))
