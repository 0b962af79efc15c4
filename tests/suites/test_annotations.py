"""Published annotation files: what is read, and what is said of files that are not those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from suite_files import VDC, VDC_HARNESS, carebench, dream, lines, mvbench, samples, tarsier, video_mme

from stages.params import load_params
from stages.score import score
from stages.suites.benchmark import AnnotationError
from stages.suites.known import BENCHMARKS

PARAMS = load_params(Path(__file__).parents[2] / "infra/recipes/tiny.yaml")
TEXTS = PARAMS.prompt


def test_video_mme_is_read_from_parquet_as_published(tmp_path: Path) -> None:
    rows = [video_mme(), video_mme(question_id="001-2", answer="D")]
    (tmp_path / "videomme").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "videomme/test-00000-of-00001.parquet")
    benchmark = BENCHMARKS["video-mme"]
    items = benchmark.read(tmp_path)
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
    items = BENCHMARKS["mvbench"].read(tmp_path)
    assert [item.item_id for item in items] == ["action_antonym/0", "action_antonym/1", "state_change/0", "state_change/1"]
    assert [item.truth for item in items[:2]] == ["B", "A"]
    assert items[0].video != items[2].video, "equal names in different tasks are different videos"


def test_dream_1k_is_read_in_both_published_forms(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps([dream(events=json.dumps(dream()["events"]))]))
    lines(tmp_path / "DREAM-1k.jsonl", [tarsier(1, dream()["description"], dream()["events"])])
    benchmark = BENCHMARKS["dream-1k"]
    first, second = benchmark.read(tmp_path / "metadata.json"), benchmark.read(tmp_path / "DREAM-1k.jsonl")
    assert first == second
    assert first[0].item_id == "1"
    assert first[0].frames.frames == 16


@pytest.mark.parametrize("row", [VDC, VDC_HARNESS], ids=["published", "harness"])
def test_vdc_is_read_in_both_published_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    lines(tmp_path / "VDCScore_qa/camera.jsonl", [row])
    lines(tmp_path / "VDCScore_qa/short.jsonl", [row])
    items = BENCHMARKS["vdc"].read(tmp_path)
    assert [item.item_id for item in items] == ["camera/v1", "short/v1"]
    assert len({BENCHMARKS["vdc"].prompt(item, TEXTS) for item in items}) == 2
    with pytest.raises(AnnotationError, match="tells no kind of caption"):
        BENCHMARKS["vdc"].read(lines(tmp_path / "other.jsonl", [row]))


def test_our_own_tests_are_the_held_out_samples(tmp_path: Path) -> None:
    rows = samples("mix_vid_qa")
    file = lines(tmp_path / "samples/test/mix_vid_qa.jsonl", rows)
    items = BENCHMARKS["mix-vid-qa-test"].read(tmp_path)
    assert [item.item_id for item in items] == [row["sample_id"] for row in rows]
    lines(file, [{**row, "split": "train"} for row in rows])
    with pytest.raises(AnnotationError, match=r"split 'train': needs 'mix_vid_qa' of split 'test'"):
        BENCHMARKS["mix-vid-qa-test"].read(file)


#: One row of each, in a file of the name that it is published under.
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
    assert len(BENCHMARKS[mine].read(file)) == 1
    for other in BENCHMARKS:
        if other != mine:
            with pytest.raises(AnnotationError, match=f"look like the annotations of {mine}: give --benchmark {mine}"):
                score(PARAMS, other, file, tmp_path / "none.jsonl", baselines=False)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (video_mme(options=["Apples", "Candles", "Berries", "Fruit"]), r"row 1: options: option 'Apples' does not begin with A\."),
        (video_mme(answer="E"), r"row 1: answer: .*\(value 'E'\)"),
        (video_mme(question=None), "row 1: question: .*value None"),
        ({key: value for key, value in video_mme().items() if key != "duration"}, "duration: missing; the row has video_id"),
        (["no", "object"], "the row"),
    ],
)
def test_a_broken_row_is_told_with_field_and_value(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(AnnotationError, match=said):
        BENCHMARKS["video-mme"].read(lines(tmp_path / "a.jsonl", [row, video_mme(question_id="2")]))


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
    with pytest.raises(AnnotationError, match="no Parquet"):
        read(tmp_path / "cut.parquet")
    with pytest.raises(AnnotationError, match="holds no row"):
        read(lines(tmp_path / "empty.jsonl", []))
    with pytest.raises(AnnotationError, match="'001-1' stands twice"):
        read(lines(tmp_path / "twice.jsonl", [video_mme(), video_mme()]))
