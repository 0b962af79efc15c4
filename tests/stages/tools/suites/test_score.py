"""From predictions to a table: by hand on small cases, at an endpoint, and refused input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from flows.console.benchmarks import show_result
from stages.domain.core.replies import render_reply
from stages.domain.statistics.intervals import Design, mean_interval
from stages.lib.judging.batch import JudgeUnavailableError
from stages.params import OpenAIJudgeParams, Params
from stages.runtime.endpoint import client
from stages.tools.suites.markdown import as_markdown, roughly_judged
from stages.tools.suites.published.benchmark import Mark, PredictionError
from stages.tools.suites.published.registry import BENCHMARKS
from stages.tools.suites.published.table import baseline_replies, cells
from stages.tools.suites.results import BenchmarkEvaluation
from stages.tools.suites.score import score
from tests.support.judges.server import Asked, Fault, JudgeServer, judge_server
from tests.support.suites.annotations import (
    PARAMS,
    VDC,
    VDC_HARNESS,
    carebench,
    dream,
    lines,
    mvbench,
    predicted,
    samples,
    video_mme,
)


def scored(
    folder: Path, name: str, rows: list[Any], replies: dict[str, str], file: str = "a.jsonl", params: Params = PARAMS
) -> Any:
    return score(params, name, lines(folder / file, rows), predicted(folder, replies), baselines=True)


def mean(result: Any, scoring: str, measure: str) -> Any:
    return result.scores[scoring].overall[measure].mean


def test_video_mme_by_hand(tmp_path: Path) -> None:
    rows = [
        video_mme(),
        video_mme(question_id="001-2", answer="A"),
        video_mme(question_id="002-1", videoID="b", duration="long", answer="C"),
        video_mme(question_id="003-1", videoID="c", duration="long"),
    ]
    replies = {
        "001-1": render_reply("A is tempting.", "B"),  # VLMEvalKit reads the thinking
        "001-2": "",
        "002-1": (
            "Candles or Berries"
        ),  # two options strictly; a first capital letter, and a last one, for the harnesses
        "003-1": "The answer is B.",
    }
    result = scored(tmp_path, "video-mme", rows, replies)
    assert mean(result, "strict", "accuracy") == 50
    assert mean(result, "compat: VLMEvalKit", "accuracy") == 50  # 001-1 is read as A, 002-1 as C
    assert mean(result, "compat: lmms-eval", "accuracy") == 50  # the thinking is gone; 002-1 is read as B
    by = result.scores["strict"].by
    assert {value: cell["accuracy"].mean for value, cell in by["duration"].items()} == {"short": 50, "long": 50}
    assert set(by) == {"duration", "task", "domain"}
    assert (result.partial, result.missing, result.empty) == (False, [], ["001-2"])
    assert result.judge is None
    assert {who: cell["strict"]["accuracy"].items for who, cell in result.baselines.items()} == dict.fromkeys(
        ("random", "constant", "empty"), 4
    )
    assert result.baselines["constant"]["strict"]["accuracy"].mean == 50  # B twice
    assert result.baselines["empty"]["strict"]["accuracy"].mean == 0


def test_intervals_are_over_videos_as_in_the_rest_of_the_project(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"{i}", videoID=f"v{i // 3}") for i in range(60)]
    replies = {f"{i}": "B" if i % 7 < 4 else "C" for i in range(60)}
    cell = scored(tmp_path, "video-mme", rows, replies).scores["strict"].overall["accuracy"]
    values = np.array([float(i % 7 < 4) for i in range(60)])
    expected = mean_interval(values, Design.of([(f"v{i // 3}",) for i in range(60)]), PARAMS.evaluation.confidence)
    assert (cell.mean, cell.low, cell.high) == pytest.approx(tuple(100 * x for x in expected.model_dump().values()))


def test_mvbench_by_hand_and_what_harnesses_make_of_nothing(tmp_path: Path) -> None:
    replies = {"a/0": "", "a/1": "it rises", "a/2": "C"}
    result = scored(tmp_path, "mvbench", [mvbench(), mvbench(), mvbench()], replies)
    assert mean(result, "strict", "accuracy") == pytest.approx(100 / 3)
    # lmms-eval leaves the empty one out, and knows no words; VLMEvalKit takes the empty one for
    # right.
    assert mean(result, "compat: lmms-eval", "accuracy") == 0
    assert result.scores["compat: lmms-eval"].overall["accuracy"].left_out == 1
    assert mean(result, "compat: VLMEvalKit", "accuracy") == pytest.approx(200 / 3)
    empty = result.baselines["empty"]
    assert empty["strict"]["accuracy"].mean == 0
    assert empty["compat: VLMEvalKit"]["accuracy"].mean == 100
    assert empty["compat: lmms-eval"]["accuracy"].mean is None


def test_two_candidates_that_are_the_same_are_both_right(tmp_path: Path) -> None:
    rows = [mvbench(candidates=["it rises", "it falls", "it rises"])] * 2
    result = scored(tmp_path, "mvbench", rows, {"a/0": "A", "a/1": "C"})
    assert mean(result, "strict", "accuracy") == 100


def test_dream_1k_by_hand(tmp_path: Path) -> None:
    rows = [
        dream(),
        dream(idx=2, video_file="video/2.mp4", description="the blue circle falls", events=["the blue circle falls"]),
        dream(idx=3, video_file="video/3.mp4", source="stock"),
    ]
    replies = {"1": "the red bar rises", "2": "the blue circle falls then the blue circle shrinks", "3": ""}
    result = scored(tmp_path, "dream-1k", rows, replies)
    # Recall 1/2, 1, 0; precision 1, 1/2, 0: the harmonic mean of the means.
    assert mean(result, "strict", "F1") == pytest.approx(50)
    # No event: precision 1. Sources first: recall (3/4 + 0) / 2, precision (3/4 + 1) / 2.
    assert mean(result, "compat: tarsier", "F1") == pytest.approx(100 * 2 * 0.375 * 0.875 / 1.25)
    assert result.judge["name"] == "rule"
    assert roughly_judged(result) is not None
    beside = {"model": "m", "identity": {}, "unanswered": [], "replaced": {}, "controls_asked": "none"}
    page = as_markdown(BenchmarkEvaluation(**dict(result), **beside))
    assert "**Rough.** Judged by the rule judge" in page
    printed = Console(record=True, width=400)
    show_result(printed, result)
    assert "rough: Judged by the rule judge" in printed.export_text()
    assert all(
        roughly_judged(result.model_copy(update={"judge": judge})) is None for judge in (None, {"kind": "openai"})
    )
    thought = scored(tmp_path, "dream-1k", rows[:1], {"1": render_reply("what is it", "the red bar rises then grows")})
    assert mean(thought, "strict", "F1") == 100
    assert mean(thought, "compat: tarsier", "F1") < 100


def test_carebench_and_vdc_by_hand(tmp_path: Path) -> None:
    care = scored(tmp_path, "carebench", [carebench()], {"v.mp4": "the red bar falls"})
    assert mean(care, "strict", "action F1") == 0
    assert mean(care, "strict", "object F1") == 100
    listed = scored(tmp_path, "carebench", [carebench(events=None, objects=None)], {"v.mp4": "the red bar rises"})
    assert mean(listed, "strict", "action F1") == mean(listed, "strict", "object F1") == 100
    vdc = scored(tmp_path, "vdc", [VDC], {"camera/v1": "the red bar falls"}, file="camera.jsonl")
    assert (mean(vdc, "strict", "accuracy"), mean(vdc, "strict", "score")) == (50, 2.5)
    assert list(vdc.scores["strict"].by["kind"]) == ["camera"]


def test_our_own_tests_by_hand(tmp_path: Path) -> None:
    rows = samples("dark_event_infer")
    says = [
        render_reply("x", rows[0]["reference"]),
        rows[1]["reference"],
        "the red bar moves",
        render_reply("x", "or so"),
    ]
    replies = dict(zip((row["sample_id"] for row in rows), says, strict=True))
    result = scored(tmp_path, "dark-event-infer-test", rows, replies)
    measure = "mean judge score x 100"
    # 2, 2, another subject's vague verb 0, and no event 0.
    assert rows[2]["reference"].startswith("the blue circle")
    assert mean(result, "strict", measure) == 100
    assert mean(result, "compat: VidBridge-R1", measure) == 50, (
        "the released code reads the two with think and answer blocks only"
    )


def test_replies_without_a_verdict_are_in_no_mean_and_are_counted(tmp_path: Path) -> None:
    rows = [dream(idx=i, video_file=f"{i}.mp4", source="a" if i < 3 else "b") for i in range(4)]
    benchmark = BENCHMARKS["dream-1k"]
    items = benchmark.read(lines(tmp_path / "a.jsonl", rows)).items
    full, none = Mark({"recall": 1.0, "precision": 0.5}), Mark({"recall": 0.0, "precision": 0.0})
    marks = [full, Mark(None), none, Mark(None)]
    table = cells(benchmark, items, {scoring.name: marks for scoring in benchmark.scorings}, 0.95)
    for scoring in table.values():
        # Source b has no verdict at all: it is in no mean over sources either.
        recall = scoring.overall["recall"]
        assert recall.model_dump(exclude={"low", "high"}) == {
            "mean": 50,
            "items": 4,
            "units": 2,
            "unjudged": 2,
            "left_out": 0,
        }
        assert (recall.low, recall.high) == pytest.approx((1.3, 98.7), abs=0.1), "one of two"
        assert scoring.overall["F1"].mean == pytest.approx(100 * 2 * 0.5 * 0.25 / 0.75)
        assert scoring.by["source"]["b"]["recall"].mean is None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[JudgeServer]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    with judge_server() as running:
        running.says = {
            "objects": lambda asked: {"objects": asked.inside["description"].split(" then ")},
            "shows": lambda asked: {"reason": "", "seen": asked.inside["object"] in asked.inside["description"]},
            "answer_from": lambda asked: {
                "answer": asked.inside["description"] if "moves" in asked.before["question"] else ""
            },
            "agrees": _agrees,
        }
        for key, value in running.environment(
            VIDBRIDGE_JUDGE_CACHE=str(tmp_path / "judge"), VIDBRIDGE_JUDGE_RETRIES="1"
        ).items():
            monkeypatch.setenv(key, value)
        yield running


def _agrees(asked: Asked) -> dict[str, Any]:
    right = asked.before["reference"] in asked.inside["answer"]
    return {"reason": "", "right": right, "marks": 4 if right else 1}


JUDGE = OpenAIJudgeParams(
    kind="openai", model="referee", revision="r1", temperature=0.0, max_tokens=200, seed=0, max_unavailable=0.25
)
ASKING = PARAMS.model_copy(update={"judge": JUDGE})


def test_an_endpoint_judges_captions_and_nothing_is_asked_twice(tmp_path: Path, server: JudgeServer) -> None:
    vdc = scored(tmp_path, "vdc", [VDC], {"camera/v1": "the red bar rises"}, file="camera.jsonl", params=ASKING)
    assert server.wrong == []
    # "How?" is not answered: it is wrong, and no match is asked for.
    assert (mean(vdc, "strict", "accuracy"), mean(vdc, "strict", "score")) == (50, 2.0)
    assert vdc.judge["name"] == "referee@r1"
    assert vdc.judge["revision"] == "r1"
    assert {asked.inside["answer"] for asked in server.asked if asked.kind == "agrees"} >= {"the red bar rises"}
    assert "" not in {asked.inside["answer"] for asked in server.asked if asked.kind == "agrees"}
    assert max(server.times_asked().values()) == 1
    before = server.requests
    assert (
        scored(tmp_path, "vdc", [VDC], {"camera/v1": "the red bar rises"}, file="camera.jsonl", params=ASKING).scores
        == vdc.scores
    )
    assert server.requests == before, "every verdict was kept"
    care = scored(
        tmp_path, "carebench", [carebench(objects=["red bar"])], {"v.mp4": "the red bar rises"}, params=ASKING
    )
    assert mean(care, "strict", "action F1") == mean(care, "strict", "object F1") == 100
    dream_1k = scored(
        tmp_path, "dream-1k", [dream(events=[dream()["description"]])], {"1": dream()["description"]}, params=ASKING
    )
    assert mean(dream_1k, "strict", "recall") == 0, "this judge splits the caption, and the event is none of its parts"


def test_a_judge_that_is_down_scores_nothing(tmp_path: Path, server: JudgeServer) -> None:
    server.always = Fault(status=503)
    with pytest.raises(JudgeUnavailableError, match=r"judge\.max_unavailable: vdc, predictions\.jsonl: 1 of 1 replies"):
        scored(tmp_path, "vdc", [VDC], {"camera/v1": "the red bar rises"}, file="camera.jsonl", params=ASKING)


def test_a_judge_that_goes_down_before_the_baselines_are_judged_gives_no_baseline(
    tmp_path: Path, server: JudgeServer
) -> None:
    annotations = lines(tmp_path / "camera.jsonl", [VDC])
    replies = predicted(tmp_path, {"camera/v1": "the red bar rises and falls"})
    score(ASKING, "vdc", annotations, replies, baselines=False)
    server.always = Fault(status=503)
    assert score(ASKING, "vdc", annotations, replies, baselines=False).answered == 1, "its verdicts were kept"
    with pytest.raises(JudgeUnavailableError, match=r"judge\.max_unavailable: vdc, random: 1 of 1 replies"):
        score(ASKING, "vdc", annotations, replies, baselines=True)


@pytest.mark.parametrize(
    ("name", "row", "other"),
    [
        ("dream-1k", dream(), dream(events=["the red bar rises"])),
        ("carebench", carebench(), carebench(objects=["blue bar"])),
        ("vdc", VDC_HARNESS, {**VDC_HARNESS, "qa_list": VDC_HARNESS["qa_list"][:1]}),
    ],
)
def test_what_is_scored_by_is_in_the_digest(
    tmp_path: Path, name: str, row: dict[str, Any], other: dict[str, Any]
) -> None:
    digests = set()
    for number, each in enumerate((row, other)):
        annotations = lines(tmp_path / str(number) / "camera.jsonl", [each])
        [item] = BENCHMARKS[name].read(annotations).items
        replies = predicted(tmp_path, {item.item_id: "the red bar rises"})
        digests.add(score(PARAMS, name, annotations, replies, baselines=False).digest)
    assert len(digests) == 2


def test_a_random_description_is_another_ones(tmp_path: Path) -> None:
    rows = [dream(idx=i, description=f"the bar number {i} rises") for i in range(5)]
    items = BENCHMARKS["dream-1k"].read(lines(tmp_path / "a.jsonl", rows)).items
    for seed in range(20):
        drawn = baseline_replies(items, seed)["random"]
        assert not any(reply == item.truth for reply, item in zip(drawn, items, strict=True))
        assert set(drawn) <= {item.truth for item in items}
    assert len({tuple(baseline_replies(items, seed)["random"]) for seed in range(20)}) > 10


def test_missing_predictions_are_listed_and_the_result_is_partial(tmp_path: Path) -> None:
    rows = [video_mme(question_id=str(i)) for i in range(4)]
    result = scored(tmp_path, "video-mme", rows, {"0": "B", "2": "B"})
    assert (result.partial, result.missing, result.answered, result.questions) == (True, ["1", "3"], 2, 4)
    whole = scored(tmp_path, "video-mme", rows, dict.fromkeys("0123", "B"))
    assert not whole.partial
    assert whole.digest == result.digest, "the digest is of the benchmark, not of the replies"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "0", "reply": "B"}\n{"id": "0", "reply": "C"}\n', r"predictions.jsonl:2: id: '0' is in line 1 too"),
        ('{"id": "9", "reply": "B"}\n', "id: '9' is not a question of these annotations; ids are written like '0'"),
        ('{"id": 0, "reply": "B"}\n', "id: 0 is not text; write it in quotes"),
        ('{"id": "0", "reply": null}\n', "reply: None is not text"),
        ('{"id": "0", "reply": ["B"]}\n', r"reply: \['B'\] is not text"),
        ('{"id": "0", "prediction": "B"}\n', "reply: missing; the line has id, prediction"),
        ('{"question": "0", "reply": "B"}\n', "id: missing"),
        ('[{"id": "0", "reply": "B"}]\n', "is not an object; write one object a line"),
        ("id,reply\n0,B\n", "1: not JSON"),
        (json.dumps({"id": "0", "reply": "B" * 100_001}) + "\n", "reply: 100,001 characters, at most 100,000 are read"),
        ("", "holds no reply"),
        ('{"id": "0", "reply": " "}\n{"id": "1", "reply": ""}\n', "all 2 replies are empty; nothing was scored"),
    ],
)
def test_predictions_that_cannot_be_used_are_refused_whole(tmp_path: Path, text: str, said: str) -> None:
    annotations = lines(tmp_path / "a.jsonl", [video_mme(question_id=str(i)) for i in range(2)])
    file = tmp_path / "predictions.jsonl"
    file.write_text(text)
    with pytest.raises(PredictionError, match=said):
        score(PARAMS, "video-mme", annotations, file, baselines=False)


def test_every_kind_of_fault_is_told_once_and_counted(tmp_path: Path) -> None:
    annotations = lines(tmp_path / "a.jsonl", [video_mme(question_id=str(i)) for i in range(2)])
    rows = [{"id": f"x{i}", "reply": "B"} for i in range(2000)] + [{"id": "0", "reply": "B"}, {"id": "0", "reply": "B"}]
    with pytest.raises(
        PredictionError, match=r"'x0' is not a question(.|\n)*and 1,999 more such lines(.|\n)*:2002: id: '0' is in line"
    ) as error:
        score(PARAMS, "video-mme", annotations, lines(tmp_path / "p.jsonl", rows), baselines=False)
    assert len(str(error.value).splitlines()) == 3
    with pytest.raises(PredictionError, match=r"none\.jsonl: No such file"):
        score(PARAMS, "video-mme", annotations, tmp_path / "none.jsonl", baselines=False)
    (tmp_path / "raw").write_bytes(b"\xff\xfe")
    with pytest.raises(PredictionError, match="not UTF-8"):
        score(PARAMS, "video-mme", annotations, tmp_path / "raw", baselines=False)
