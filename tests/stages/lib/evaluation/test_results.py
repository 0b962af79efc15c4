"""Files of scores: readers accept exactly the keys that a stage writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.domain.statistics.metrics import TaskResult
from stages.lib.evaluation.results import (
    BaselineScores,
    ControlledResult,
    HistoryRow,
    Mean,
    PairedGain,
    PlottedScore,
    PolicyScores,
    RowGain,
    TrivialResults,
)
from stages.lib.rows.jsonl import RowError, read_record, read_rows, write_record

RESULT = TaskResult(mean=0.5, low=0.25, high=0.75, samples=8, unjudged=0, format=1.0, native=100.0)
CONTROLLED = ControlledResult(**RESULT.model_dump(), blank=0.1, shuffled=0.2, blank_high=0.3, shuffled_high=0.4)
SCORES = PolicyScores(
    row="general",
    digest="d",
    split="test",
    samples=8,
    mean=0.5,
    blank_mean=0.1,
    shuffled_mean=0.2,
    format=1.0,
    tasks={"mcqa": CONTROLLED},
)
BASELINES = BaselineScores(
    digest="d",
    split="test",
    random=Mean(mean=0.5),
    constant=Mean(mean=0.5),
    constant_replies={"mcqa": "A"},
    tasks={"mcqa": TrivialResults(random=RESULT, constant=RESULT)},
)


def test_keys_stand_in_the_order_that_outs_have(tmp_path: Path) -> None:
    write_record(tmp_path / "scores.json", SCORES)
    table = json.loads((tmp_path / "scores.json").read_bytes())
    assert list(table) == [
        "schema_version",
        "row",
        "digest",
        "split",
        "samples",
        "mean",
        "blank_mean",
        "shuffled_mean",
        "format",
        "tasks",
    ]
    of_task = "mean low high samples unjudged format native blank shuffled blank_high shuffled_high"
    assert list(table["tasks"]["mcqa"]) == of_task.split()
    write_record(tmp_path / "baselines.json", BASELINES)
    table = json.loads((tmp_path / "baselines.json").read_bytes())
    assert list(table) == ["schema_version", "digest", "split", "random", "constant", "constant_replies", "tasks"]
    task = PairedGain(mean=0.1, low=0.0, high=0.2, p_value=0.5, p_holm=1.0, won=2, lost=1, tied=0)
    gain = RowGain(**task.model_dump(exclude={"p_holm"}), tasks={"mcqa": task}).model_dump(exclude_none=True)
    assert list(gain) == ["mean", "low", "high", "p_value", "won", "lost", "tied", "tasks"]
    assert list(gain["tasks"]["mcqa"]) == ["mean", "low", "high", "p_value", "p_holm", "won", "lost", "tied"]
    plotted = PlottedScore(policy="general", task="mcqa", mean=0.5, low=1 / 3, high=1.0).model_dump()
    assert list(plotted.values()) == ["general", "mcqa", "0.5000", "0.3333", "1.0000"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    for number, scores in enumerate((SCORES, BASELINES)):
        path = tmp_path / f"{number}.json"
        write_record(path, scores)
        assert read_record(path, type(scores)) == scores


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": 1}, "extra: Extra inputs"),
        ({"mean": "much"}, "mean: .*'much'"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name_and_field(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(SCORES.model_dump() | change))
    with pytest.raises(RowError, match=rf"scores\.json: {said}.*dvc repro --force"):
        read_record(path, PolicyScores)


def test_a_trainer_names_its_metrics_and_they_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 3, "reward/mcqa": 0.5, "loss": 1.0}\n')
    (row,) = read_rows(path, HistoryRow)
    assert row.model_dump() == {"step": 3, "reward/mcqa": 0.5, "loss": 1.0}
    path.write_text('{"step": 3, "loss": "low"}\n')
    with pytest.raises(RowError, match=r"history\.jsonl:1: loss: "):
        read_rows(path, HistoryRow)
