"""Explain the origin of a version: commit, data, parameters, scores, ancestors down to the base,
and its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.tracking.lineage.commits import holding_commit
from stages.tracking.lineage.uri import display_uri, is_server, tracking_uri
from stages.tracking.registry.ledger import alias_fault, last_move, read_ledger
from stages.tracking.registry.named import find_named, ledger_of, moved_fault, production_of
from stages.tracking.registry.production import copies, production_fault
from stages.tracking.registry.removals import objection
from stages.tracking.registry.score_cards import ScoreCard
from stages.tracking.registry.versions import CHAMPION, Version, all_versions
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class Ancestor:
    """One policy upstream. ``version``: the number of its final checkpoint, where it is
    registered."""

    stage: str
    out: str
    version: int | None


@dataclass(frozen=True)
class Explanation:
    """The full description of a version.

    ``ancestors``: nearest first, the base last. ``run``: a link, or the command that displays it.
    ``copies``: its names in the production model. ``alias_fault``: why it is champion although the
    gate did not promote it, or why it is not champion although the gate did.
    """

    version: Version
    commit: str | None
    git_commit: str | None
    data: Mapping[str, str]
    params: Mapping[str, Any]
    params_digest: str | None
    scores: ScoreCard | None
    ancestors: tuple[Ancestor, ...]
    source: str
    run: str | None
    copies: tuple[str, ...]
    alias_fault: str | None
    #: Why the gate refuses it: it learned from a video that was removed on request, or its data are
    #: unknown.
    objection: str | None


def explain(session: Session, which: str | int) -> Explanation:
    """Explain a version: a number or an alias of the project's registered model, or
    ``models:/NAME@ALIAS``, ``models:/NAME/3``.

    Outside a project git is not read, and the commit is the one that `register` found.

    Raises:
        TrackingError: the store does not answer, or there is no such version.
    """
    client, project = session.client, session.project
    version = find_named(session, str(which))
    production = production_of(session, version.model)
    return Explanation(
        version=version,
        commit=version.lock_commit if project is None else holding_commit(project, version.stage, version.out),
        git_commit=version.git_commit,
        data=version.data,
        params=version.params,
        params_digest=version.params_digest,
        scores=version.scores,
        ancestors=tuple(_ancestors(version, all_versions(client, version.model))),
        source=version.source,
        run=_run(session, version),
        copies=tuple(f"{production} version {number}" for number in copies(client, production, version))
        if production
        else (),
        alias_fault=_alias_fault(client, production, version),
        objection=None if project is None else objection(session, version),
    )


def _alias_fault(client: MlflowClient, production: str | None, version: Version) -> str | None:
    ledger = ledger_of(version.model)
    if CHAMPION in version.aliases:
        moved = moved_fault(client, version)
        if moved is None and production is not None:
            return production_fault(client, version.model, production, ledger)
        return moved
    last = last_move(read_ledger(client, version.model, ledger))
    return alias_fault(client, version.model, ledger) if last and last.decided.version == version.number else None


def _ancestors(version: Version, versions: list[Version]) -> list[Ancestor]:
    chain: list[Ancestor] = []
    visited: set[int] = set()
    current: Version | None = version
    # A tag may name its own version: a circle has no base.
    while current is not None and current.number not in visited:
        visited.add(current.number)
        # Data are not ancestors: a parent that produced a model is.
        parent = next((producer for dep, producer in current.parents.items() if dep.startswith("models/")), None)
        if parent is None:
            break
        candidates = [item for item in versions if item.stage == parent["stage"] and item.out == parent["out"]]
        current = next((item for item in candidates if item.final), None)
        chain.append(Ancestor(parent["stage"], parent["out"], current.number if current else None))
    return chain


def _run(session: Session, version: Version) -> str | None:
    if version.run_id is None:
        return None
    uri = tracking_uri(session.root)
    from mlflow.exceptions import MlflowException

    try:
        experiment = session.client.get_run(version.run_id).info.experiment_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return f"run {version.run_id}, which was removed from {display_uri(uri)}"
    page = f"/#/experiments/{experiment}/runs/{version.run_id}"
    if not is_server(uri):
        # Not MLflow's own `mlflow ui`, which requires no key.
        return f"{display_uri(uri)}; vidbridge ui shows it at {page}"
    return f"{display_uri(uri).rstrip('/')}{page}"
