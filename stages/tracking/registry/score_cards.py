"""Results of evaluation as versions store them and the gate reads them: a score card per policy,
one for the baselines.

A version outlives the code that scored it, and one registry is read by clones of several ages. So a
card reads from the tag only the fields that the gate needs and ignores the rest, while a file
between stages is read strictly, as its stage writes it (:mod:`stages.lib.evaluation.results`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.domain.core.records import Record
from stages.lib.evaluation.results import TRIVIAL, BaselineScores, PolicyScores
from stages.tracking.lineage.uri import TrackingError
from stages.tracking.runs.run import kept_tag

R = TypeVar("R", bound=Record)


class _Card(BaseModel):
    # Evaluation may add fields that the gate does not use.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TaskScore(_Card):
    """Mean score of one task in [0, 1] with its interval; ``format``: share of parsable replies;
    ``blank``, ``shuffled``: means on black and on shuffled video, None if an older version of this
    code scored."""

    mean: float
    low: float
    high: float
    samples: int = Field(ge=0)
    format: float
    blank: float | None = None
    shuffled: float | None = None


class ScoreCard(_Card):
    """``scores/<row>/scores.json``. ``digest`` names split, samples, prompts, judge and scoring:
    only equal digests are compared."""

    row: str
    digest: str = Field(min_length=1)
    split: str
    samples: int
    mean: float
    format: float
    tasks: Mapping[str, TaskScore]


class Baselines(_Card):
    """``scores/baselines/scores.json``: the mean of each trivial baseline (random, constant) under
    the same digest.

    ``tasks``: task to baseline to mean; empty in versions that were registered before it was
    recorded.
    """

    digest: str
    means: Mapping[str, float]
    tasks: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)


def parse_scores(text: str | bytes, name: str) -> PolicyScores:
    """Read ``scores.json``. ``name`` opens the :class:`TrackingError` of a damaged file."""
    return _parsed(text, PolicyScores, name, "this row")


def parse_baselines(text: str | bytes, name: str) -> Baselines:
    """Read the card from the baselines' ``scores.json``. ``name`` opens the :class:`TrackingError`
    of a damaged file."""
    scores = _parsed(text, BaselineScores, name, "the baselines")
    means = {policy: scores.of(policy).mean for policy in TRIVIAL}
    tasks = {task: {policy: results.of(policy).mean for policy in TRIVIAL} for task, results in scores.tasks.items()}
    return Baselines(digest=scores.digest, means=means, tasks=tasks)


def _parsed(text: str | bytes, kind: type[R], name: str, what: str) -> R:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise TrackingError(
            name, f"{field + ': ' if field else ''}{first['msg']}", f"evaluate {what} again (dvc repro)"
        ) from error


def parse_kept(text: bytes | None, where: str, stage: str) -> dict[str, str]:
    """Read the tag that says which checkpoint a watched training kept; empty if it was not watched.

    Args:
        text: the ``summary.json`` of a training; None: there is none.
        where: opens the message.

    Raises:
        TrackingError: it is not a table.
    """
    try:
        return {} if text is None else kept_tag({**json.loads(text)})
    except (ValueError, TypeError) as error:
        raise TrackingError(where, str(error), f"run {stage} again") from error
