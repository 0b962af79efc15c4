"""Checks of the project: its repository, its champion, clones of scheduled runs, and results of an
earlier version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.errors import FlowError
from flows.processes.environment import state
from flows.project import new_project
from flows.repro import registered
from stages.errors import VidbridgeError
from stages.tracking.lineage.git import git, head, is_repository
from stages.tracking.lineage.uri import TrackingError, display_uri, is_server, sqlite_path, tracking_uri
from stages.tracking.session import Session

if TYPE_CHECKING:
    from stages.tools.upgrade import Concern


if TYPE_CHECKING:
    from stages.tools.upgrade import Concern

from flows.project.diagnosis.finding import Finding, output_of


def check_git(root: Path) -> Finding:
    try:
        if not is_repository(root):
            return Finding(
                "git", "missing", f"{root} is not a repository", "git init && git add -A && git commit -m start"
            )
        if head(root) is None:
            return Finding("git", "missing", "no commit yet", "git add -A && git commit -m start")
        name, mail = (output_of("git", "-C", str(root), "config", key) for key in ("user.name", "user.email"))
        commit = git(root, "rev-parse", "--short", "HEAD")
    except (TrackingError, FlowError) as error:
        return Finding("git", "missing", f"{error.field}: {error.problem}", error.remedy or "mend what git names")
    if not (name and mail):
        todo = "git config user.name … && git config user.email …; until then runs are committed as vidbridge@localhost"
        return Finding("git", "warn", f"commit {commit}, no identity", todo)
    return Finding("git", "ok", f"commit {commit}, {name} <{mail}>")


def check_clones(root: Path) -> Finding:
    """Clones of scheduled runs that no deployment of this version uses."""
    from flows.repro.clone import leftovers

    left = leftovers(state(root) / "scheduled")
    if not left:
        return Finding("scheduled runs", "ok", "no clone of an earlier version is left")
    names = " ".join(map(str, left))
    return Finding(
        "scheduled runs", "warn", f"clones of an earlier version, which nothing uses: {names}", f"rm -r {names}"
    )


def check_champion(session: Session) -> Finding:
    """Check whether the alias is where the gate put it."""
    root = session.root
    if other := registered.other_store(root):
        return Finding("champion", "warn", f"{other.field}: {other.problem}", other.remedy)
    database = sqlite_path(tracking_uri(root))
    if database is not None and not database.exists():
        return Finding("champion", "ok", _nothing_in(root))
    # Two seconds of imports, where there is a registry to ask; `_upgrade` needs them too.
    from mlflow.exceptions import MlflowException

    from stages.tracking.registry.ledger import alias_fault
    from stages.tracking.registry.removals import objection
    from stages.tracking.registry.versions import CHAMPION, all_versions

    try:
        gate, client = session.params.gate, session.client
        fault = alias_fault(client, gate.registered_model, gate.ledger)
        versions = all_versions(client, gate.registered_model)
        champion = next((found for found in versions if CHAMPION in found.aliases), None)
        saw = None if fault or champion is None else objection(session, champion)
    except (VidbridgeError, MlflowException, OSError):
        return Finding("champion", "warn", "the store could not be asked", "vidbridge explain champion says why")
    if fault:
        said, _, todo = fault.rpartition("; ")
        return Finding("champion", "warn", said, todo)
    if saw:
        return Finding("champion", "warn", saw, "vidbridge run, then vidbridge promote")
    if not versions:
        return Finding("champion", "ok", _nothing_in(root))
    return Finding("champion", "ok", "the alias is where the gate put it")


def _nothing_in(root: Path) -> str:
    """Sentence with the store's name: it may be another one than the project registers in."""
    return f"nothing is registered yet in {display_uri(tracking_uri(root))}"


def check_upgrade(session: Session) -> list[Finding]:
    """List each result of 0.1 that today's rules would make differently, and a pipeline of another
    version.
    """
    from stages.tools import upgrade

    try:
        uri = tracking_uri(session.root)
        database = sqlite_path(uri)
        there = is_server(uri) or database is None or database.is_file()
        concerns = upgrade.concerns_of_project(session.root)
        concerns += upgrade.concerns_of_registry(session) if there else []
        behind = new_project.is_behind(session.root)
    except (VidbridgeError, OSError) as error:
        return [
            Finding(
                "upgrade", "warn", f"whether results of 0.1 are here cannot be told: {error}", "see the lines above"
            )
        ]
    if behind:
        todo = f"vidbridge init --upgrade {session.root}, then git diff dvc.yaml"
        return [
            Finding("upgrade", "warn", "dvc.yaml is not the one of the installed package", todo),
            *_of_old_results(concerns),
        ]
    return _of_old_results(concerns)


def _of_old_results(concerns: Sequence[Concern]) -> list[Finding]:
    if not concerns:
        return [Finding("upgrade", "ok", "no result of 0.1 in dvc.lock, none as champion or candidate")]
    return [Finding("upgrade", "warn", f"{one.what}: {one.problem}", one.remedy) for one in concerns]
