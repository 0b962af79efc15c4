"""Sampled replies beside the greedy ones: of no batch, kept on disk, and scored over videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.domain.statistics.intervals import Design, mean_interval
from stages.lib.inference.generate import rollouts
from stages.lib.models.load import load_model, save_model
from stages.params import Params, SampledParams
from stages.tools.suites.asking import EvaluationRequest, model_engine
from stages.tools.suites.engines.questions import EngineError
from stages.tools.suites.evaluate import evaluate
from stages.tools.suites.frames import load_at
from stages.tools.suites.markdown import as_markdown
from stages.tools.suites.published.benchmark import Mark
from stages.tools.suites.published.registry import BENCHMARKS
from stages.tools.suites.results import metrics_of
from stages.tools.suites.sampled import sampled_cells
from stages.tools.suites.score import read_questions
from stages.tracking.session import Session
from tests.support.suites.coloured import about_colours, captions, order, replies
from tests.support.training.tiny import tiny


def ask(root: Path, params: Params, given: EvaluationRequest, model: Path) -> Any:
    engine = model_engine(Session(root), params, given, str(model), None)
    return evaluate(root, params, given, engine, baselines=False, against=None)


def drawn(count: int, temperature: float = 1.3) -> SampledParams:
    return SampledParams(replies=count, temperature=temperature)


def on_disk(folder: Path) -> dict[tuple[str, int], str]:
    rows = [json.loads(line) for line in (folder / "predictions_sampled.jsonl").read_text().splitlines()]
    found = {(row["id"], row["number"]): row["reply"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.slow
def test_sampled_replies_depend_on_their_question_and_number_alone(
    root: Path, params: Params, videos: Path, tmp_path: Path
) -> None:
    model, processor = tiny("qwen2_5_vl")  # a random start: its replies differ
    save_model(model, processor, tmp_path / "model")
    annotations = about_colours(tmp_path, 2, "gone")
    wanted = {"max_new_tokens": 6, "controls": 0}
    plain = order(annotations, videos, tmp_path / "plain", **wanted)
    ask(root, params, plain, tmp_path / "model")
    given = order(annotations, videos, tmp_path / "out", sampled=drawn(2), batch_size=3, **wanted)
    result = ask(root, params, given, tmp_path / "model")
    assert replies(tmp_path / "out") == replies(tmp_path / "plain"), "greedy replies are those of an evaluation without"
    assert not (tmp_path / "plain/predictions_sampled.jsonl").exists()
    assert {row.view for row in result.unanswered if row.video == "gone"} == {"video", "sampled"}

    # A later call asks for more, in other batches: the first ones stay, and none is asked again.
    first = (tmp_path / "out/predictions_sampled.jsonl").read_bytes()
    more = order(annotations, videos, tmp_path / "out", sampled=drawn(4), batch_size=7, **wanted)
    result = ask(root, params, more, tmp_path / "model")
    assert (tmp_path / "out/predictions_sampled.jsonl").read_bytes().startswith(first)
    found = on_disk(tmp_path / "out")
    assert len(found) == 4 * 6
    assert len(set(found.values())) > 12
    items = [item for item in read_questions("video-mme", annotations).items if item.video != "gone"]
    whole, processor = load_model(tmp_path / "model", "fp32")
    expected = rollouts(
        whole,
        processor,
        [
            (
                BENCHMARKS["video-mme"].prompt(item, params.prompt),
                load_at(videos / "deep" / f"{item.video}.mp4", item.frames.fps, 128, None),
            )
            for item in items
        ],
        [f"{params.seed}/{item.item_id}" for item in items],
        count=4,
        max_new_tokens=6,
        temperature=1.3,
        batch_size=1,
    )
    for item, group in zip(items, expected, strict=True):
        assert [found[item.item_id, number] for number in range(4)] == group
    sampled = result.sampled
    assert (sampled.replies, sampled.temperature, sampled.answered) == (4, 1.3, 24)
    assert set(sampled.scores["strict"]["accuracy"].pass_at) == {2, 4}
    assert sampled.scores["strict"]["accuracy"].mean.items == 24
    assert "| pass@4 | 24 |" in as_markdown(result)
    with pytest.raises(EngineError, match=r"differs in sampled"):
        ask(
            root,
            params,
            order(annotations, videos, tmp_path / "out", sampled=drawn(4, 0.5), **wanted),
            tmp_path / "model",
        )


def test_means_and_the_best_of_k_have_videos_as_units(tmp_path: Path) -> None:
    """Six questions about three videos; the marks are made up."""
    benchmark = BENCHMARKS["video-mme"]
    items = read_questions("video-mme", about_colours(tmp_path, 2)).items
    right = [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0]]
    (measure,) = benchmark.measures
    marks = {
        scoring.name: [[Mark({measure.parts[0]: float(value)}) for value in row] for row in right]
        for scoring in benchmark.scorings
    }
    marks["strict"][0][1] = Mark(None)  # the judge was away
    found = sampled_cells(benchmark, items, marks, 4, 0.95)["strict"][measure.name]
    design = Design.of([item.units for item in items])
    means = mean_interval(np.array([1 / 3, 0, 0.25, 1, 0.25, 0.75]), design, 0.95)
    assert (found.mean.mean, found.mean.low, found.mean.high) == pytest.approx(
        (100 * means.mean, 100 * means.low, 100 * means.high)
    )
    assert (found.mean.items, found.mean.unjudged, found.mean.units) == (24, 1, 3)
    # 1 - C(n - c, 2) / C(n, 2)
    pairs = [1 - 1 / 3, 0, 1 - 3 / 6, 1, 1 - 3 / 6, 1]
    assert found.pass_at[2].mean == pytest.approx(100 * np.mean(pairs))
    assert found.pass_at[4].mean == pytest.approx(100 * np.mean([0, 1, 1, 1, 1])), "the first has three judged replies"
    names = metrics_of_sampled(found)
    assert names["sampled/pass_at_4/strict/accuracy"] == found.pass_at[4].mean


def metrics_of_sampled(cells: Any) -> dict[str, float]:
    from stages.tools.suites.results import BenchmarkScores, SampledScores

    sampled = SampledScores(replies=4, temperature=1.0, answered=24, scores={"strict": {"accuracy": cells}})
    bare = BenchmarkScores.model_construct(
        answered=6, questions=6, scores={}, baselines={}, controls={}, sampled=sampled
    )
    return metrics_of(bare)


def test_a_measure_that_no_reply_has_has_no_best_one(tmp_path: Path) -> None:
    """F1 of mean recall and mean precision."""
    benchmark = BENCHMARKS["dream-1k"]
    items = read_questions("dream-1k", captions(tmp_path)).items
    measure = next(measure for measure in benchmark.measures if len(measure.parts) == 2)
    parts = [(0.5, 1.0), (0.0, 0.5)]
    marks = {
        scoring.name: [
            [
                Mark(
                    {part: 0.0 for each in benchmark.measures for part in each.parts}
                    | dict(zip(measure.parts, pair, strict=True))
                )
                for pair in parts
            ]
        ]
        * len(items)
        for scoring in benchmark.scorings
    }
    found = next(iter(sampled_cells(benchmark, items, marks, 2, 0.95).values()))[measure.name]
    assert found.pass_at == {}
    recall, precision = 0.25, 0.75
    assert found.mean.mean == pytest.approx(measure.scale * 2 * recall * precision / (recall + precision))
