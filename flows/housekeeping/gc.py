"""``vidbridge gc``: list what nothing needs any more, and free it. Without ``--yes`` it changes
nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.console import show
from flows.errors import FlowError, UsageError
from flows.housekeeping.holdings import (
    NOBODY,
    Held,
    Judge,
    Place,
    Verdicts,
    bytes_of,
    forget_index,
    inventory,
    own_oids,
    remove,
    remove_files,
    spent_elsewhere,
    spent_entries,
)
from flows.housekeeping.leftovers import Leftover, leftovers
from flows.processes.locks import only_run
from flows.repro.registered import other_store
from stages.runtime import paths as layout
from stages.runtime.leases import lease
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.uri import TrackingError, display_uri, sqlite_path, tracking_uri
from stages.tracking.registry.needed import (
    ALIASES,
    Lists,
    Need,
    Registry,
    Standing,
    clones,
    history_oids,
    oids_of,
    origin_needs,
    own_models,
    project_needs,
    registry,
)
from stages.tracking.registry.versions import Version
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import open_client, retry_on_conflict
from stages.tracking.session import Session

#: Other clones and machines may share cache and remote, and take days to say what they need.
KEEP_DAYS = 7.0
FREED = TAG + "freed"


@dataclass(frozen=True)
class Row:
    """A line of the table. ``bytes``: the space it takes; for free objects, the space that is
    regained.
    """

    kind: str
    what: str
    objects: int
    bytes: int
    free: bool
    why: str


@dataclass
class Findings:
    """Everything that was examined, as rows and as what is to be removed."""

    rows: list[Row]
    places: list[tuple[Place, list[Held]]]
    paths: list[Path]
    #: Folders that somebody may take up again, also on another host.
    scratch: list[Path]
    versions: list[Standing]
    entries: list[Path]
    #: A remote, and entries of its run cache.
    far_entries: tuple[Any, list[str]]
    notes: list[str]

    @property
    def freed_bytes(self) -> int:
        return sum(row.bytes for row in self.rows if row.free)


@dataclass(frozen=True)
class GcOptions:
    """Options of the command. ``also``: other projects that use this cache or remote."""

    remote: bool
    versions: bool
    keep_days: float
    also: tuple[Path, ...]

    @property
    def keep_s(self) -> float:
        return self.keep_days * 86400


def gc(root: Path, order: GcOptions, *, yes: bool, as_json: bool) -> None:
    """List what nothing needs, and with ``yes`` free it.

    Raises:
        UsageError: ``--also`` names no project.
        FlowError, TrackingError: a run is working here, or who needs what cannot be told; nothing
            was freed.
    """
    for other in order.also:
        if not (other / layout.PIPELINE_FILE).is_file():
            raise UsageError(
                f"--also: {str(other)!r} holds no dvc.yaml; name the folder of a project that uses this cache or remote"
            )
    with Session(root) as session, ExitStack() as stack:
        if yes:
            # All that could make or take content meanwhile: this project's run, those of its
            # clones, those of the others.
            for project in (root, *clones(root), *order.also):
                stack.enter_context(only_run(project))
        if yes:
            stack.enter_context(_dvc_lock(session.content))
        marked: list[Standing] = []
        try:
            found = _find(session, order, marked, yes=yes)
        except BaseException:
            _unmark(session, marked)
            raise
        if yes:
            _free(found)
    if as_json:
        rows = [asdict(row) for row in found.rows]
        document = {
            "freed": yes,
            "keep_days": order.keep_days,
            "bytes": found.freed_bytes,
            "rows": rows,
            "notes": found.notes,
        }
        show.document(document)
    else:
        _show(found, order, yes=yes)


@contextmanager
def _dvc_lock(content: ContentStore) -> Iterator[None]:
    from dvc.lock import LockError

    try:
        content.repo.lock.lock()
    except LockError as error:
        raise FlowError("gc: DVC is at work in this project; wait for it (dvc says more: dvc status)") from error
    try:
        yield
    finally:
        content.repo.lock.unlock()


def _find(session: Session, order: GcOptions, marked: list[Standing], *, yes: bool) -> Findings:
    root, params, content = session.root, session.params, session.content
    notes: list[str] = []
    if other := other_store(root):
        raise FlowError(f"{other}; nothing was freed")
    lists = Lists(content)
    projects = [root, *clones(root)]
    needs = [need for project in (*projects, *order.also) for need in project_needs(project)]
    needs += [need for other in order.also for need in _others_needs(root, other)]
    alone = not order.also and Path(content.cache.path).resolve().is_relative_to(root.resolve())
    cache = inventory("cache", content.cache, shared=not alone)
    if order.remote:
        remote_odb = content.remote()
        if remote_odb is None:
            raise UsageError("--remote: this project has no DVC remote; add one: dvc remote add -d NAME URL")
        remote = inventory("remote", remote_odb, shared=True)
    elif order.versions and content.remote_name():
        raise UsageError(
            "--versions: this project has a DVC remote, where copies of those weights would be left; add --remote:"
            " vidbridge gc --remote --versions"
        )
    if order.remote or order.versions or cache.shared:
        needs += origin_needs(root)
    refs = frozenset(oid for need in needs for oid in need.oids)
    needed_by_registry = _registry(session, refs, order, notes, marked, partial(_has_weights, content, lists), yes=yes)
    if needed_by_registry is not None and (order.remote or order.versions or cache.shared):
        _verify_versions(session, needed_by_registry)
    found = Findings([], [], [], [], [], [], (None, []), notes)
    pinned: frozenset[str] = frozenset()
    if needed_by_registry is None:
        found.rows.append(
            Row("cache", "objects", len(cache.held), sum(one.size for one in cache.held), False, notes[-1])
        )
    else:
        pinned = frozenset(oid for need in needed_by_registry.needs if need.why == ALIASES for oid in need.oids)
        given_up = [one for one in needed_by_registry.versions if one.why is None]
        left = [one for one in given_up if not order.versions and one.version.freed is None]
        if order.versions:
            found.versions = [one for one in given_up if one.version.freed is None]
        models = own_models(params)
        ours = (
            own_oids(history_oids(root), needed_by_registry.versions, models)
            if order.remote or cache.shared
            else frozenset[str]()
        )
        judge = Judge(lists, [*needs, *needed_by_registry.needs], left, ours, order.keep_s)
        elsewhere: frozenset[str] | None = None
        if order.remote:
            verdicts = judge.judge(remote, None)
            elsewhere = frozenset(verdicts.kept)
            where = display_uri(remote.odb.fs.unstrip_protocol(remote.odb.path))
            _place_rows(found, remote, verdicts, where)
            found.far_entries = spent_elsewhere(content, frozenset(one.oid for one in verdicts.free))
            if count := len(found.far_entries[1]):
                found.rows.append(Row("run cache", where, count, 0, True, "its outs are freed"))
        elif content.remote_name() and judge.registered:
            elsewhere = _copies(content, judge, cache, notes)
        verdicts = judge.judge(cache, elsewhere)
        _place_rows(found, cache, verdicts, str(cache.odb.path))
        if intact := _intact(found.versions, lists, frozenset(verdicts.kept) | (elsewhere or frozenset())):
            found.versions = [one for one in found.versions if one not in intact]
            if yes:
                _unmark(session, intact)
        _version_rows(found, needed_by_registry, order, intact)
        _entry_row(found, content, cache, verdicts, elsewhere if order.remote else None)
    removed = frozenset(video.sha256 for video in params.ingest.exclude if video.sha256)
    _leftover_rows(
        found,
        root,
        list(leftovers(root, params, projects, pinned, removed, order.keep_s)),
        pinned_known=needed_by_registry is not None,
    )
    return found


def _others_needs(root: Path, other: Path) -> list[Need]:
    """Needs of the registry and the origin of a project that ``--also`` names.

    Raises:
        FlowError, TrackingError: these cannot be asked; nothing was freed.
    """
    if said := other_store(other):
        raise FlowError(f"--also {other}: {said}; nothing was freed")
    from mlflow.exceptions import MlflowException

    try:
        needs = origin_needs(other)
        uri = tracking_uri(other)
        database = sqlite_path(uri)
        if uri == tracking_uri(root) or (database is not None and not database.exists()):
            return needs
        return [*needs, *registry(open_client(other), frozenset(), frozenset(), 0.0).needs]
    except (TrackingError, MlflowException) as error:
        raise TrackingError(
            f"--also {other}: what it needs cannot be told: {redacted(one_line(str(error)))}; nothing was freed"
        ) from error


def _verify_versions(session: Session, known: Registry) -> None:
    """Verify that the store knows this project; otherwise it is taken for the wrong one, where
    copies of others are at stake.

    Raises:
        UsageError: it has no version of the project's model.
    """
    model = session.params.gate.registered_model
    if not any(one.version.model == model for one in known.versions):
        raise UsageError(
            f"MLFLOW_TRACKING_URI: {display_uri(tracking_uri(session.root))} holds no version of {model}, so it cannot"
            " tell what a shared cache, the remote or --versions may lose; set it to the store in which this project"
            " registers, or register first: vidbridge register"
        )


def _intact(versions: Sequence[Standing], lists: Lists, left: frozenset[str]) -> list[Standing]:
    """Versions whose weights are all ``left`` in the cache or the remote: young, of others, or
    shared with what is needed. They are not given up.
    """
    return [one for one in versions if left.issuperset(lists.expand(Need("", "", oids_of(one.version))))]


def _has_weights(content: ContentStore, lists: Lists, version: Version) -> bool:
    """Return whether every object of a version is in the cache or the remote.

    Raises:
        TrackingError: the remote cannot be asked.
    """
    oids = oids_of(version)
    if not oids or any(lists.files(oid) is None for oid in oids if oid.endswith(".dir")):
        return False
    missing = [oid for oid in lists.expand(Need("", "", oids)) if not Path(content.cache.oid_to_path(oid)).is_file()]
    remote = content.remote() if missing else None
    if remote is None:
        return not missing
    try:
        return not set(missing) - set(remote.oids_exist(missing))
    except Exception as error:  # whatever the remote's library raises
        raise TrackingError(f"DVC remote: {redacted(one_line(str(error)))}; try again when it answers") from error


def _registry(
    session: Session,
    refs: frozenset[str],
    order: GcOptions,
    notes: list[str],
    marked: list[Standing],
    has_weights: Callable[[Version], bool],
    *,
    yes: bool,
) -> Registry | None:
    """Needs of the registry; None, and a note, if it cannot be queried. With ``yes`` marks versions
    that are given up, and adds them to ``marked``.
    """
    database = sqlite_path(tracking_uri(session.root))
    if database is not None and not database.exists():
        return Registry((), ())
    from mlflow.exceptions import MlflowException

    young_ms = (time.time() - order.keep_s) * 1000
    own = own_models(session.params)
    try:
        client = session.client
        found = registry(client, own, refs, young_ms)
        if not yes:
            return found
        for one in found.versions:
            if order.versions and one.why is None and one.version.freed is None:
                _mark(client, one, _sentence(one))
                marked.append(one)
        # Marked before it is looked at again: who promotes one meanwhile either finds the mark, or
        # is found here.
        again = registry(client, own, refs, young_ms) if marked else found
        ours = {_key(one) for one in marked}
        for one in again.versions:
            if (
                one.why is not None
                and one.version.freed is not None
                and (_key(one) in ours or has_weights(one.version))
            ):
                _mark(client, one, None)
    except (TrackingError, MlflowException) as error:
        fault = (
            f"the registry or its ledger cannot be read, so who needs content cannot be told: {redacted(str(error))}"
        )
        if order.remote or order.versions:
            raise TrackingError(f"{fault}; nothing was freed") from error
        notes.append(one_line(fault))
        return None
    return Registry(tuple(_unmarked(one) if _key(one) in ours else one for one in again.versions), again.needs)


def _key(one: Standing) -> tuple[str, int]:
    return one.version.model, one.version.number


def _unmarked(one: Standing) -> Standing:
    """The version as it was before this call marked it."""
    tags = {name: value for name, value in one.version.tags.items() if name != FREED}
    return Standing(replace(one.version, tags=tags), one.why)


def _unmark(session: Session, marked: Sequence[Standing]) -> None:
    """Remove the marks, since nothing was freed."""
    if marked:
        for one in marked:
            _mark(session.client, one, None)


def _sentence(one: Standing) -> str:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    commit = one.version.lock_commit or one.version.git_commit
    again = f"; commit {commit[:12]} can make them again" if commit else ""
    return f"given up on {day} by vidbridge gc, since no alias, ledger, branch or tag needed them{again}"


def _mark(client: Any, one: Standing, sentence: str | None) -> None:
    model, number = one.version.model, str(one.version.number)
    if sentence is None:
        client.delete_model_version_tag(model, number, FREED)
    else:
        retry_on_conflict(lambda: client.set_model_version_tag(model, number, FREED, sentence))


def _version_rows(found: Findings, known: Registry, order: GcOptions, intact: Sequence[Standing]) -> None:
    kept: dict[str, int] = {}
    for one in known.versions:
        if one.why is not None:
            kept[one.why] = kept.get(one.why, 0) + 1
        elif one.version.freed is not None:
            kept["given up before; its lineage is kept"] = kept.get("given up before; its lineage is kept", 0) + 1
        elif not order.versions:
            kept["nobody needs it; --versions gives its weights up"] = (
                kept.get("nobody needs it; --versions gives its weights up", 0) + 1
            )
    if intact:
        kept["nobody needs it, and a copy is left all the same"] = len(intact)
    for why, count in kept.items():
        found.rows.append(Row("versions", "weights of versions", count, 0, False, why))
    if found.versions:
        names = ", ".join(f"{one.version.model} {one.version.number}" for one in found.versions[:6])
        more = f" and {len(found.versions) - 6} more" if len(found.versions) > 6 else ""
        found.rows.append(
            Row(
                "versions",
                f"weights of {names}{more}",
                len(found.versions),
                0,
                True,
                f"{NOBODY}; tags and lineage stay",
            )
        )


def _place_rows(found: Findings, place: Place, verdicts: Verdicts, where: str) -> None:
    sizes = {one.oid: one.size for one in place.held}
    by_why: dict[str, list[str]] = {}
    for oid, why in verdicts.kept.items():
        by_why.setdefault(why, []).append(oid)
    for why, oids in by_why.items():
        found.rows.append(Row(place.kind, where, len(oids), sum(sizes[oid] for oid in oids), False, why))
    if verdicts.free:
        found.rows.append(Row(place.kind, where, len(verdicts.free), bytes_of(verdicts.free), True, NOBODY))
        found.places.append((place, verdicts.free))


def _copies(content: ContentStore, judge: Judge, cache: Place, notes: list[str]) -> frozenset[str] | None:
    """Objects of registered versions that the remote has, so that the cache need not."""
    candidates = sorted({one.oid for one in cache.held if one.oid in judge.registered and one.oid not in judge.why})
    remote = content.remote()
    if remote is None or not candidates:
        return None
    try:
        return frozenset(remote.oids_exist(candidates))
    except Exception as error:  # whatever the remote's library raises
        notes.append(
            f"the DVC remote does not answer ({redacted(one_line(str(error)))}): copies of registered versions stay in"
            " the cache"
        )
        return None


def _entry_row(
    found: Findings, content: ContentStore, cache: Place, verdicts: Verdicts, elsewhere: frozenset[str] | None
) -> None:
    if cache.shared:
        return
    found.entries = spent_entries(content, frozenset(verdicts.kept), elsewhere)
    if found.entries:
        size = sum(path.stat().st_size for path in found.entries)
        found.rows.append(
            Row(
                "run cache",
                str(content.repo.stage_cache.cache_dir),
                len(found.entries),
                size,
                True,
                "its outs are gone",
            )
        )


def _leftover_rows(found: Findings, root: Path, left: Sequence[Leftover], *, pinned_known: bool) -> None:
    groups: dict[tuple[str, str | None], list[Path]] = {}
    for one in left:
        why = one.why
        if why is None and one.kind in ("loaded", "servable") and not pinned_known:
            why = "the registry cannot be read"
        groups.setdefault((one.kind, why), []).append(one.path)
    for (kind, why), paths in groups.items():
        where = _shown_path(root, paths[0].parent if kind != "clones" else paths[0])
        count, size = _measure(paths, free=why is None)
        found.rows.append(Row(kind, f"{len(paths)} in {where}", count, size, why is None, why or NOBODY))
        if why is None:
            (found.scratch if kind == "scratch" else found.paths).extend(paths)


def _shown_path(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _measure(paths: Sequence[Path], *, free: bool) -> tuple[int, int]:
    """Files and bytes; of what is freed only those that no other link keeps."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    count = size = 0
    for file in files:
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        if file.is_file() and not file.is_symlink():
            count += 1
            size += status.st_size if not free or status.st_nlink == 1 else 0
    return count, size


