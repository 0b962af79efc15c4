"""Published annotation files: their rows, and errors for other files."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.tools.suites.published.benchmark import AnnotationError
from stages.tools.suites.published.registry import BENCHMARKS
from stages.tools.suites.score import read_questions, score
from tests.support.siblings import ANNOTATIONS, needs_annotations
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
    tarsier,
    video_mme,
)

TEXTS = PARAMS.prompt


def test_video_mme_is_read_from_parquet_as_published(tmp_path: Path) -> None:
    rows = [video_mme(), video_mme(question_id="001-2", answer="D")]
    (tmp_path / "videomme").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "videomme/test-00000-of-00001.parquet")
    benchmark = BENCHMARKS["video-mme"]
    items = benchmark.read(tmp_path).items
    assert [item.item_id for item in items] == ["001-1", "001-2"]
    assert items[0].options == ("Apples.", "Candles.", "Berries.", "Three kinds of fruit.")
    assert items[0].categories == {"duration": "short", "task": "Counting Problem", "domain": "Knowledge"}
    asked = benchmark.prompt(items[0], TEXTS)
    assert asked.startswith("What is on the table?")
    assert "Candles. B" in asked, "options are written as params.yaml says"
    assert items[0].frames.model_dump() == {"fps": "1", "frames": 128}


def test_mvbench_is_a_folder_of_tasks_whose_rows_have_no_id(tmp_path: Path) -> None:
    for task in ("action_antonym", "state_change"):
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / f"json/{task}.json").write_text(json.dumps([mvbench(), mvbench(answer="it falls")]))
    items = BENCHMARKS["mvbench"].read(tmp_path).items
    assert [item.item_id for item in items] == [
        "action_antonym/0",
        "action_antonym/1",
        "state_change/0",
        "state_change/1",
    ]
    assert [item.truth for item in items[:2]] == ["B", "A"]
    assert items[0].video != items[2].video, "equal names in different tasks are different videos"


@pytest.mark.parametrize(
    ("task", "videos"),
    [
        ("unexpected_action", ("test_humor/H_T_471_0340_0411.mp4", "test_humor/H_T_471_0012_0099.mp4")),
        ("episodic_reasoning", ("friends_s06e15-16_seg02_clip_20", "friends_s06e15-16_seg01_clip_03")),
        ("scene_transition", ("Top010_04755.mp4", "Top010_00430.mp4")),
        ("fine_grained_pose", ("S010C002P017R002A005_rgb.avi", "S010C001P017R002A005_rgb.avi")),
    ],
)
def test_parts_of_one_recording_are_one_unit_of_mvbench(tmp_path: Path, task: str, videos: tuple[str, str]) -> None:
    other = "of_another_film.mp4"
    rows = [mvbench(video=video) for video in (*videos, other)]
    (tmp_path / f"{task}.json").write_text(json.dumps(rows))
    first, second, third = BENCHMARKS["mvbench"].read(tmp_path / f"{task}.json").items
    assert first.video != second.video
    assert first.units == second.units != third.units


def test_dream_1k_is_read_in_both_published_forms(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps([dream(events=json.dumps(dream()["events"]))]))
    lines(tmp_path / "DREAM-1k.jsonl", [tarsier(1, dream()["description"], dream()["events"])])
    benchmark = BENCHMARKS["dream-1k"]
    first, second = benchmark.read(tmp_path / "metadata.json").items, benchmark.read(tmp_path / "DREAM-1k.jsonl").items
    assert first == second
    assert first[0].item_id == "1"
    assert first[0].frames.frames == 16


@pytest.mark.parametrize("row", [VDC, VDC_HARNESS], ids=["published", "harness"])
def test_vdc_is_read_in_both_published_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    lines(tmp_path / "VDCScore_qa/camera.jsonl", [row])
    lines(tmp_path / "VDCScore_qa/short.jsonl", [row])
    items = BENCHMARKS["vdc"].read(tmp_path).items
    assert [item.item_id for item in items] == ["camera/v1", "short/v1"]
    assert len({BENCHMARKS["vdc"].prompt(item, TEXTS) for item in items}) == 2
    with pytest.raises(AnnotationError, match="does not name a kind of caption"):
        BENCHMARKS["vdc"].read(lines(tmp_path / "other.jsonl", [row]))


def test_our_own_tests_are_the_held_out_samples(tmp_path: Path) -> None:
    rows = samples("mix_vid_qa")
    file = lines(tmp_path / "samples/test/mix_vid_qa.jsonl", rows)
    items = BENCHMARKS["mix-vid-qa-test"].read(tmp_path).items
    assert [item.item_id for item in items] == [row["sample_id"] for row in rows]
    lines(file, [{**row, "split": "train"} for row in rows])
    with pytest.raises(AnnotationError, match=r"split 'train': needs 'mix_vid_qa' of split 'test'"):
        BENCHMARKS["mix-vid-qa-test"].read(file)


#: One row of each benchmark, in a file of its published name.
ROWS: dict[str, tuple[str, Any]] = {
    "video-mme": ("videomme.jsonl", video_mme()),
    "mvbench": ("action_antonym.jsonl", mvbench()),
    "dream-1k": ("metadata.json", dream()),
    "vdc": ("camera.jsonl", VDC),
    "carebench": ("metadata.json", carebench()),
    "dark-event-infer-test": ("dark_event_infer.jsonl", samples("dark_event_infer")[0]),
    "mix-vid-qa-test": ("mix_vid_qa.jsonl", samples("mix_vid_qa")[0]),
}


@pytest.mark.parametrize("mine", BENCHMARKS)
def test_annotations_of_another_benchmark_are_recognised(tmp_path: Path, mine: str) -> None:
    name, row = ROWS[mine]
    file = lines(tmp_path / name, [row])
    assert len(BENCHMARKS[mine].read(file).items) == 1
    for other in BENCHMARKS:
        if other != mine:
            with pytest.raises(
                AnnotationError, match=rf"look like the annotations of {mine}\); pass --benchmark {mine}"
            ):
                score(PARAMS, other, file, tmp_path / "none.jsonl", baselines=False)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            video_mme(options=["Apples", "Candles", "Berries", "Fruit"]),
            r"row 1: options: option 'Apples' does not begin with A\.",
        ),
        (video_mme(answer="E"), r"row 1: answer: .*\(value 'E'\)"),
        (video_mme(question=None), "row 1: question: .*value None"),
        (
            {key: value for key, value in video_mme().items() if key != "duration"},
            "duration: missing; the row has video_id",
        ),
        (["no", "object"], "the row"),
    ],
)
def test_a_broken_row_is_set_aside_with_field_and_value(tmp_path: Path, row: Any, said: str) -> None:
    found = BENCHMARKS["video-mme"].read(
        lines(tmp_path / "a.jsonl", [row, video_mme(question_id="2"), video_mme(question_id="3")])
    )
    assert [item.item_id for item in found.items] == ["2", "3"]
    [reject] = found.set_aside
    assert (reject.item, reject.reason) == ("a.jsonl row 1", "unusable-row")
    assert re.search(said, reject.detail)
    with pytest.raises(AnnotationError, match=said):
        BENCHMARKS["video-mme"].read(lines(tmp_path / "b.jsonl", [row, row, video_mme(question_id="2")]))


def test_a_line_that_is_no_json_is_set_aside_like_any_row(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", [video_mme(question_id=f"{i}") for i in range(3)])
    file.write_text(file.read_text() + '{"question_id": "3", "ans')
    found = BENCHMARKS["video-mme"].read(file)
    assert len(found.items) == 3
    assert "a.jsonl:4: not JSON" in found.set_aside[0].detail


def test_of_two_rows_of_one_id_the_first_counts(tmp_path: Path) -> None:
    found = BENCHMARKS["video-mme"].read(lines(tmp_path / "a.jsonl", [video_mme(), video_mme(), video_mme(answer="C")]))
    assert [item.truth for item in found.items] == ["B"]
    assert [(reject.item, reject.reason) for reject in found.set_aside] == [
        ("a.jsonl row 2", "repeated-id"),
        ("a.jsonl row 3", "repeated-id"),
    ]
    assert "with the same" in found.set_aside[0].detail
    assert "with other words" in found.set_aside[1].detail


def test_rows_shaped_like_published_odd_ones_are_set_aside_and_never_scored(tmp_path: Path) -> None:
    """The kinds that MVBench, VDC and DREAM-1K have been published with."""
    mv = [
        mvbench(),
        mvbench(candidates=["it rises"]),
        mvbench(start=1.0),
        mvbench(answer="it shrinks"),
        mvbench(),
        mvbench(),
        mvbench(),
    ]
    annotations = lines(tmp_path / "counterfactual_inference.jsonl", mv)
    ids = [f"counterfactual_inference/{i}" for i in range(7)]
    result = score(PARAMS, "mvbench", annotations, predicted(tmp_path, dict.fromkeys(ids, "A")), baselines=True)
    assert (result.questions, result.answered, result.partial) == (4, 4, False)
    assert [row.item for row in result.set_aside] == [f"counterfactual_inference.jsonl row {i}" for i in (2, 3, 4)]
    assert result.not_scored == ids[1:4], "replies to them are no fault of the predictions"
    assert result.scores["strict"].overall["accuracy"].items == 4
    assert result.baselines["constant"]["strict"]["accuracy"].mean == 100

    empty = {"question": "", "answer": "", "category": ""}
    other = [{"question": "Where?", "answer": "outside"}]
    vdc = [
        {"v1": [*VDC["v1"], empty]},
        {"v2": VDC["v1"]},
        {"v2": VDC["v1"]},
        {"v3": other},
        {"v3": VDC["v1"]},
        {"v4": [empty]},
    ]
    found = BENCHMARKS["vdc"].read(lines(tmp_path / "short.jsonl", vdc))
    assert [(item.item_id, len(item.row.qa_list)) for item in found.items] == [
        ("short/v1", 2),
        ("short/v2", 2),
        ("short/v3", 1),
    ]
    assert [(reject.item, reject.reason) for reject in found.set_aside] == [
        ("short.jsonl row 1: qa_list.2", "blank-part"),
        ("short.jsonl row 6: qa_list.0", "blank-part"),
        ("short.jsonl row 3", "repeated-id"),
        ("short.jsonl row 5", "repeated-id"),
        ("short.jsonl row 6", "unusable-row"),
    ]
    assert found.not_asked == {"short/v4"}

    told = BENCHMARKS["dream-1k"].read(lines(tmp_path / "DREAM-1k.jsonl", [tarsier(1, "it rises", ["it rises", " "])]))
    assert told.items[0].row.events == ["it rises"]
    assert [reject.item for reject in told.set_aside] == ["DREAM-1k.jsonl row 1: extra_info.events.1"]
    care = BENCHMARKS["carebench"].read(
        lines(tmp_path / "metadata.json", [carebench(objects=["", "red bar"]), carebench(video="w")])
    )
    assert [item.row.objects for item in care.items] == [["red bar"], ["red bar"]]


VDC_FILES: list[tuple[str, int, dict[str, int]]] = [
    ("background", 70, {}),
    ("camera", 70, {}),
    ("detailed", 71, {"blank-part": 1}),
    ("main_object", 74, {"repeated-id": 4}),
    ("short", 72, {"blank-part": 2}),
]


@needs_annotations
@pytest.mark.parametrize(
    ("name", "place", "questions", "reasons"),
    [
        ("mvbench", "mvbench", 3995, {"unusable-row": 5}),
        *(("vdc", f"vdc/{kind}.jsonl", count, aside) for kind, count, aside in VDC_FILES),
        ("vdc", "vdc/made/VDC_harness.jsonl", None, {}),
        ("dream-1k", "dream_1k", 203, {}),
        ("carebench", "carebench", 4, {}),
        ("video-mme", "video_mme", 12, {}),
    ],
)
def test_published_annotations_load(name: str, place: str, questions: int | None, reasons: dict[str, int]) -> None:
    if questions is None:
        with pytest.raises(AnnotationError, match="does not name a kind of caption"):
            read_questions(name, ANNOTATIONS / place)
        return
    found = read_questions(name, ANNOTATIONS / place)
    assert (len(found.items), dict(Counter(reject.reason for reject in found.set_aside))) == (questions, reasons)
    assert len({item.item_id for item in found.items}) == questions
    if name == "mvbench":
        assert sorted(found.not_asked) == [f"counterfactual_inference/{i}" for i in (111, 137, 162, 81, 98)]
        assert len({item.units for item in found.items}) < 3700, "some files are asked about in several tasks"
        kinds = ("unexpected_action", "episodic_reasoning", "scene_transition", "fine_grained_pose", "action_antonym")
        units = Counter(item.categories["task"] for item in {item.units: item for item in found.items}.values())
        files = {kind: {item.video for item in found.items if item.categories["task"] == kind} for kind in kinds}
        told = {kind: (len(files[kind]), units[kind]) for kind in kinds}
        assert told == {
            "unexpected_action": (179, 127),
            "episodic_reasoning": (166, 148),
            "scene_transition": (200, 60),
            "fine_grained_pose": (200, 195),
            "action_antonym": (200, 200),
        }, "files, and the recordings that they are of"


def test_files_that_cannot_be_read_are_one_message(tmp_path: Path) -> None:
    read = BENCHMARKS["video-mme"].read
    with pytest.raises(AnnotationError, match="no such file or folder"):
        read(tmp_path / "none")
    with pytest.raises(AnnotationError, match=r"holds none of test-\*\.parquet"):
        read(tmp_path)
    (tmp_path / "cut.json").write_text('[{"video_id": "001",')
    with pytest.raises(AnnotationError, match=r"cut.json:1: not JSON"):
        read(tmp_path / "cut.json")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(AnnotationError, match="not Parquet"):
        read(tmp_path / "cut.parquet")
    with pytest.raises(AnnotationError, match="holds no row"):
        read(lines(tmp_path / "empty.jsonl", []))
