"""Judge a candidate against the present champion: gather what the rules need, and ask them."""

from __future__ import annotations

from dataclasses import dataclass

from stages.domain.statistics.paired import Comparison
from stages.tracking.gate.access import author_name
from stages.tracking.gate.moves import complete_pending_move, present_champion, version_or_none
from stages.tracking.gate.rules import Decision, Evidence, decide, refusal
from stages.tracking.lineage.commits import holding_commit
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.removals import objection
from stages.tracking.registry.samples import compare_versions
from stages.tracking.registry.score_cards import ScoreCard
from stages.tracking.registry.versions import Version, find_version
from stages.tracking.session import Session


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


def judge(session: Session, version: int, *, author: str | None, reason: str, new_evaluation: bool) -> Case:
    """Judge a version against the present champion, after completing unfinished moves of others.
    Changes nothing else."""
    gate, client = session.params.gate, session.client
    # Read the ledger before the alias: a champion made between the two makes this case late, and
    # two moves never both stand.
    last = complete_pending_move(client, gate)
    champion = present_champion(client, gate.registered_model)
    candidate = find_version(client, gate.registered_model, version)
    if champion is not None and champion.number == version and (last is None or last.decided.version != version):
        # The alias was moved by hand: judge the candidate as if the alias were where the gate put
        # it.
        champion = version_or_none(client, gate.registered_model, last.decided.version) if last else None
    if champion is not None and champion.number == version:
        decision = refusal(f"version {version} is champion already")
    else:
        decision = _considered(session, candidate, champion, new_evaluation)
    return Case(
        candidate,
        champion,
        new_evaluation,
        last.number if last else 0,
        decision,
        author_name(session.root, author),
        reason,
    )


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
