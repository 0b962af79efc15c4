"""The DVC remote, queried rather than trusted: which objects and entries of the run cache it holds.

It is queried in a process of its own (:mod:`flows.repro.remote_process`) that can be ended, because
a client of S3 retries for minutes; a folder of this machine is queried directly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from flows.content import run_cache
from flows.processes.environment import state
from stages.runtime import paths
from stages.runtime.plain import one_line
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.remote import insist_on_http, is_http, is_of_remote
from stages.tracking.lineage.uri import TrackingError, display_uri
from stages.tracking.session import Session

#: Objects that a remote was seen to hold, so that a run that has nothing to do need not ask for
#: them again. Inside the project's state.
SEEN = "remote-seen.json"
_MOST_SEEN = 10_000


class Seen:
    """Objects that the remote held when it was last queried. An object that cannot be fetched is
    forgotten.
    """

    def __init__(self, root: Path, url: str) -> None:
        self._path = state(root) / SEEN
        self._remote = hashlib.sha256(url.encode()).hexdigest()  # an address may hold a password
        self.objects = self._read()

    def _read(self) -> set[str]:
        try:
            table = json.loads(self._path.read_bytes())
            return set(table["objects"]) if table["remote"] == self._remote else set()
        except (OSError, ValueError, KeyError, TypeError):
            return set()  # None yet, or another version's: the remote is queried.

    def write(self, objects: Iterable[str]) -> None:
        kept = sorted(objects)[:_MOST_SEEN]
        if set(kept) == self.objects:
            return
        self.objects = set(kept)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        unfinished = self._path.with_suffix(paths.UNFINISHED)
        unfinished.write_text(json.dumps({"remote": self._remote, "objects": kept}))
        unfinished.replace(self._path)


def url_of(content: ContentStore) -> str:
    """Address of the project's remote, as configured."""
    return str(content.repo.config["remote"].get(content.remote_name(), {}).get("url", ""))


def name_of(content: ContentStore) -> str:
    return f"{content.remote_name()!r} ({display_uri(url_of(content))})"


def is_folder(content: ContentStore) -> bool:
    return "://" not in url_of(content)


def seen_of(content: ContentStore) -> Seen:
    return Seen(content.root, url_of(content))


