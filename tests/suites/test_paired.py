"""Two sets of predictions on the same questions: differences by hand, their p-values, and the counts of changed answers."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from suite_files import dream, lines, mvbench, predicted, video_mme
from test_score import PARAMS

from stages.domain.metrics import bootstrap_p
from stages.score import score
from stages.suites.benchmark import PredictionError
from stages.suites.paired import exact_p


def compared(folder: Path, name: str, rows: list[Any], this: dict[str, str], other: dict[str, str]) -> Any:
    against = lines(folder / "other.jsonl", [{"id": key, "reply": reply} for key, reply in other.items()])
    annotations, predictions = lines(folder / "a.jsonl", rows), predicted(folder, this)
    return score(PARAMS, name, annotations, predictions, baselines=False, against=against)["against"]


def test_differences_and_changed_answers_by_hand(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"{i}", videoID=f"v{i}", duration="short" if i < 30 else "long") for i in range(40)]
    this = {f"{i}": "B" if i < 30 else "C" for i in range(40)}
    other = {f"{i}": "B" if 20 <= i < 35 else "C" for i in range(38)}  # two questions are not answered
    against = compared(tmp_path, "video-mme", rows, this, other)
    assert against["shared"] == 38
    found = against["differences"]["strict"]
    overall = found["overall"]["accuracy"]
    assert overall["mean"] == pytest.approx(100 * (20 - 5) / 38)
    assert overall["items"] == 38
    assert overall["low"] < overall["mean"] < overall["high"]
    assert overall["p"] < 0.05
    assert found["by"]["duration"]["short"]["accuracy"]["mean"] == pytest.approx(100 * 20 / 30)
    assert found["by"]["duration"]["long"]["accuracy"]["mean"] == pytest.approx(-100 * 5 / 8)
    changed = found["changed"]
    assert {name: changed[name] for name in ("both", "only_this", "only_other", "neither")} == {
        "both": 10,
        "only_this": 20,
        "only_other": 5,
        "neither": 3,
    }
    assert changed["p"] == pytest.approx(2 * sum(comb(25, k) for k in range(6)) / 2**25)
    backwards = compared(tmp_path, "video-mme", rows, other, this)["differences"]["strict"]["overall"]["accuracy"]
    assert (backwards["mean"], backwards["p"]) == (pytest.approx(-overall["mean"]), overall["p"])
    assert (backwards["low"], backwards["high"]) == pytest.approx((-overall["high"], -overall["low"]))


def test_a_pair_is_narrower_than_its_parts_and_the_same_is_no_difference(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"{i}", videoID=f"v{i // 2}") for i in range(60)]
    this = {f"{i}": "B" if i % 2 else "C" for i in range(60)}
    other = {f"{i}": "B" if i % 2 and i > 3 else "C" for i in range(60)}
    cell = compared(tmp_path, "video-mme", rows, this, other)["differences"]["strict"]["overall"]["accuracy"]
    assert cell["mean"] == pytest.approx(100 * 2 / 60)
    assert cell["high"] - cell["low"] < 10, "each alone varies by 25"
    same = compared(tmp_path, "video-mme", rows, this, this)["differences"]["strict"]
    assert same["overall"]["accuracy"] == {"mean": 0, "low": 0, "high": 0, "p": 1, "items": 60}
    assert same["changed"]["p"] == 1


def test_a_question_that_one_scoring_leaves_out_is_left_out_of_the_pair(tmp_path: Path) -> None:
    differences = compared(
        tmp_path, "mvbench", [mvbench()] * 3, {"a/0": "", "a/1": "B", "a/2": "B"}, {"a/0": "B", "a/1": "B", "a/2": "A"}
    )["differences"]
    assert differences["strict"]["overall"]["accuracy"]["items"] == 3
    kept = differences["compat: lmms-eval"]["overall"]["accuracy"]  # that harness drops what is empty
    assert (kept["items"], kept["mean"]) == (2, 50)


def test_judged_measures_and_macro_means_are_compared_too(tmp_path: Path) -> None:
    rows = [dream(idx=i, source="movie" if i % 2 else "stock") for i in range(6)]
    whole, part = "the red bar rises then grows", "the red bar rises"
    differences = compared(tmp_path, "dream-1k", rows, {f"{i}": whole for i in range(6)}, {f"{i}": part for i in range(6)})[
        "differences"
    ]
    recall = differences["strict"]["overall"]["recall"]
    assert recall["mean"] == pytest.approx(differences["compat: tarsier"]["overall"]["recall"]["mean"])
    assert recall["mean"] > 0
    assert recall["p"] == pytest.approx(2 / 1001), "every resample has it"
    assert differences["strict"]["changed"] is None, "there are no letters"


def test_p_values() -> None:
    assert bootstrap_p(np.linspace(-1, 9, 999)) == pytest.approx(2 * 101 / 1000)
    assert bootstrap_p(np.ones(999)) == 2 / 1000
    assert bootstrap_p(np.zeros(999)) == 1
    assert exact_p(0, 0) == 1
    assert exact_p(10, 0) == pytest.approx(2 / 1024)
    assert exact_p(3000, 3000) == 1
    assert 0 < exact_p(2000, 1800) < 0.002


def test_nothing_in_common(tmp_path: Path) -> None:
    rows = [video_mme(question_id=f"{i}") for i in range(2)]
    with pytest.raises(PredictionError, match="no question in common"):
        compared(tmp_path, "video-mme", rows, {"0": "B"}, {"1": "B"})
