"""The gate's ledger: every promotion, refusal and rollback, in one order that all machines agree
on.

An entry is a version of the registered model ``gate.ledger``. MLflow assigns version numbers under
a unique key and writes a version with its tags in one transaction, so entries have one order, and
every reader of entry n reads the same entries before it. A move (promotion or rollback) names the
move it was decided upon, ``after``. It *stands* if that was still the last standing one when it was
written; otherwise another process was faster, and it moves nothing. Whether an entry stands depends
on earlier entries only, so every reader, then and later, reaches the same result: of two moves
decided upon the same champion, one stands. No clock, lease or lock is involved.

The ledger is a model of its own, and an account may be allowed to write it but not to move the
champion: any account may create a model, and then owns it. So an entry moves nothing unless it is
*proven*: before it is written, its author writes a tag on the model whose champion it is about,
:data:`PROOF` and the entry's name, with the digest of the whole entry. Only accounts that may
change that model can; a reader who copies a name cannot change the signed content. The same tag
records that a move is done. Entries of 0.1 have no such tag: those that were done, and whose
version has the tags that only a promotion leaves on it, stand as they did, up to the first proven
one.

Guarantees, on one MLflow server or database with any number of machines:

- Writing a standing entry is the commit point. Alias, tags and the production copy follow from it.
  If that was interrupted, the entry is not ``done``, and the next `vidbridge promote` or `rollback`
  completes it; `vidbridge history` lists it as unfinished.
- A process that has written the alias reads the ledger again, and writes the alias again if another
  move has followed meanwhile, so the alias ends on the last standing move. One window is left: a
  process that is killed between the two after it was overtaken leaves the alias behind; then
  `rollback` reports that the alias is not where the ledger has it, and `promote VERSION` restores
  it.

Not guaranteed: moving an alias by hand passes no gate. The gate then compares with the version it
finds there. An account that may delete versions of the ledger can make it forget moves; the
champion stays where it is, and is reported as one that the gate did not promote.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError

from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.versions import CHAMPION, Version, all_versions, registered_model
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import retry_on_conflict

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENTRY, VERDICT, DONE = TAG + "entry", TAG + "verdict", TAG + "done"
#: Tag on the registered model whose champion is decided, followed by an entry's name: the entry's
#: digest, and whether the move is done.
PROOF = TAG + "decision."
_IS_DONE = " done"
#: Value of that tag for a move whose version can no longer be champion: the move no longer stands,
#: so the one before it is the last.
_IS_ABANDONED = " abandoned"
#: Tag on a version: when it became champion. Written when a move is carried out, never at
#: registration.
PROMOTED_AT = TAG + "promoted_at_ms"
#: MLflow tries three times to get a number, and gives up if others are faster each time.
NUMBER_TRIES = 20
#: Largest description that MLflow's tables hold.
DESCRIPTION_LENGTH = 5000

Action = Literal["promote", "rollback", "refuse"]


@dataclass(frozen=True)
class Decided:
    """A decision about ``version``, upon move ``after`` (0: none yet), when ``previous`` was
    champion.

    ``reasons``: those of a refusal; ``production``: the model that is to receive a copy.
    """

    at_ms: int
    action: Action
    version: int
    previous: int | None
    after: int
    author: str
    reason: str
    reasons: tuple[str, ...]
    mean: float | None
    production: str | None
    #: A broken connection may make MLflow's client write twice; entries of the same name are one
    #: decision.
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Entry:
    """A decision at its place in the order.

    ``standing``: it moved the champion; ``done``: alias, tags and copy have followed; ``source``:
    content of its version at that time; ``digest``: of the whole entry; ``proven``: its author may
    change the model that it is about (:data:`PROOF`); ``abandoned``: it cannot be completed, and
    does not stand.
    """

    number: int
    decided: Decided
    verdict: str
    source: str
    digest: str
    standing: bool
    done: bool
    proven: bool
    abandoned: bool = False

    @property
    def moves(self) -> bool:
        return self.decided.action != "refuse"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def read_ledger(client: MlflowClient, model: str, ledger: str) -> list[Entry]:
    """Read every entry of the ``ledger`` of ``model``, oldest first; empty before the first
    decision.

    Raises:
        TrackingError: a version of the ledger's model is not an entry of ours.
    """
    versions = all_versions(client, ledger)
    # Read the proofs after the entries: each was written before its entry.
    proofs = _proofs(client, model) if versions else {}
    entries: dict[tuple[str, bool], Entry] = {}
    for version in versions:
        entry = _entry(version, proofs)
        entries.setdefault((entry.decided.name, entry.proven), entry)
    return _standing(list(entries.values()), client, model)


def _standing(entries: list[Entry], client: MlflowClient, model: str) -> list[Entry]:
    """Mark the standing entries. An unproven move moves nothing, unless 0.1 completed it before the
    first proven one."""
    early = next((index for index, entry in enumerate(entries) if entry.proven), len(entries))
    promoted = _promoted(client, model) if any(entry.moves and entry.done for entry in entries[:early]) else {}
    marked, last = [], 0
    for index, entry in enumerate(entries):
        # A deleted version has no tags to check, and cannot be restored by a rollback.
        counts = entry.proven or (index < early and entry.done and promoted.get(entry.decided.version, True))
        if counts and entry.moves and not entry.abandoned and entry.decided.after == last:
            entry, last = replace(entry, standing=True), entry.number
        marked.append(entry)
    return marked


def _proofs(client: MlflowClient, model: str) -> dict[str, str]:
    """Proofs from the tags of ``model``, by entry name."""
    registered = registered_model(client, model)
    tags = registered.tags if registered else {}
    return {name.removeprefix(PROOF): value for name, value in tags.items() if name.startswith(PROOF)}


def _promoted(client: MlflowClient, model: str) -> dict[int, bool]:
    """Map each version to whether it has the tags that only a completed move leaves on it."""
    return {version.number: PROMOTED_AT in version.tags for version in all_versions(client, model)}


def _digest(entry: str, verdict: str, source: str) -> str:
    return hashlib.sha256(json.dumps([entry, verdict, source]).encode()).hexdigest()


def last_move(entries: Sequence[Entry]) -> Entry | None:
    """The move that determines the champion."""
    return next((entry for entry in reversed(entries) if entry.standing), None)


def alias_fault(client: MlflowClient, model: str, ledger: str) -> str | None:
    """Return why the alias ``champion`` of ``model`` is not where the gate last put it, or why that
    version now has other content.

    A sentence with the remedy; None if all is in order. The alias is compared with the newest
    standing move, which detects aliases that were moved by hand (MLflow's page, its API, a script).
    An account that also writes the ledger, which the same rights allow, is not detected.

    Raises:
        TrackingError: a version of the ledger's model is not an entry of ours.
    """
    # Read the ledger before the alias, as the gate does.
    last = last_move(read_ledger(client, model, ledger))
    champion = next((version for version in all_versions(client, model) if CHAMPION in version.aliases), None)
    number = champion.number if champion else None
    if number == (last.decided.version if last else None):
        if champion is None or last is None or champion.source == last.source:
            return None
        return (
            f"{model}: version {number} is not the content that the gate made {CHAMPION!r}: its source was"
            f" {last.source!r:.200} then and is {champion.source!r:.200} now; delete that version, and run vidbridge"
            " register where its dvc.lock is checked out"
        )
    moved = (
        f"{model}: the alias {CHAMPION!r} is on version {number}"
        if number
        else f"{model}: the alias {CHAMPION!r} is gone"
    )
    if last is None:
        return (
            f"{moved}, and the gate did not put it there: it has promoted none; vidbridge promote {number} puts it to"
            " the gate"
        )
    put = (
        f"its last decision ({last.decided.action}, entry {last.number} of {ledger}) is version {last.decided.version}"
    )
    if not last.done:
        return f"{moved}, and {put}, which is not finished: the next vidbridge promote or rollback completes it"
    return (
        f"{moved}, and the gate did not put it there: {put}; see vidbridge history; vidbridge promote VERSION"
        " restores it"
    )


def write_entry(client: MlflowClient, ledger: str, about: Version, decided: Decided, verdict: str) -> Entry:
    """Write a decision and read whether it stands. ``about``: its version, whose source the entry
    records.

    Raises:
        MlflowException: the store does not answer, or this account may not change the model, or may
            not write the ledger.
    """
    from mlflow.exceptions import MlflowException

    tags = {ENTRY: json.dumps(asdict(decided)), VERDICT: verdict}
    proof = _digest(tags[ENTRY], verdict, about.source)
    # Before the ledger is created: an account without this right must not come to own it. A proven
    # move may also be carried out. The copy is made with the rights of the process that completes
    # the move, so its author proves the right to change that model too.
    for model in (about.model, *([decided.production] if decided.production is not None else [])):
        if decided.name not in _proofs(client, model):
            retry_on_conflict(partial(client.set_registered_model_tag, model, PROOF + decided.name, proof))
    ensure_model(client, ledger, describe_ledger(about.model))
    description = verdict if len(verdict) <= DESCRIPTION_LENGTH else verdict[: DESCRIPTION_LENGTH - 1] + "…"
    for left in reversed(range(NUMBER_TRIES)):
        try:
            client.create_model_version(ledger, about.source, tags=tags, description=description, await_creation_for=0)
            break
        except MlflowException as error:
            # MLflow's message if others were faster three times; nothing was written then.
            if not left or "Giving up after" not in str(error):
                raise
    ours = (decided.name, True)
    return next(
        entry for entry in read_ledger(client, about.model, ledger) if (entry.decided.name, entry.proven) == ours
    )


def may_publish(client: MlflowClient, entry: Entry) -> bool:
    """Return whether the author of a move may change the production model that it names: the move
    is signed there as well."""
    production = entry.decided.production
    return production is not None and _proofs(client, production).get(entry.decided.name) == entry.digest


def mark_done(client: MlflowClient, model: str, entry: Entry) -> None:
    """Record on ``model`` that a proven move of its champion is complete; a move that others
    abandoned meanwhile stays so."""
    if _proofs(client, model).get(entry.decided.name) != entry.digest + _IS_ABANDONED:
        retry_on_conflict(
            lambda: client.set_registered_model_tag(model, PROOF + entry.decided.name, entry.digest + _IS_DONE)
        )


def abandon(client: MlflowClient, model: str, entry: Entry) -> bool:
    """Record on ``model`` that a proven move can never be completed, so that no reader counts it as
    standing. Returns False if it is done meanwhile, or is not proven."""
    if not entry.proven or _proofs(client, model).get(entry.decided.name) != entry.digest:
        return False
    retry_on_conflict(
        lambda: client.set_registered_model_tag(model, PROOF + entry.decided.name, entry.digest + _IS_ABANDONED)
    )
    return True


def describe_ledger(model: str) -> str:
    return f"Decisions of the gate about {model}, a version each. Written by vidbridge only."


def champions(entries: Sequence[Entry]) -> list[int]:
    """List the versions a rollback can return to, the present champion last."""
    stack: list[int] = []
    for entry in entries:
        if not entry.standing:
            continue
        if entry.decided.action == "promote":
            stack.append(entry.decided.version)
        elif stack:
            stack.pop()
    return stack


def _entry(version: Version, proofs: Mapping[str, str]) -> Entry:
    try:
        # Strict except for the tuple, which JSON has as a list: numbers as text would fail later,
        # where they are used.
        decided = TypeAdapter(Decided).validate_json(version.tags[ENTRY])
    except (KeyError, ValidationError) as error:
        first = (
            error.errors(include_url=False, include_input=False)[0]["msg"]
            if isinstance(error, ValidationError)
            else "not there"
        )
        raise TrackingError(
            f"{version.model} version {version.number}",
            f"tag {ENTRY}: not a decision of the gate ({first})",
            "delete that version, this model is the gate's own",
        ) from error
    verdict, proof = version.tags.get(VERDICT, ""), proofs.get(decided.name, "")
    digest = _digest(version.tags[ENTRY], verdict, version.source)
    proven = proof.removesuffix(_IS_DONE).removesuffix(_IS_ABANDONED) == digest
    return Entry(
        version.number,
        decided,
        verdict,
        version.source,
        digest,
        standing=False,
        done=proof.endswith(_IS_DONE) if proven else version.tags.get(DONE) == "true",
        proven=proven,
        abandoned=proven and proof.endswith(_IS_ABANDONED),
    )


def ensure_model(client: MlflowClient, model: str, description: str | None = None) -> None:
    """Create a registered model, unless there is one of that name."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
