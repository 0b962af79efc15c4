"""Scores of the champion under the candidate's evaluation, where it has none."""

from __future__ import annotations

from stages.tracking.gate.access import store_errors
from stages.tracking.gate.moves import present_champion
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.samples import keep_samples
from stages.tracking.registry.score_cards import parse_scores
from stages.tracking.registry.versions import CANDIDATE, Version, find_version
from stages.tracking.runs.run import TAG
from stages.tracking.session import Session


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
    candidate, champion = find_version(client, model, version or CANDIDATE), present_champion(client, model)
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
    with store_errors(session.params.gate):
        keep_samples(session, version, digest, samples)
        session.client.set_model_version_tag(version.model, str(version.number), f"{TAG}scores.{digest}", table)
