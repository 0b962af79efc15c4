"""The gate's ledger: every promotion, refusal and rollback, in one order that all machines agree on.

An entry is a version of the registered model ``gate.ledger``. MLflow gives out version numbers under a unique key and writes a version
with its tags in one transaction, so entries have one order, and whoever reads entry n reads the same entries before it. A move
(promotion or rollback) names the move it was decided upon, ``after``. It *stands* if that was still the last standing one when it
was written; else somebody was faster, and it moves nothing. Whether an entry stands depends on earlier entries only, so every reader,
then and later, comes to the same answer: of two moves decided upon the same champion, one stands. No clock, lease or lock is involved.

What is guaranteed, on one MLflow server or database however many machines use it:

- Writing a standing entry is the commit point. Alias, tags and the production copy follow from it. Where that was interrupted, the entry
  is not ``done``, and the next `vidbridge promote` or `rollback` completes it; `vidbridge history` shows it as unfinished.
- Whoever has written the alias looks at the ledger again and writes it again if another move has followed meanwhile, so the alias
  ends on the last standing move. One window is left: a process that is killed between the two after it was overtaken leaves the
  alias behind; then `rollback` says that the alias is not where the ledger has it, and `promote VERSION` mends it.

Not guaranteed: an alias that is moved by hand asks nobody. The gate then compares with the version it finds there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError

from stages.tracking.runs import TAG
from stages.tracking.store import insist
from stages.tracking.uri import TrackingError
from stages.tracking.versions import CHAMPION, Version, all_versions

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ENTRY, VERDICT, DONE = TAG + "entry", TAG + "verdict", TAG + "done"
#: MLflow tries three times to get a number; when as many others are faster each time it gives up.
NUMBER_TRIES = 20
#: What MLflow's tables hold of a description.
DESCRIPTION_LENGTH = 5000

Action = Literal["promote", "rollback", "refuse"]


@dataclass(frozen=True)
class Decided:
    """What was decided about ``version``, upon move ``after`` (0: none yet), when ``previous`` was champion.

    ``reasons`` are those of a refusal; ``production`` is the model that is to get a copy.
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
    #: A connection that breaks may make MLflow's client write twice; what has the same name is the same decision.
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Entry:
    """A decision in its place. ``standing``: it moved the champion; ``done``: alias, tags and copy have followed."""

    number: int
    decided: Decided
    verdict: str
    standing: bool
    done: bool

    @property
    def moves(self) -> bool:
        return self.decided.action != "refuse"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def read_ledger(client: MlflowClient, ledger: str) -> list[Entry]:
    """Every entry, oldest first; empty where nothing was decided yet.

    Raises:
        TrackingError: somebody else has made a version of that model.
    """
    entries: dict[str, Entry] = {}
    last = 0
    for version in all_versions(client, ledger):
        entry = _entry(version)
        if entry.decided.name in entries:
            continue
        if entry.moves and entry.decided.after == last:
            entry, last = replace(entry, standing=True), entry.number
        entries[entry.decided.name] = entry
    return list(entries.values())


def last_move(entries: Sequence[Entry]) -> Entry | None:
    """The move that says who is champion."""
    return next((entry for entry in reversed(entries) if entry.standing), None)


def alias_fault(client: MlflowClient, model: str, ledger: str) -> str | None:
    """Why the alias ``champion`` of ``model`` is not where the gate put it last, as a sentence with the remedy; None: it is there.

    It compares the alias with the newest standing move, so it tells of aliases that were moved by hand (MLflow's page, its API, a
    script). Who writes the ledger as well, which the same rights allow, is not found out.

    Raises:
        TrackingError: somebody else has made a version of the ledger's model.
    """
    # The ledger before the alias, as the gate reads them.
    last = last_move(read_ledger(client, ledger))
    there = next((version.number for version in all_versions(client, model) if CHAMPION in version.aliases), None)
    if there == (last.decided.version if last else None):
        return None
    moved = f"{model}: the alias {CHAMPION!r} is on version {there}" if there else f"{model}: the alias {CHAMPION!r} is gone"
    if last is None:
        return f"{moved}, and the gate did not put it there: it has promoted none; vidbridge promote {there} puts it to the gate"
    put = f"its last decision ({last.decided.action}, entry {last.number} of {ledger}) is version {last.decided.version}"
    if not last.done:
        return f"{moved}, and {put}, which is not finished: the next vidbridge promote or rollback completes it"
    return f"{moved}, and the gate did not put it there: {put}; vidbridge history says more, vidbridge promote VERSION mends it"


def write_entry(client: MlflowClient, ledger: str, about: Version, decided: Decided, verdict: str) -> Entry:
    """Write a decision and read how it stands. ``about``: the version it is about; the entry's source is that one's."""
    from mlflow.exceptions import MlflowException

    ensure_model(client, ledger, f"Decisions of the gate about {about.model}, a version each. Written by vidbridge only.")
    tags = {ENTRY: json.dumps(asdict(decided)), VERDICT: verdict}
    shown = verdict if len(verdict) <= DESCRIPTION_LENGTH else verdict[: DESCRIPTION_LENGTH - 1] + "…"
    for left in reversed(range(NUMBER_TRIES)):
        try:
            client.create_model_version(ledger, about.source, tags=tags, description=shown, await_creation_for=0)
            break
        except MlflowException as error:
            # What it says when others were faster three times; nothing was written then.
            if not left or "Giving up after" not in str(error):
                raise
    return next(entry for entry in read_ledger(client, ledger) if entry.decided.name == decided.name)


def mark_done(client: MlflowClient, ledger: str, entry: Entry) -> None:
    insist(lambda: client.set_model_version_tag(ledger, str(entry.number), DONE, "true"))


def champions(entries: Sequence[Entry]) -> list[int]:
    """The versions one could go back to, the present champion last."""
    stack: list[int] = []
    for entry in entries:
        if not entry.standing:
            continue
        if entry.decided.action == "promote":
            stack.append(entry.decided.version)
        elif stack:
            stack.pop()
    return stack


def _entry(version: Version) -> Entry:
    try:
        # Strict but for the tuple, which JSON has as a list: figures that are text would fail later, where they are used.
        decided = TypeAdapter(Decided).validate_json(version.tags[ENTRY])
    except (KeyError, ValidationError) as error:
        first = (
            error.errors(include_url=False, include_input=False)[0]["msg"] if isinstance(error, ValidationError) else "not there"
        )
        raise TrackingError(
            f"{version.model} version {version.number}: tag {ENTRY}: no decision of the gate ({first}); delete that version, this model is"
            " the gate's own"
        ) from error
    return Entry(version.number, decided, version.tags.get(VERDICT, ""), standing=False, done=version.tags.get(DONE) == "true")


def ensure_model(client: MlflowClient, model: str, description: str) -> None:
    """Create a registered model, unless there is one of that name."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
