"""The production model: a registered model with a copy of every champion, for users who may read
nothing else.

MLflow's `copy_model_version` would give the copy the source ``models:/NAME/VERSION``, which becomes
unreadable once that version is deleted, and which our own code cannot read. A copy made here has
the same ``dvc://`` source and tags, and is independent; no weights are copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from stages.tracking.registry.ledger import PROMOTED_AT, Decided, ensure_model, read_ledger
from stages.tracking.registry.versions import CHAMPION, Version, all_versions
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import retry_on_conflict

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: Tag that names the original of a copy: ``NAME/VERSION``.
COPY_OF = TAG + "copy_of"


def publish(client: MlflowClient, production: str, version: Version, tags: Mapping[str, str]) -> int:
    """Make ``version`` the champion of ``production``, create the copy if there is none, and set
    ``tags`` on it. Returns its number."""
    number = _copy(client, production, version)
    set_tags(client, production, number, tags)
    retry_on_conflict(lambda: client.set_registered_model_alias(production, CHAMPION, str(number)))
    return number


def set_tags(client: MlflowClient, model: str, number: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version that another process may be setting too."""
    for name, value in tags.items():
        retry_on_conflict(partial(client.set_model_version_tag, model, str(number), name, value))


def _copy(client: MlflowClient, production: str, version: Version) -> int:
    if existing := copies(client, production, version):
        return existing[0]
    ensure_model(client, production, describe_production(version.model))
    created = client.create_model_version(
        production,
        version.source,
        run_id=version.run_id,
        tags={**version.tags, COPY_OF: _name(version)},
        await_creation_for=0,
    )
    # Another machine may be completing the same promotion: the older copy stays, and only our own
    # is removed.
    first, *_ = copies(client, production, version)
    if first != int(created.version):
        client.delete_model_version(production, created.version)
    return first


def copies(client: MlflowClient, production: str, version: Version) -> list[int]:
    """List the versions of ``production`` that are copies of ``version``, oldest first: both the
    name and the content must match."""
    return [
        copy.number
        for copy in all_versions(client, production)
        if copy.tags.get(COPY_OF) == _name(version) and copy.source == version.source
    ]


def describe_production(model: str) -> str:
    return f"Copies of the champions of {model}."


def production_fault(client: MlflowClient, model: str, production: str, ledger: str) -> str | None:
    """Return why the champion of ``production`` is not the copy of the gate's champion, as a
    sentence with the remedy; None if it is."""
    last = next((entry for entry in reversed(read_ledger(client, model, ledger)) if entry.standing), None)
    if last is None or last.decided.production != production or not last.done:
        # No copy was requested, or the move is unfinished: the alias of the model reports that.
        return None
    copy = next((version for version in all_versions(client, production) if CHAMPION in version.aliases), None)
    if copy is not None and copy.tags.get(COPY_OF) == f"{model}/{last.decided.version}" and copy.source == last.source:
        return None
    state = f"version {copy.number}, which is not" if copy else "gone, and was"
    return (
        f"{production}: {CHAMPION!r} is {state} the copy of version {last.decided.version} that the gate put there; set"
        " the alias to that copy (vidbridge explain champion names it), or delete the model and promote again"
    )


def _name(version: Version) -> str:
    return f"{version.model}/{version.number}"


def tags_of(decided: Decided) -> dict[str, str]:
    """Tags that record who made a version champion, when and why: on the version, and on its
    copy."""
    tags = {
        TAG + "promoted_by": decided.author,
        PROMOTED_AT: str(decided.at_ms),
        TAG + "reason": decided.reason,
        TAG + "promotion": decided.action,
    }
    return tags if decided.previous is None else tags | {TAG + "previous_champion": str(decided.previous)}
