"""Promotion, refusal and rollback of the champion.

The rules are in :mod:`stages.tracking.gate.rules`; decisions and their order are in
:mod:`stages.tracking.registry.ledger`.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.domain.statistics.paired import Comparison
from stages.params import GateParams
from stages.runtime.paths import STATE
from stages.tracking.gate.rules import Decision, Evidence, counted, decide, refusal
from stages.tracking.gate.verdict import rollback_verdict, verdict
from stages.tracking.lineage.commits import holding_commit
from stages.tracking.lineage.git import git
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.ledger import (
    VERDICT,
    Decided,
    Entry,
    abandon,
    champions,
    last_move,
    mark_done,
    may_publish,
    now_ms,
    read_ledger,
    write_entry,
)
from stages.tracking.registry.named import ledger_of, own_model
from stages.tracking.registry.production import publish, set_tags, tags_of
from stages.tracking.registry.removals import REMOVED, objection
from stages.tracking.registry.rights import prove_rights
from stages.tracking.registry.samples import compare_versions, keep_samples
from stages.tracking.registry.score_cards import ScoreCard, parse_scores
from stages.tracking.registry.versions import CANDIDATE, CHAMPION, JUDGING, Version, all_versions, find_version
from stages.tracking.runs.run import TAG
from stages.tracking.runs.store import locked, retry_on_conflict, store_error
from stages.tracking.session import Session

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

GATE_WAIT_S = 60
#: Attempts before an error. A decision that another machine overtakes is judged again; losing this
#: many times in a row points to a loop.
ATTEMPTS = 8


@dataclass(frozen=True)
class Case:
    """A candidate judged against the present champion.

    ``after``: the number of the ledger's move at that time (0: none). ``new_evaluation``: judged
    against the baselines only.
    """

    candidate: Version
    champion: Version | None
    new_evaluation: bool
    after: int
    decision: Decision
    author: str
    reason: str


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
    with _guard(session.root, gate):
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


def judge(session: Session, version: int, *, author: str | None, reason: str, new_evaluation: bool) -> Case:
    """Judge a version against the present champion, after completing unfinished moves of others.
    Changes nothing else."""
    gate, client = session.params.gate, session.client
    # Read the ledger before the alias: a champion made between the two makes this case late, and
    # two moves never both stand.
    last = complete_pending_move(client, gate)
    champion = _champion(client, gate.registered_model)
    candidate = find_version(client, gate.registered_model, version)
    if champion is not None and champion.number == version and (last is None or last.decided.version != version):
        # The alias was moved by hand: judge the candidate as if the alias were where the gate put
        # it.
        champion = _version_or_none(client, gate.registered_model, last.decided.version) if last else None
    if champion is not None and champion.number == version:
        decision = refusal(f"version {version} is champion already")
    else:
        decision = _considered(session, candidate, champion, new_evaluation)
    return Case(
        candidate, champion, new_evaluation, last.number if last else 0, decision, _author(session.root, author), reason
    )


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
    with _guard(session.root, gate):
        for _ in range(ATTEMPTS):
            last = complete_pending_move(client, gate)
            champion, stack = (
                _champion(client, model),
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
            scores, who = earlier.scores, _author(session.root, author)
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


def check_rights(session: Session) -> None:
    """Check, before hours are spent, that this account may decide and record decisions.

    Raises:
        TrackingError: it may not, or the store does not answer.
    """
    gate = session.params.gate
    with _errors(gate):
        prove_rights(session.client, gate)


def history(session: Session, model: str | None = None) -> list[Entry]:
    """List every promotion, refusal and rollback of the project's registered model, or of
    ``model``, oldest first.

    Raises:
        TrackingError: the store does not answer, or neither argument nor environment names the
            model.
    """
    name = model or own_model(session)
    return read_ledger(session.client, name, ledger_of(name))


def _considered(session: Session, candidate: Version, champion: Version | None, new_evaluation: bool) -> Decision:
    gate = session.params.gate
    if candidate.freed is not None:
        return refusal(f"version {candidate.number} no longer has weights: {candidate.freed}")
    if (why := objection(session, candidate)) is not None:
        return refusal(why)
    if holding_commit(session.root, candidate.stage, candidate.out) is None:
        return refusal(
            f"no commit here holds a dvc.lock with version {candidate.number} ({candidate.stage}, out {candidate.out}),"
            " so it could not be made again; commit dvc.lock and params.yaml, or fetch the branch that has them (where"
            " it ran: vidbridge run --push; here: git fetch origin 'runs/*:runs/*')"
        )
    if candidate.scores is None:
        return refusal(
            f"version {candidate.number} has no scores; add its row to evaluation.of, run dvc repro, then vidbridge"
            " register"
        )
    against: ScoreCard | None = None
    paired: Comparison | str = "there is no champion"
    if champion is not None and not new_evaluation:
        if champion.scores is None:
            return refusal(
                f"the champion, version {champion.number}, has no scores; register it again, or say that the evaluation"
                " is new"
            )
        digest = candidate.scores.digest
        against = champion.scores_under(digest) or champion.scores
        if against.digest == digest:
            tasks = None if gate.scores == "all" else list(gate.scores)
            confidence = session.params.evaluation.confidence
            try:
                paired = compare_versions(session, candidate, champion, digest, confidence=confidence, tasks=tasks)
            except TrackingError as error:
                paired = str(error)
    evidence = Evidence(candidate.gauges, candidate.rolls_out, paired)
    return decide(candidate.scores, against, gate, candidate.baselines, evidence)


def champion_to_rescore(session: Session, version: str | int | None = None) -> tuple[Version, str] | None:
    """Return the champion and the candidate's evaluation (digest) if the champion must be scored
    under it.

    That is so if it has no scores under it, or none by sample where the gate requires significance.
    None if it has them, or if there is nothing to compare.

    Raises:
        TrackingError: the store does not answer, or there is no such version.
    """
    gate, client = session.params.gate, session.client
    model = gate.registered_model
    candidate, champion = find_version(client, model, version or CANDIDATE), _champion(client, model)
    if champion is None or champion.number == candidate.number or candidate.scores is None:
        return None
    digest = candidate.scores.digest
    complete = champion.scores_under(digest) and (champion.samples_under(digest) or not gate.significant)
    return None if complete else (champion, digest)


def add_scores(session: Session, version: Version, digest: str, table: str, samples: str) -> None:
    """Record scores of ``version`` under another evaluation than its own, ``digest``.

    ``samples``: its scores by sample, as JSON lines.

    Raises:
        TrackingError: ``table`` is damaged, or belongs to a third evaluation.
    """
    name = f"{version.model} version {version.number}"
    card = parse_scores(table, name)
    if card.digest != digest:
        raise TrackingError(
            name,
            f"was scored under evaluation {card.digest}, the candidate under {digest}",
            "bring data and params.yaml to the candidate's state (its runs/ branch), then promote again",
        )
    with _errors(session.params.gate):
        keep_samples(session, version, digest, samples)
        session.client.set_model_version_tag(version.model, str(version.number), f"{TAG}scores.{digest}", table)


def _unfit(client: MlflowClient, model: str, entry: Entry) -> str | None:
    """Return why a move can no longer be completed: its version was deleted or may not become
    champion. None if it can."""
    version = _version_or_none(client, model, entry.decided.version)
    if version is None:
        return f"version {entry.decided.version} was deleted"
    if CHAMPION in version.aliases:
        return None  # The move got this far already.
    if version.freed is not None:
        return f"version {version.number} no longer has weights: {version.freed}"
    if version.tags.get(REMOVED) is not None:
        return f"version {version.number} learned from a video that was removed on request"
    return None


def _version_or_none(client: MlflowClient, model: str, number: int) -> Version | None:
    return next((version for version in all_versions(client, model) if version.number == number), None)


def _champion(client: MlflowClient, model: str) -> Version | None:
    return next((version for version in all_versions(client, model) if CHAMPION in version.aliases), None)


@contextmanager
def _guard(root: Path, gate: GateParams) -> Iterator[None]:
    """Hold the gate's lock on this machine, which avoids judging twice. Between machines the ledger
    decides."""
    with locked(root / STATE / "gate.lock", GATE_WAIT_S), _errors(gate):
        yield


@contextmanager
def _errors(gate: GateParams) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise store_error(
            gate.registered_model,
            error,
            f"EDIT on the registered models {' and '.join(repr(name) for name in _models(gate))}",
            "see vidbridge history for the decisions. A promotion that it lists as unfinished is completed by the next"
            " vidbridge promote",
        ) from error


def _models(gate: GateParams) -> list[str]:
    return [gate.registered_model, gate.ledger] + ([gate.production] if gate.production else [])


def _overtaken(gate: GateParams) -> TrackingError:
    return TrackingError(
        gate.registered_model,
        f"others have moved the champion {ATTEMPTS} times meanwhile",
        "see vidbridge history, then try again",
    )


def _author(root: Path, author: str | None) -> str:
    """Return the author's name: the argument, else git's identity here, else the user who is logged
    in."""
    if author:
        return author
    try:
        ident = git(root, "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT")
    except TrackingError:  # git has no identity here, and promoting needs none
        return getpass.getuser()
    return ident.rsplit(" ", 2)[0]  # without time and zone


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
