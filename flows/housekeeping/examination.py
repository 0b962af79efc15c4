"""Examine cache, remote, registry and state of a project: who needs what, and what is free."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flows.errors import FlowError, UsageError
from flows.housekeeping.findings import Findings, Row, leftover_rows, place_rows, version_rows
from flows.housekeeping.gc_options import GcOptions
from flows.housekeeping.given_up import intact_versions, read_registry, unmark, verify_versions, weights_exist
from flows.housekeeping.holdings import Judge, Place, Verdicts, inventory, own_oids, spent_elsewhere, spent_entries
from flows.housekeeping.leftovers import leftovers
from flows.housekeeping.needs import ALIASES, Lists, Need
from flows.housekeeping.project_needs import clones, history_oids, origin_needs, project_needs
from flows.housekeeping.registry_needs import Standing, own_models, registry
from flows.repro.registered import other_store
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.uri import TrackingError, display_uri, sqlite_path, tracking_uri
from stages.tracking.runs.store import open_client
from stages.tracking.session import Session


def examine(session: Session, order: GcOptions, marked: list[Standing], *, yes: bool) -> Findings:
    """Examine everything that could be freed. Changes nothing, except that with ``yes`` versions
    that are given up are marked, and added to ``marked``.

    Raises:
        UsageError: ``--remote`` or ``--versions`` do not fit this project.
        FlowError, TrackingError: who needs what cannot be told; nothing was freed.
    """
    root, params, content = session.root, session.params, session.content
    notes: list[str] = []
    if other := other_store(root):
        raise FlowError.from_error(other, remedy=f"{other.remedy}; nothing was freed")
    lists = Lists(content)
    projects = [root, *clones(root)]
    needs = [need for project in (*projects, *order.also) for need in project_needs(project)]
    needs += [need for other in order.also for need in _others_needs(root, other)]
    alone = not order.also and Path(content.cache.path).resolve().is_relative_to(root.resolve())
    cache = inventory("cache", content.cache, shared=not alone)
    if order.remote:
        remote_odb = content.remote()
        if remote_odb is None:
            raise UsageError("--remote", "this project has no DVC remote", "add one: dvc remote add -d NAME URL")
        remote = inventory("remote", remote_odb, shared=True)
    elif order.versions and content.remote_name():
        raise UsageError(
            "--versions",
            "this project has a DVC remote, where copies of those weights would be left",
            "add --remote: vidbridge gc --remote --versions",
        )
    if order.remote or order.versions or cache.shared:
        needs += origin_needs(root)
    refs = frozenset(oid for need in needs for oid in need.oids)
    needed_by_registry = read_registry(
        session, refs, order, notes, marked, partial(weights_exist, content, lists), yes=yes
    )
    if needed_by_registry is not None and (order.remote or order.versions or cache.shared):
        verify_versions(session, needed_by_registry)
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
            place_rows(found, remote, verdicts, where)
            found.far_entries = spent_elsewhere(content, frozenset(one.oid for one in verdicts.free))
            if count := len(found.far_entries[1]):
                found.rows.append(Row("run cache", where, count, 0, True, "its outs are freed"))
        elif content.remote_name() and judge.registered:
            elsewhere = _copies(content, judge, cache, notes)
        verdicts = judge.judge(cache, elsewhere)
        place_rows(found, cache, verdicts, str(cache.odb.path))
        if intact := intact_versions(found.versions, lists, frozenset(verdicts.kept) | (elsewhere or frozenset())):
            found.versions = [one for one in found.versions if one not in intact]
            if yes:
                unmark(session, intact)
        version_rows(found, needed_by_registry, order, intact)
        _entry_row(found, content, cache, verdicts, elsewhere if order.remote else None)
    removed = frozenset(video.sha256 for video in params.ingest.exclude if video.sha256)
    leftover_rows(
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
    if fault := other_store(other):
        raise FlowError.from_error(fault, within=f"--also {other}", remedy=f"{fault.remedy}; nothing was freed")
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
            f"--also {other}", f"what it needs cannot be told: {redacted(one_line(str(error)))}", "nothing was freed"
        ) from error


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
