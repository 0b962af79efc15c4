"""Answers of the registry as plain values, for ``--json``: names as the Python types have them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from stages.domain.statistics.paired import Comparison
from stages.tracking.registry.compare import VersionPair
from stages.tracking.registry.explain import Explanation


def comparison_document(asked: VersionPair, found: Comparison, confidence: float) -> dict[str, Any]:
    """Differences between two versions, ``after`` minus ``before``."""
    return {
        "model": asked.after.model,
        "after": asked.after.number,
        "before": asked.before.number,
        "evaluation": asked.digest,
        "confidence": confidence,
        **found.model_dump(mode="json"),
    }


def explanation_document(explanation: Explanation) -> dict[str, Any]:
    """Everything known about a version."""
    version, scores = explanation.version, explanation.scores
    return {
        "model": version.model,
        "version": version.number,
        "aliases": list(version.aliases),
        "stage": version.stage,
        "step": version.step,
        "final": version.final,
        "recipe": version.recipe,
        "source": explanation.source,
        "lock_commit": explanation.commit,
        "code_commit": explanation.git_commit,
        "params": dict(explanation.params),
        "params_digest": explanation.params_digest,
        "data": dict(explanation.data),
        "ancestors": [asdict(ancestor) for ancestor in explanation.ancestors],
        "run": explanation.run,
        "scores": None if scores is None else scores.model_dump(mode="json"),
        "copies": list(explanation.copies),
        "alias_fault": explanation.alias_fault,
        "freed": version.freed,
        "objection": explanation.objection,
        "verdict": version.verdict,
    }
