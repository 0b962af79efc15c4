"""Consequences of an upgrade from 0.1 for a project and its registry: outdated results, and a
remedy for each.

Since 0.1 the frame order is the decoder's, scoring has changed, and the *evaluation* that a score
depends on (named by a digest) includes more; no digest of 0.1 equals one of today's. The position
of the text behind a video has changed too, so that most weights of 0.1 are refused
(:mod:`stages.lib.models.positions`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.params import Params
from stages.runtime import paths
from stages.tracking.lineage.cache import ContentStore
from stages.tracking.lineage.lockfile import read_lock
from stages.tracking.lineage.source import parse_source
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.registry.versions import CANDIDATE, CHAMPION, Version, all_versions
from stages.tracking.session import Session

#: Keys that every ``params.yaml`` has since 0.2, and whose table a stage of ``dvc.lock`` depends on
#: as a whole.
_NEW_KEYS = {"ingest": "tolerance", "rewards": "min_thinking_words"}
#: Families whose text behind a video had another position in 0.1.
_MOVED = ("qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True)
class Concern:
    """One outdated result of 0.1: ``what`` (a file, or a version with its alias), the problem, and
    the remedy."""

    what: str
    problem: str
    remedy: str


def concerns_of_project(root: Path) -> list[Concern]:
    """Outdated results in ``dvc.lock``. Light: neither MLflow nor DVC is imported.

    Raises:
        TrackingError: ``dvc.lock`` is damaged.
    """
    old = [stage for stage, record in read_lock(root).items() if _lacks_new_keys(record.params)]
    if not old:
        return []
    problem = (
        f"{', '.join(sorted(old))} {'was' if len(old) == 1 else 'were'} made by 0.1: frame order and scoring are"
        " others now"
    )
    return [Concern(paths.LOCK_FILE, problem, "see what runs again: vidbridge plan; then: vidbridge run")]


def concerns_of_registry(session: Session) -> list[Concern]:
    """Champions and candidates, of the project's model and of its production model, with weights or
    scores by the rules of 0.1.

    Raises:
        TrackingError: the store does not answer, or a version's tag is damaged.
    """
    gate, client = session.params.gate, session.client
    digest = present_digest(session.root, session.params)
    models = [gate.registered_model, *([gate.production] if gate.production else [])]
    versions = [
        version
        for model in models
        for version in all_versions(client, model)
        if CHAMPION in version.aliases or CANDIDATE in version.aliases
    ]
    if not versions:
        return []
    return [concern for version in versions for concern in _concerns(version, session.content, digest)]


def present_digest(root: Path, params: Params) -> str | None:
    """Digest of the evaluation with the project's present samples and parameters; None if there are
    no readable samples."""
    from stages.errors import InputError
    from stages.lib.evaluation.held_out import evaluation_digest, evaluation_samples

    with chdir(root):
        try:
            return evaluation_digest(params, evaluation_samples(params))
        except (FileNotFoundError, InputError):
            return None


def _concerns(version: Version, content: ContentStore, digest: str | None) -> Iterator[Concern]:
    what = f"{version.model} version {version.number} ({', '.join(version.aliases)})"
    if _places_text_otherwise(version, content):
        yield Concern(
            what,
            "its weights were trained by 0.1, with the text behind a video elsewhere, and are refused",
            "train them again: vidbridge run; then: vidbridge promote --new-evaluation",
        )
        return
    scores = version.scores
    if scores is None or digest is None or version.scores_under(digest) is not None:
        return
    problem = f"was scored under evaluation {scores.digest}, and this project's is {digest}"
    if CHAMPION in version.aliases:
        yield Concern(
            what, problem, "it is scored again before the gate compares: vidbridge run; then: vidbridge promote"
        )
    else:
        yield Concern(what, problem, "make a candidate of this evaluation: vidbridge run")


def _places_text_otherwise(version: Version, content: ContentStore) -> bool:
    """Return whether the configuration beside the weights is one of 0.1's; False if it is not on
    this machine."""
    try:
        source = parse_source(version.source)
        if not content.has(source.oid):
            return False
        text = content.read(source.oid, f"{source.path}/config.json" if source.path else "config.json")
        config = json.loads(text or b"{}")
    except (TrackingError, ValueError, OSError):
        return False  # loading it reports the error
    return isinstance(config, dict) and config.get("model_type") in _MOVED and paths.POSITIONS not in config


def _lacks_new_keys(params: Mapping[str, Any]) -> bool:
    values = params.get(paths.PARAMS_FILE, {})
    return any(isinstance(values.get(table), dict) and key not in values[table] for table, key in _NEW_KEYS.items())
