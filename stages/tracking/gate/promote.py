"""Promotion, refusal and rollback of the champion.

The rules are in :mod:`stages.tracking.gate.rules`; decisions and their order are in
:mod:`stages.tracking.registry.ledger`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.params import GateParams
from stages.tracking.gate.access import author_name, guard
from stages.tracking.gate.judging import Case, judge
from stages.tracking.gate.moves import complete_pending_move, present_champion
from stages.tracking.gate.rules import Decision, counted
from stages.tracking.gate.verdict import rollback_verdict, verdict
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.ledger import VERDICT, Decided, Entry, champions, now_ms, read_ledger, write_entry
from stages.tracking.registry.named import ledger_of, own_model
from stages.tracking.registry.production import set_tags
from stages.tracking.registry.removals import objection
from stages.tracking.registry.rights import prove_rights
from stages.tracking.registry.versions import CANDIDATE, CHAMPION, JUDGING, Version, find_version
from stages.tracking.runs.store import retry_on_conflict
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: Attempts before an error. A decision that another machine overtakes is judged again; losing this
#: many times in a row points to a loop.
ATTEMPTS = 8


@dataclass(frozen=True)
class Promotion:
    """A decision and the versions it is about. ``moved``: the alias was changed. ``verdict``:
    Markdown."""

    candidate: Version
    champion: Version | None
    decision: Decision
    moved: bool
    verdict: str


def promote(
    session: Session,
    version: str | int | None = None,
    *,
    author: str | None = None,
    reason: str = "",
    new_evaluation: bool = False,
) -> Promotion:
    """Judge ``version`` (default: the alias ``candidate``) and make it champion if it passes the
    gate.

    ``new_evaluation``: the champion's scores belong to an earlier evaluation, so compare the
    candidate with the baselines only. A refusal is a result, not an error: it is returned with its
    reasons and recorded. If another machine makes a champion meanwhile, the candidate is judged
    again, against that one.

    Raises:
        TrackingError: the store does not answer, this account may not move the champion, or there
            is no such version.
    """
    gate, client = session.params.gate, session.client
    with guard(session.root, gate):
        number = find_version(client, gate.registered_model, version or CANDIDATE).number
        prove_rights(client, gate)
        # Before the version is judged: a concurrent `vidbridge gc` either sees this mark or is seen
        # here.
        set_tags(client, gate.registered_model, number, {JUDGING: str(now_ms())})
        for _ in range(ATTEMPTS):
            case = judge(session, number, author=author, reason=reason, new_evaluation=new_evaluation)
            verdict = _verdict_text(case)
            if case.champion is not None and case.champion.number == number:
                return Promotion(case.candidate, case.champion, case.decision, moved=False, verdict=verdict)
            if conclude(client, gate, case):
                return Promotion(
                    case.candidate, case.champion, case.decision, moved=case.decision.promote, verdict=verdict
                )
    raise _overtaken(gate)


def conclude(client: MlflowClient, gate: GateParams, case: Case) -> bool:
    """Record the decision and carry it out. Returns False if another move came first and the case
    must be judged again."""
    scores = case.candidate.scores
    decided = Decided(
        at_ms=now_ms(),
        action="promote" if case.decision.promote else "refuse",
        version=case.candidate.number,
        previous=case.champion.number if case.champion else None,
        after=case.after,
        author=case.author,
        reason=case.reason,
        reasons=() if case.decision.promote else case.decision.reasons,
        mean=counted(scores, gate) if scores else None,
        production=gate.production,
    )
    verdict = _verdict_text(case)
    entry = write_entry(client, gate.ledger, case.candidate, decided, verdict)
    if not entry.moves:
        retry_on_conflict(
            lambda: client.set_model_version_tag(case.candidate.model, str(case.candidate.number), VERDICT, verdict)
        )
        return True
    if entry.standing:
        complete_pending_move(client, gate)
    return entry.standing


def _verdict_text(case: Case) -> str:
    return verdict(
        case.candidate,
        case.champion,
        case.decision,
        new_evaluation=case.new_evaluation,
        author=case.author,
        reason=case.reason,
    )


def rollback(session: Session, *, author: str | None = None, reason: str = "") -> Promotion:
    """Restore the champion that preceded the last promotion. Repeated calls go further back.

    Raises:
        TrackingError: there is no earlier champion, it was deleted, its weights were freed, it
            learned from a video that was removed on request, the alias was moved by someone else,
            or this account may not move it.
    """
    gate, client = session.params.gate, session.client
    model = gate.registered_model
    with guard(session.root, gate):
        for _ in range(ATTEMPTS):
            last = complete_pending_move(client, gate)
            champion, stack = (
                present_champion(client, model),
                champions(read_ledger(client, gate.registered_model, gate.ledger)),
            )
            if champion is None:
                raise TrackingError(model, "no champion yet, so nothing to roll back", "run vidbridge promote")
            prove_rights(client, gate)
            if last is None or stack[-1] != champion.number:
                raise TrackingError(
                    model,
                    f"the alias {CHAMPION!r} was moved outside the gate (it is on version {champion.number})",
                    "name the version that should be champion: vidbridge promote VERSION",
                )
            if len(stack) == 1:
                raise TrackingError(
                    model,
                    f"version {champion.number} is the first champion, there is no earlier one to go back to",
                    "promote another: vidbridge promote VERSION",
                )
            earlier = find_version(client, model, stack[-2])
            why = earlier.freed and f"version {earlier.number} no longer has weights: {earlier.freed}"
            if (why := why or objection(session, earlier)) is not None:
                raise TrackingError(
                    model, f"cannot go back: {why}", "put another one to the gate: vidbridge promote VERSION"
                )
            scores, who = earlier.scores, author_name(session.root, author)
            decided = Decided(
                at_ms=now_ms(),
                action="rollback",
                version=earlier.number,
                previous=champion.number,
                after=last.number,
                author=who,
                reason=reason,
                reasons=(),
                mean=counted(scores, gate) if scores else None,
                production=gate.production,
            )
            verdict = rollback_verdict(earlier, champion, author=who, reason=reason)
            if write_entry(client, gate.ledger, earlier, decided, verdict).standing:
                complete_pending_move(client, gate)
                return Promotion(
                    earlier, champion, Decision(True, (reason or "rolled back",), ()), moved=True, verdict=verdict
                )
    raise _overtaken(gate)


def history(session: Session, model: str | None = None) -> list[Entry]:
    """List every promotion, refusal and rollback of the project's registered model, or of
    ``model``, oldest first.

    Raises:
        TrackingError: the store does not answer, or neither argument nor environment names the
            model.
    """
    name = model or own_model(session)
    return read_ledger(session.client, name, ledger_of(name))


def _overtaken(gate: GateParams) -> TrackingError:
    return TrackingError(
        gate.registered_model,
        f"others have moved the champion {ATTEMPTS} times meanwhile",
        "see vidbridge history, then try again",
    )
