"""What evaluation wrote, as the gate reads it: one score card a policy, one for the trivial baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.tracking.lineage.uri import TrackingError


class _Card(BaseModel):
    # Evaluation may add figures that the gate has no use for.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TaskScore(_Card):
    """Mean score of one task in [0, 1] with its interval; ``format``: share of parsable replies; ``blank``, ``shuffled``: means on
    black and on shuffled video, None where an older version of this code scored."""

    mean: float
    low: float
    high: float
    samples: int = Field(ge=0)
    format: float
    blank: float | None = None
    shuffled: float | None = None


class ScoreCard(_Card):
    """``scores/<row>/scores.json``. ``digest`` names split, samples, prompts, judge and scoring: only equal digests are compared."""

    row: str
    digest: str = Field(min_length=1)
    split: str
    samples: int
    mean: float
    format: float
    tasks: Mapping[str, TaskScore]


class Baselines(_Card):
    """``scores/baselines/scores.json``: the mean of each trivial baseline (random, constant) under the same digest.

    ``tasks``: task to baseline to mean; empty in versions that were registered before it was kept.
    """

    digest: str
    means: Mapping[str, float]
    tasks: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)


def parse_scores(text: str | bytes, name: str) -> ScoreCard:
    """Read ``scores.json``; ``name`` opens the :class:`TrackingError` that a damaged one raises."""
    try:
        return ScoreCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise TrackingError(
            f"{name}: {field + ': ' if field else ''}{first['msg']}; evaluate this row again (dvc repro)"
        ) from error


def parse_baselines(text: str | bytes, name: str) -> Baselines:
    """Read the baselines' ``scores.json``: every top-level table that has a ``mean`` is one."""
    try:
        raw = json.loads(text)
        means = {key: float(value["mean"]) for key, value in raw.items() if isinstance(value, Mapping) and "mean" in value}
        if not means:
            raise ValueError("no baseline with a mean")
        tasks = {
            task: {name: float(results[name]["mean"]) for name in means if name in results}
            for task, results in raw.get("tasks", {}).items()
        }
        return Baselines(digest=raw["digest"], means=means, tasks=tasks)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrackingError(f"{name}: {error!r}; evaluate the baselines again (dvc repro)") from error