def _free(found: Findings) -> None:
    """Remove what is free: the remote first, since the cache's lists tell whose its objects are.
    Versions were marked when they were examined.
    """
    for place, held in found.places:
        if vanished := remove(place, held):
            found.notes.append(f"{place.kind}: {vanished} objects had vanished already")
        if place.kind == "remote":
            forget_index(place.odb)
    odb, entries = found.far_entries
    remove_files(odb, entries)
    for path in found.entries:
        path.unlink(missing_ok=True)
    for path in found.paths:
        _remove(path)
    for path in found.scratch:
        if not lease.delete(path, "gc"):
            found.notes.append(f"{path}: is in use again; left as it is")


def _remove(path: Path) -> None:
    while path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue  # somebody else removes it too
    path.unlink(missing_ok=True)


def _show(found: Findings, order: GcOptions, *, yes: bool) -> None:
    out = show.console()
    table = Table(box=None, pad_edge=False)
    for name in ("kind", "what", "objects", "MB", "", "why"):
        table.add_column(name, justify="right" if name in ("objects", "MB") else "left", overflow="fold")
    word = "freed" if yes else "free"
    for row in sorted(found.rows, key=lambda row: row.free):
        state = Text(word, "yellow") if row.free else Text("kept", "green")
        table.add_row(
            row.kind, one_line(row.what), f"{row.objects:,}", f"{row.bytes / 1e6:,.1f}", state, one_line(row.why)
        )
    out.print(table)
    for note in found.notes:
        out.print(Text(f"note: {one_line(note)}", style="yellow"))
    total = f"{found.freed_bytes / 1e6:,.1f} MB"
    if not any(row.free for row in found.rows):
        out.print("nothing to free")
    elif yes:
        out.print(f"{total} freed")
    else:
        flags = "".join(
            f" {flag}" for flag, given in (("--remote", order.remote), ("--versions", order.versions)) if given
        )
        flags += f" --keep-days {order.keep_days:g}" if order.keep_days != KEEP_DAYS else ""
        flags += "".join(f" --also {one_line(str(path))}" for path in order.also)
        out.print(f"nothing was changed. {total} come back with: vidbridge gc{flags} --yes")
    out.print("not looked at: MLflow's runs, metrics and pages, the videos themselves, git's history")