class Remote:
    """A project's remote. Every method may raise the errors of its file system if it does not
    answer: :class:`OSError` and others.
    """

    def __init__(self, content: ContentStore) -> None:
        self.content = content
        self.notes: list[str] = []
        self._remote = content.repo.cloud.get_remote(content.remote_name())
        self.seen = seen_of(content)
        self._entries: dict[str, list[tuple[str, bytes]]] = {}

    @property
    def name(self) -> str:
        return name_of(self.content)

    def holds(self, objects: Iterable[str]) -> set[str]:
        """Return those of the objects that the remote has: by earlier answers, else by a query in
        bulk.

        For a folder, queries its list: DVC pushes a list after all of its files.
        """
        wanted = set(objects)
        unknown = sorted(wanted - self.seen.objects)
        found = set(self._remote.odb.list_oids_exists(unknown)) if unknown else set()
        if len(found) < len(unknown):
            self.verify_answer(next(oid for oid in unknown if oid not in found))
        self.seen.write(self.seen.objects | found)
        return (wanted & self.seen.objects) | found

    def verify_answer(self, oid: str) -> None:
        """Verify that the remote can be believed where it reported an object as missing.

        Raises:
            OSError, Exception of aiohttp: a server of HTTP is away or wants to know who asks; a
                folder is not mounted.
        """
        if is_http(self._remote.fs):
            insist_on_http(self._remote.fs, self._remote.odb.oid_to_path(oid))
        elif is_folder(self.content):
            self._verify_mount(Path(self._remote.path), Path(self._remote.odb.path))

    def _verify_mount(self, folder: Path, objects: Path) -> None:
        if folder.is_relative_to(self.content.root.resolve()) or paths.STATE.name in folder.parts:
            return  # of this project, or in the state of the one that this is a clone of
        if not objects.is_dir():
            raise FileNotFoundError(
                f"{objects} is not there; is it mounted? A remote that holds nothing yet: mkdir -p {objects}"
            )

    def entries(self, key: str) -> list[tuple[str, bytes]]:
        """Entries of the run cache under that key."""
        if key not in self._entries:
            self._entries[key] = list(self._read_entries(key))
        return self._entries[key]

    def _read_entries(self, key: str) -> Iterator[tuple[str, bytes]]:
        if not self.keeps_runs():
            return
        fs = self._remote.fs
        folder = fs.join(self._remote.path, run_cache.RUNS, key[:2], key)
        try:
            names = sorted(path for path in fs.find(folder) if run_cache.is_value(fs.name(path)))
        except FileNotFoundError:
            return
        for path in names[:16]:
            with fs.open(path, "rb") as file:
                yield fs.name(path), file.read(run_cache.MOST_BYTES + 1)

    def keeps_runs(self) -> bool:
        """Return whether the remote can keep DVC's run cache; notes it once if not."""
        if not is_http(self._remote.fs):
            return True
        note = f"remote {self.name}: DVC keeps no run cache on http, so only what dvc.lock names is fetched from there"
        if note not in self.notes:
            self.notes.append(note)
        return False

    def push_entry(self, key: str, value: str, text: bytes) -> bool:
        """Write an entry of the run cache; returns False if it exists already."""
        fs = self._remote.fs
        path = fs.join(self._remote.path, run_cache.RUNS, key[:2], key, value)
        if fs.exists(path):
            return False
        fs.makedirs(fs.parent(path), exist_ok=True)
        with fs.open(path, "wb") as file:
            file.write(text)
        return True


def failed(error: Exception) -> bool:
    """Return whether an error means that a remote did not answer or refused: an error of a remote's
    library, or ours about it.
    """
    return isinstance(error, TrackingError) or is_of_remote(error)


def opened(content: ContentStore) -> Remote | None:
    """The remote of the project; None if none is configured.

    Raises:
        TrackingError: its configuration is wrong.
    """
    from dvc.exceptions import DvcException

    if content.remote_name() is None:
        return None
    try:
        return Remote(content)
    except (DvcException, ImportError) as error:
        raise TrackingError(f"DVC remote {content.remote_name()!r}", one_line(error), "correct .dvc/config") from error


def push_runs(session: Session) -> tuple[int, tuple[str, ...]]:
    """Push the run cache's entries of the stages in ``dvc.lock`` to the remote, so that another
    host need not run what this one did.

    Returns:
        How many are new there, and what is to be said.

    Raises:
        TrackingError: no answer, or no permission.
    """
    content = session.content
    remote = opened(content)
    if remote is None or not remote.keeps_runs():
        return 0, tuple(remote.notes) if remote else ()
    new = 0
    try:
        for stage in content.repo.index.stages:
            if (
                not stage.cmd
                or not any(out.hash_info for out in stage.outs)
                or (key := run_cache.key_of(stage)) is None
            ):
                continue
            now = {out.def_path: out.hash_info.value for out in stage.outs}
            for value, text in run_cache.local_entries(content.repo, key):
                try:
                    entry = run_cache.read_entry(text, key, value, set(now))
                except ValueError:
                    continue  # A foreign entry is never pushed.
                # Only of outs that were pushed with this lock.
                if {out["path"]: out["md5"] for out in entry["outs"]} == now:
                    new += remote.push_entry(key, value, text)
    except Exception as error:
        if not failed(error):
            raise
        raise TrackingError(
            f"DVC remote {remote.name}",
            f"run cache: {one_line(error)}",
            "is it reachable and writable? then: vidbridge run --push",
        ) from error
    return new, tuple(remote.notes)
