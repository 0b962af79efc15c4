"""Score predictions on a benchmark: no model, no video. Not a stage of DVC; `vidbridge score` calls
it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.domain.core.digest import digest
from stages.lib.judging.batch import check_judged, usage_of
from stages.params import Params, judge_for
from stages.tools.suites.asked_of_judges import Examiner
from stages.tools.suites.examiner import examiner_of
from stages.tools.suites.published.benchmark import AnnotationError, Benchmark, Item, Mark, PredictionError, Questions
from stages.tools.suites.published.paired import overall_differences, paired
from stages.tools.suites.published.predictions import read_predictions
from stages.tools.suites.published.registry import BENCHMARKS
from stages.tools.suites.published.table import baseline_replies, cells, overall
from stages.tools.suites.results import Against, BenchmarkScores, ControlScores, SampledScores, SetAside
from stages.tools.suites.sampled import sampled_cells


class Sampled(NamedTuple):
    """Sampled replies of a model: for each of their numbers, those by id; and their temperature."""

    replies: Sequence[Mapping[str, str]]
    temperature: float


#: Marks of one set of replies, by scoring, one for each of its items.
Marks = dict[str, list[Mark]]


def score(
    params: Params,
    name: str,
    annotations: Path,
    predictions: Path,
    *,
    baselines: bool,
    against: Path | None = None,
    controls: Mapping[str, Mapping[str, str]] | None = None,
    sampled: Sampled | None = None,
) -> BenchmarkScores:
    """Score one file of predictions: its basis, each scoring overall and by category, and trivial
    baselines.

    Args:
        name: one of :data:`BENCHMARKS`.
        baselines: score them on the questions that the predictions answer.
        against: a second file of predictions; the first is compared with it on the questions that
            both answer.
        controls: replies of the same model to control videos, by view and by id.
        sampled: further replies of the same model; None: there are none.

    Raises:
        SuiteError: annotations or predictions that cannot be scored.
        JudgeError: the benchmark needs a judge, which cannot be used or was unavailable for too
            many replies.
    """
    benchmark = BENCHMARKS[name]
    questions = read_questions(name, annotations)
    items = questions.items
    parsed = read_predictions(predictions, questions)
    answered = [item for item in items if item.item_id in parsed.replies]
    sets: dict[str, Mapping[str, str]] = {"predictions": parsed.replies}
    if baselines:
        for who, replies_of_policy in baseline_replies(answered, params.seed).items():
            sets[who] = {item.item_id: reply for item, reply in zip(answered, replies_of_policy, strict=True)}
    trivial = [who for who in sets if who != "predictions"]
    if against is not None:
        sets["against"] = read_predictions(against, questions).replies
    sets_of_replies = {
        view: {item.item_id: replies_of_policy[item.item_id] for item in answered if item.item_id in replies_of_policy}
        for view, replies_of_policy in (controls or {}).items()
    }
    sets |= {f"control: {view}": replies_of_policy for view, replies_of_policy in sets_of_replies.items()}
    if sampled is not None:
        sets |= {f"sampled: {number}": replies for number, replies in enumerate(sampled.replies)}
    place = judge_for(benchmark.task, params.judge)
    judge = examiner_of(place) if benchmark.judged else None
    files = {"predictions": predictions, "against": against}
    if judge is None:
        marks = {
            who: _by_rule(benchmark, _those(items, replies_of_policy), replies_of_policy)
            for who, replies_of_policy in sets.items()
        }
    else:
        marks = judge.score_many(
            lambda judge: {
                who: _by_judge(benchmark, _those(items, replies_of_policy), replies_of_policy, judge)
                for who, replies_of_policy in sets.items()
            }
        )
        # The comparison counts too: a mean over the few replies that a judge scored before it
        # failed is not a score.
        for who, replies in sets.items():
            unjudged = max(sum(mark.parts is None for mark in each) for each in marks[who].values())
            check_judged(judge, unjudged, len(replies), f"{name}, {file.name if (file := files.get(who)) else who}")
    confidence = params.evaluation.confidence
    identity = {
        "benchmark": name,
        # Whole rows: judged benchmarks score by events, objects and questions that are only there.
        "items": [[item.item_id, item.row.model_dump(mode="json")] for item in items],
        "judge": place.params.model_dump(mode="json") if benchmark.judged else None,
        "rules": {scoring.name: scoring.rule for scoring in benchmark.scorings},
    }
    return BenchmarkScores(
        benchmark=name,
        record=benchmark.record,
        digest=digest(identity),
        predictions_sha256=hashlib.sha256(predictions.read_bytes()).hexdigest(),
        judge={"name": judge.name, **place.params.model_dump(mode="json")} if judge is not None else None,
        usage={} if judge is None else usage_of(judge),
        confidence=confidence,
        questions=len(items),
        answered=len(answered),
        partial=bool(parsed.missing),
        missing=list(parsed.missing),
        empty=list(parsed.empty),
        set_aside=[SetAside(**reject.model_dump(include={*SetAside.model_fields})) for reject in questions.set_aside],
        not_scored=list(parsed.not_scored),
        scorings={scoring.name: scoring.rule for scoring in benchmark.scorings},
        scores=cells(benchmark, answered, marks["predictions"], confidence),
        baselines={who: overall(benchmark, answered, marks[who], confidence) for who in trivial},
        controls={
            view: _control(
                benchmark,
                answered,
                sets["predictions"],
                marks["predictions"],
                replies_of_policy,
                marks[f"control: {view}"],
                confidence,
            )
            for view, replies_of_policy in sets_of_replies.items()
            if replies_of_policy
        },
        sampled=None if sampled is None else _sampled_scores(benchmark, items, sampled, marks, confidence),
        against=None
        if against is None
        else _compared(
            benchmark,
            items,
            against,
            sets["predictions"],
            marks["predictions"],
            sets["against"],
            marks["against"],
            confidence,
        ),
    )


def _sampled_scores(
    benchmark: Benchmark[Any],
    items: Sequence[Item[Any]],
    sampled: Sampled,
    marks: Mapping[str, Marks],
    confidence: float,
) -> SampledScores:
    """Scores of all sampled replies, question by question."""
    by_item: dict[str, dict[str, list[Mark]]] = {scoring.name: {} for scoring in benchmark.scorings}
    for number, replies in enumerate(sampled.replies):
        for name, each in marks[f"sampled: {number}"].items():
            for item, mark in zip(_those(items, replies), each, strict=True):
                by_item[name].setdefault(item.item_id, []).append(mark)
    asked = [item for item in items if any(item.item_id in replies for replies in sampled.replies)]
    ordered = {name: [each[item.item_id] for item in asked] for name, each in by_item.items()}
    return SampledScores(
        replies=len(sampled.replies),
        temperature=sampled.temperature,
        answered=sum(map(len, sampled.replies)),
        scores=sampled_cells(benchmark, asked, ordered, len(sampled.replies), confidence),
    )


def _control(
    benchmark: Benchmark[Any],
    items: Sequence[Item[Any]],
    replies: Mapping[str, str],
    marks: Marks,
    control: Mapping[str, str],
    control_marks: Marks,
    confidence: float,
) -> ControlScores:
    """Scores of the model on control videos, and the difference to those on the real ones for the
    same questions."""
    shared = _those(items, control)
    return ControlScores(
        questions=len(shared),
        scores=overall(benchmark, shared, control_marks, confidence),
        gain=overall_differences(benchmark, shared, _picked(replies, marks, shared), control_marks, confidence),
    )


def _compared(
    benchmark: Benchmark[Any],
    items: Sequence[Item[Any]],
    against: Path,
    replies: Mapping[str, str],
    marks: Marks,
    other: Mapping[str, str],
    other_marks: Marks,
    confidence: float,
) -> Against:
    shared = [item for item in items if item.item_id in replies and item.item_id in other]
    if not shared:
        raise PredictionError(
            "--against", "the two files of predictions have no question in common", "pass two that answer the same ones"
        )
    ours, theirs = _picked(replies, marks, shared), _picked(other, other_marks, shared)
    return Against(
        predictions=against.name,
        predictions_sha256=hashlib.sha256(against.read_bytes()).hexdigest(),
        shared=len(shared),
        differences=paired(benchmark, shared, ours, theirs, confidence),
    )


def _those(items: Sequence[Item[Any]], replies: Mapping[str, str]) -> list[Item[Any]]:
    return [item for item in items if item.item_id in replies]


def _picked(replies: Mapping[str, str], marks: Marks, items: Sequence[Item[Any]]) -> Marks:
    """Select the marks of these items; ``replies`` has the ids of ``marks``, in their order."""
    places = {item_id: position for position, item_id in enumerate(replies)}
    return {name: [each[places[item.item_id]] for item in items] for name, each in marks.items()}


def read_questions(name: str, path: Path) -> Questions[Any]:
    """Read the questions of a benchmark, and the rejects of its annotations.

    Raises:
        AnnotationError: the annotations are another benchmark's, which the message names, or
            damaged.
    """
    benchmark = BENCHMARKS[name]
    try:
        return benchmark.read(path)
    except AnnotationError as error:
        others = [other.name for other in BENCHMARKS.values() if other is not benchmark and _reads(other, path)]
        if not others:
            raise
        remedy = f"pass --benchmark {others[0]}, or the annotations of {benchmark.name}"
        problem = f"{error.problem} (these look like the annotations of {others[0]})"
        raise AnnotationError(error.field, problem, remedy) from error


def _reads(benchmark: Benchmark[Any], path: Path) -> bool:
    try:
        benchmark.read(path)
    except AnnotationError:
        return False
    return True


def _by_rule(benchmark: Benchmark[Any], items: Sequence[Item[Any]], replies: Mapping[str, str]) -> Marks:
    return {
        scoring.name: [scoring.mark(item, replies[item.item_id]) for item in items] for scoring in benchmark.by_rule
    }


def _by_judge(
    benchmark: Benchmark[Any], items: Sequence[Item[Any]], replies: Mapping[str, str], judge: Examiner
) -> Marks:
    return {
        scoring.name: [scoring.mark(item, replies[item.item_id], judge) for item in items]
        for scoring in benchmark.by_judge
    }
