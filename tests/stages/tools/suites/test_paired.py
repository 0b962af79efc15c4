"""Two sets of predictions on the same questions: differences by hand, their p-values, and the
counts of changed answers."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path
from typing import Any

import pytest

from stages.domain.core.replies import render_reply
from stages.domain.statistics.intervals import holm
from stages.tools.suites.published.benchmark import PredictionError
from stages.tools.suites.published.paired import exact_p
from stages.tools.suites.score import score
from tests.support.suites.annotations import PARAMS, dream, lines, mvbench, predicted, samples, video_mme


def compared(folder: Path, name: str, rows: list[Any], this: dict[str, str], other: dict[str, str]) -> Any:
    against = lines(folder / "other.jsonl", [{"id": key, "reply": reply} for key, reply in other.items()])
    annotations, predictions = lines(folder / "a.jsonl", rows), predicted(folder, this)
    return score(PARAMS, name, annotations, predictions, baselines=False, against=against).against


def test_differences_and_changed_answers_by_hand(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"{i}", videoID=f"v{i}", duration="short" if i < 30 else "long") for i in range(40)]
    this = {f"{i}": "B" if i < 30 else "C" for i in range(40)}
    other = {f"{i}": "B" if 20 <= i < 35 else "C" for i in range(38)}  # two questions are not answered
    against = compared(tmp_path, "video-mme", rows, this, other)
    assert against.shared == 38
    found = against.differences["strict"]
    overall = found.overall["accuracy"]
    assert overall.mean == pytest.approx(100 * (20 - 5) / 38)
    assert overall.items == 38
    assert overall.low < overall.mean < overall.high
    assert overall.p < 0.05
    assert found.by["duration"]["short"]["accuracy"].mean == pytest.approx(100 * 20 / 30)
    assert found.by["duration"]["long"]["accuracy"].mean == pytest.approx(-100 * 5 / 8)
    changed = found.changed
    assert changed.model_dump(exclude={"p"}) == {
        "both": 10,
        "only_this": 20,
        "only_other": 5,
        "neither": 3,
    }
    assert changed.p == pytest.approx(2 * sum(comb(25, k) for k in range(6)) / 2**25)
    backwards = compared(tmp_path, "video-mme", rows, other, this).differences["strict"].overall["accuracy"]
    assert (backwards.mean, backwards.p) == (pytest.approx(-overall.mean), overall.p)
    assert (backwards.low, backwards.high) == pytest.approx((-overall.high, -overall.low))


def test_a_pair_is_narrower_than_its_parts_and_the_same_is_no_difference(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"{i}", videoID=f"v{i // 2}") for i in range(60)]
    this = {f"{i}": "B" if i % 2 else "C" for i in range(60)}
    other = {f"{i}": "B" if i % 2 and i > 3 else "C" for i in range(60)}
    cell = compared(tmp_path, "video-mme", rows, this, other).differences["strict"].overall["accuracy"]
    assert cell.mean == pytest.approx(100 * 2 / 60)
    assert cell.high - cell.low < 25, "each alone varies by 40"
    same = compared(tmp_path, "video-mme", rows, this, this).differences["strict"]
    accuracy = same.overall["accuracy"]
    assert accuracy.model_dump(exclude={"low", "high"}) == {
        "mean": 0,
        "p": 1,
        "p_holm": None,
        "items": 60,
        "units": 30,
    }
    assert accuracy.low == -accuracy.high < 0, "30 videos without a change do not rule out that one in nine changes"
    assert same.changed.p == 1


def test_a_question_that_one_scoring_leaves_out_is_left_out_of_the_pair(tmp_path: Path) -> None:
    differences = compared(
        tmp_path, "mvbench", [mvbench()] * 3, {"a/0": "", "a/1": "B", "a/2": "B"}, {"a/0": "B", "a/1": "B", "a/2": "A"}
    ).differences
    assert differences["strict"].overall["accuracy"].items == 3
    kept = differences["compat: lmms-eval"].overall["accuracy"]  # that harness drops what is empty
    assert (kept.items, kept.mean) == (2, 50)


def test_judged_measures_and_macro_means_are_compared_too(tmp_path: Path) -> None:
    rows = [dream(idx=i, source="movie" if i % 2 else "stock") for i in range(6)]
    whole, part = "the red bar rises then grows", "the red bar rises"
    differences = compared(
        tmp_path, "dream-1k", rows, {f"{i}": whole for i in range(6)}, {f"{i}": part for i in range(6)}
    ).differences
    recall = differences["strict"].overall["recall"]
    assert recall.mean == pytest.approx(differences["compat: tarsier"].overall["recall"].mean)
    assert recall.mean > 0
    assert recall.p == pytest.approx(1), "all six are about one video"
    assert differences["strict"].changed is None, "there are no letters"


def test_p_values() -> None:
    assert exact_p(0, 0) == 1
    assert exact_p(10, 0) == pytest.approx(2 / 1024)
    assert exact_p(3000, 3000) == 1
    assert 0 < exact_p(2000, 1800) < 0.002


def test_two_videos_that_were_both_won_say_little(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"{i}", videoID=f"v{i}") for i in range(2)]
    cell = (
        compared(tmp_path, "video-mme", rows, {"0": "B", "1": "B"}, {"0": "C", "1": "C"})
        .differences["strict"]
        .overall["accuracy"]
    )
    assert cell.p == pytest.approx(0.5)
    assert cell.low <= 0 < cell.mean == 100


def test_categories_are_looked_at_together(tmp_path: Path) -> None:
    tasks = ("Counting", "OCR", "Order")
    rows = [video_mme(question_id=f"{i}", videoID=f"v{i}", task_type=tasks[i % 3]) for i in range(36)]
    other = {f"{i}": "C" if i % 3 == 0 and i < 24 else "B" for i in range(36)}
    by = compared(tmp_path, "video-mme", rows, {f"{i}": "B" for i in range(36)}, other).differences["strict"].by
    assert set(by) == {"duration", "task", "domain"}
    found = {(category, value): cell["accuracy"] for category, values in by.items() for value, cell in values.items()}
    assert len(found) == 5
    assert [cell.p_holm for cell in found.values()] == pytest.approx(holm([cell.p for cell in found.values()]))
    assert found["task", "Counting"].p < 0.05 < 5 * found["task", "Counting"].p + 0.05
    assert found["task", "Counting"].p_holm > found["task", "Counting"].p


def test_the_same_file_in_several_tasks_is_one_video(tmp_path: Path) -> None:
    tasks = ("moving_count", "moving_direction", "moving_attribute", "object_existence")
    for task in (*tasks, "state_change"):
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / f"json/{task}.json").write_text(json.dumps([mvbench(video=f"video_{i}.mp4") for i in range(40)]))
    replies = {f"{task}/{i}": "B" if i % 8 < 3 else "A" for task in tasks for i in range(40)}
    result = score(PARAMS, "mvbench", tmp_path, predicted(tmp_path, replies), baselines=False)
    table = result.scores["strict"]
    whole, task = table.overall["accuracy"], table.by["task"]["moving_count"]["accuracy"]
    assert (whole.mean, whole.items, whole.units) == (37.5, 160, 40)
    assert (whole.low, whole.high) == pytest.approx((22.5, 52.5), abs=4), "not 30 to 45, as if there were 160 videos"
    assert whole.high - whole.low >= 0.95 * (task.high - task.low), "asking thrice more about the same shows no more"
    both = {f"{task}/{i}": "B" for task in ("moving_count", "state_change") for i in range(40)}
    apart = score(PARAMS, "mvbench", tmp_path, predicted(tmp_path, both), baselines=False)
    assert apart.scores["strict"].overall["accuracy"].units == 80, "files of one name in two sources are two"


def test_two_clips_of_a_mixture_are_both_units(tmp_path: Path) -> None:
    rows = samples("mix_vid_qa")
    replies = {row["sample_id"]: render_reply("x", row["reference"]) for row in rows}
    result = score(
        PARAMS,
        "mix-vid-qa-test",
        lines(tmp_path / "mix_vid_qa.jsonl", rows),
        predicted(tmp_path, replies),
        baselines=False,
    )
    cell = result.scores["strict"].overall["mean judge score x 100"]
    assert (cell.mean, cell.units) == (100, 2)
    assert cell.low == 0, "all samples are about the same two clips, so nothing is known"


def test_nothing_in_common(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"{i}") for i in range(2)]
    with pytest.raises(PredictionError, match="no question in common"):
        compared(tmp_path, "video-mme", rows, {"0": "B"}, {"1": "B"})
