"""Compare two versions on the samples of one evaluation, for `vidbridge compare`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.domain.statistics.paired import Comparison
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.named import model_of, parse_named
from stages.tracking.registry.samples import compare_versions
from stages.tracking.registry.versions import Version, find_version
from stages.tracking.session import Session


@dataclass(frozen=True)
class VersionPair:
    """Two versions and the evaluation they are compared under. ``to_rescore``: the one without
    scores under it."""

    after: Version
    before: Version
    digest: str
    to_rescore: Version | None


def find_pair(session: Session, after: str, before: str) -> VersionPair:
    """Find two versions of one model (numbers, aliases, ``models:/NAME/3``) and an evaluation that
    both were scored under, else that of ``after``.

    Raises:
        TrackingError: there is no such version, the two are the same or belong to two models, or
            one was never scored.
    """
    named = (parse_named(after), parse_named(before))
    model = model_of(session, *named)
    ours, theirs = (find_version(session.client, model, item.which) for item in named)
    if ours.number == theirs.number:
        raise TrackingError(model, f"{after!r} and {before!r} are both version {ours.number}", "name two versions")
    scored = []
    for version in (ours, theirs):
        if version.scores is None:
            raise TrackingError(
                model,
                f"version {version.number} has no scores",
                "add its row to evaluation.of, run dvc repro, then vidbridge register",
            )
        scored.append(version.scores.digest)
    for digest in scored:
        if ours.samples_under(digest) and theirs.samples_under(digest):
            return VersionPair(ours, theirs, digest, None)
    return VersionPair(ours, theirs, scored[0], None if scored[0] == scored[1] else theirs)


def compare_pair(session: Session, versions: VersionPair, confidence: float) -> Comparison:
    """Compare ``after`` - ``before``, by task and over all tasks. ``confidence``: of the intervals.

    Raises:
        TrackingError: the scores by sample of one of them are not available.
    """
    return compare_versions(
        session, versions.after, versions.before, versions.digest, confidence=confidence, tasks=None
    )
