"""Score anyone's predictions on a benchmark: no model, no video. Not a stage of DVC; `vidbridge score` calls it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from stages.domain.examiner import Examiner
from stages.judging.batch import check_judged, usage_of
from stages.judging.choose import judge_of
from stages.judging.examiner import examined
from stages.judging.place import JudgeError
from stages.params import Params, digest
from stages.suites.benchmark import AnnotationError, Benchmark, Item, Mark, SuiteError
from stages.suites.known import BENCHMARKS
from stages.suites.predictions import read_predictions
from stages.suites.table import Resampling, baseline_replies, cells, overall

__all__ = ["BENCHMARKS", "JudgeError", "SuiteError", "score"]


def score(params: Params, name: str, annotations: Path, predictions: Path, *, baselines: bool) -> dict[str, Any]:
    """The table of one file of predictions: what it rests on, each scoring overall and by category, and trivial baselines.

    ``name`` is one of :data:`BENCHMARKS`. Baselines are scored on the questions that the predictions answer.

    Raises:
        SuiteError: annotations or predictions that cannot be scored.
        JudgeError: the benchmark needs a judge, and it cannot be used or was not there for too many replies.
    """
    benchmark = BENCHMARKS[name]
    items = _items(benchmark, annotations)
    given = read_predictions(predictions, items)
    answered = [item for item in items if item.item_id in given.replies]
    replies = {"predictions": list(given.replies.values())}
    if baselines:
        replies |= baseline_replies(answered, params.seed)
    judge = judge_of(params.judge) if benchmark.judged else None

    def work(examiner: Examiner) -> dict[str, dict[str, list[Mark]]]:
        return {who: _marks(benchmark, answered, said, examiner) for who, said in replies.items()}

    # Scored by rule, nobody is asked.
    marks = work(cast("Examiner", None)) if judge is None else examined(judge, work)
    if judge is not None:
        unjudged = max(sum(mark.parts is None for mark in each) for each in marks["predictions"].values())
        check_judged(judge, unjudged, len(answered), f"{name}, {predictions.name}")
    how = Resampling(draws=params.evaluation.bootstrap_draws, confidence=params.evaluation.confidence, seed=params.seed)
    identity = {
        "benchmark": name,
        "items": [[item.item_id, item.truth, item.options] for item in items],
        "judge": params.judge.model_dump(mode="json") if benchmark.judged else None,
        "rules": {scoring.name: scoring.rule for scoring in benchmark.scorings},
    }
    return {
        "schema_version": 1,
        "benchmark": name,
        "record": benchmark.record,
        "digest": digest(identity),
        "predictions_sha256": hashlib.sha256(predictions.read_bytes()).hexdigest(),
        "judge": {"name": judge.name, **params.judge.model_dump(mode="json")} if judge is not None else None,
        "usage": {} if judge is None else usage_of(judge),
        "resampling": how.model_dump(),
        "questions": len(items),
        "answered": len(answered),
        "partial": bool(given.missing),
        "missing": list(given.missing),
        "empty": list(given.empty),
        "scorings": {scoring.name: scoring.rule for scoring in benchmark.scorings},
        "scores": cells(benchmark, answered, marks["predictions"], how),
        "baselines": {who: overall(benchmark, answered, marks[who], how) for who in replies if who != "predictions"},
    }


def _items(benchmark: Benchmark[Any], path: Path) -> list[Item[Any]]:
    try:
        return benchmark.read(path)
    except AnnotationError as error:
        others = [other.name for other in BENCHMARKS.values() if other is not benchmark and _reads(other, path)]
        if not others:
            raise
        raise AnnotationError(
            f"{error}. These look like the annotations of {others[0]}: give --benchmark {others[0]}, or the annotations of"
            f" {benchmark.name}"
        ) from error


def _reads(benchmark: Benchmark[Any], path: Path) -> bool:
    try:
        benchmark.read(path)
    except AnnotationError:
        return False
    return True


def _marks(
    benchmark: Benchmark[Any], items: Sequence[Item[Any]], replies: Sequence[str], examiner: Examiner
) -> dict[str, list[Mark]]:
    return {
        scoring.name: [scoring.mark(item, reply, examiner) for item, reply in zip(items, replies, strict=True)]
        for scoring in benchmark.scorings
    }
