"""Versions whose weights are given up: marked in the registry before anything is freed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.errors import UsageError
from flows.housekeeping.gc_options import GcOptions
from flows.housekeeping.needs import Lists, Need
from flows.housekeeping.registry_needs import Registry, Standing, oids_of, own_models, registry
from stages.runtime.plain import one_line, redacted
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.uri import TrackingError, display_uri, sqlite_path, tracking_uri
from stages.tracking.registry.versions import Version
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import retry_on_conflict
from stages.tracking.session import Session

FREED = TAG + "freed"


def read_registry(
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
        fault = f"cannot be read, so who needs content cannot be told: {one_line(redacted(str(error)))}"
        if order.remote or order.versions:
            raise TrackingError("registry or ledger", fault, "nothing was freed") from error
        notes.append(f"registry or ledger: {fault}")
        return None
    return Registry(tuple(_unmarked(one) if _key(one) in ours else one for one in again.versions), again.needs)


def verify_versions(session: Session, known: Registry) -> None:
    """Verify that the store knows this project; otherwise it is taken for the wrong one, where
    copies of others are at stake.

    Raises:
        UsageError: it has no version of the project's model.
    """
    model = session.params.gate.registered_model
    if not any(one.version.model == model for one in known.versions):
        raise UsageError(
            "MLFLOW_TRACKING_URI",
            f"{display_uri(tracking_uri(session.root))} holds no version of {model}, so it cannot"
            " tell what a shared cache, the remote or --versions may lose",
            "set it to the store in which this project registers, or register first: vidbridge register",
        )


def intact_versions(versions: Sequence[Standing], lists: Lists, left: frozenset[str]) -> list[Standing]:
    """Versions whose weights are all ``left`` in the cache or the remote: young, of others, or
    shared with what is needed. They are not given up.
    """
    return [one for one in versions if left.issuperset(lists.expand(Need("", "", oids_of(one.version))))]


def weights_exist(content: ContentStore, lists: Lists, version: Version) -> bool:
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
        raise TrackingError("DVC remote", f"{redacted(one_line(str(error)))}", "try again when it answers") from error


def unmark(session: Session, marked: Sequence[Standing]) -> None:
    """Remove the marks, since nothing was freed."""
    if marked:
        for one in marked:
            _mark(session.client, one, None)


def _key(one: Standing) -> tuple[str, int]:
    return one.version.model, one.version.number


def _unmarked(one: Standing) -> Standing:
    """The version as it was before this call marked it."""
    tags = {name: value for name, value in one.version.tags.items() if name != FREED}
    return Standing(replace(one.version, tags=tags), one.why)


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
