"""Moves of the champion that the ledger holds: followed, completed or abandoned."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stages.params import GateParams
from stages.tracking.registry.ledger import VERDICT, Entry, abandon, last_move, mark_done, may_publish, read_ledger
from stages.tracking.registry.production import publish, set_tags, tags_of
from stages.tracking.registry.removals import REMOVED
from stages.tracking.registry.versions import CHAMPION, Version, all_versions, find_version
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import retry_on_conflict

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def complete_pending_move(client: MlflowClient, gate: GateParams) -> Entry | None:
    """Complete the last standing move if it is unfinished: tags, alias, production copy. Returns
    that move.

    A move that is not proven does not stand and is not completed. Each step may be repeated. The
    ledger is read again after the alias is written, because a slow process may write the alias of a
    move that another has followed. A move whose copy goes to another model than this project's
    ``gate.production`` is left unfinished; a project that uses that model makes the copy. A move
    whose version can no longer be champion is abandoned with a line on standard error, and the move
    before it is followed again.
    """
    wrote: int | None = None
    whole = again = False
    while True:
        last = last_move(read_ledger(client, gate.registered_model, gate.ledger))
        if last is None or last.number == wrote or (last.done and wrote is None and not again):
            break
        if (why := _unfit(client, gate.registered_model, last)) is not None:
            if last.done:
                break  # It was champion once; its later fate does not matter for completing a move.
            if abandon(client, gate.registered_model, last):
                print(
                    f"gate: {last.decided.action} (entry {last.number} of {gate.ledger}) is abandoned: {why}",
                    file=sys.stderr,
                )
            again = True
            continue
        whole = _follow(client, gate, last)
        wrote = last.number
    if last is not None and wrote is not None and whole:
        mark_done(client, gate.registered_model, last)
    return last


def _follow(client: MlflowClient, gate: GateParams, entry: Entry) -> bool:
    """Carry out a move; each step may be repeated: tags on the version, the alias, the copy.

    Returns False if the copy is left to the project that owns the production model.
    """
    decided, model = entry.decided, gate.registered_model
    version = find_version(client, model, decided.version)
    tags = tags_of(decided) | ({VERDICT: entry.verdict} if decided.action == "promote" else {})
    set_tags(client, version.model, version.number, tags)
    if decided.action == "rollback" and decided.previous is not None:
        left = {TAG + "rolled_back_by": decided.author, TAG + "rolled_back_because": decided.reason}
        set_tags(client, model, decided.previous, left)
    retry_on_conflict(lambda: client.set_registered_model_alias(model, CHAMPION, str(version.number)))
    if decided.production is None:
        return True
    if decided.production != gate.production:
        return False
    # An author who may not change the production model must not change it through us.
    if may_publish(client, entry):
        publish(client, decided.production, version, tags)
    return True


def _unfit(client: MlflowClient, model: str, entry: Entry) -> str | None:
    """Return why a move can no longer be completed: its version was deleted or may not become
    champion. None if it can."""
    version = version_or_none(client, model, entry.decided.version)
    if version is None:
        return f"version {entry.decided.version} was deleted"
    if CHAMPION in version.aliases:
        return None  # The move got this far already.
    if version.freed is not None:
        return f"version {version.number} no longer has weights: {version.freed}"
    if version.tags.get(REMOVED) is not None:
        return f"version {version.number} learned from a video that was removed on request"
    return None


def version_or_none(client: MlflowClient, model: str, number: int) -> Version | None:
    """Return the version of this number; None if it was deleted."""
    return next((version for version in all_versions(client, model) if version.number == number), None)


def present_champion(client: MlflowClient, model: str) -> Version | None:
    """Return the version that has the alias ``champion``; None if none has it."""
    return next((version for version in all_versions(client, model) if CHAMPION in version.aliases), None)
