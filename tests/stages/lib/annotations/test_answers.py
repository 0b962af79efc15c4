"""Objects that tasks read: kept as they are, joined over rows, and rejected where they are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.domain.core.records import Reject
from stages.lib.annotations.annotation import Annotation, rows_rejected
from stages.lib.annotations.jsonl import read_annotations
from stages.lib.annotations.writing import write_annotations

ROW: dict[str, Any] = {"video": "a.mp4", "caption": "It rains."}
COUNT = {"question": "how many ?", "number": 3}


def read(folder: Path, *rows: Any) -> tuple[list[Annotation], list[Reject]]:
    (folder / "a.mp4").touch()
    (folder / "annotations.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = read_annotations(folder)
    return found.rows, found.rejects


def test_one_object_or_a_list_of_them(tmp_path: Path) -> None:
    spans = {"question": "when ?", "spans": [[0.5, 1], [2, 3.25]], "note": None}
    (row,), rejects = read(tmp_path, ROW | {"answers": {"count": COUNT, "grounding": [spans, COUNT]}})
    assert rejects == []
    assert row.answers == {"count": (COUNT,), "grounding": (spans, COUNT)}
    write_annotations([row], tmp_path / "annotations.jsonl")
    assert read_annotations(tmp_path).rows == [row]


@pytest.mark.parametrize("absent", [{}, {"answers": None}, {"answers": {}}])
def test_a_row_without_any_is_what_it_was(absent: dict[str, Any], tmp_path: Path) -> None:
    (row,), rejects = read(tmp_path, ROW | absent)
    assert (row.answers, rejects) == (None, [])
    write_annotations([row], tmp_path / "written.jsonl")
    assert json.loads((tmp_path / "written.jsonl").read_text()) == ROW


@pytest.mark.parametrize(
    ("answers", "detail"),
    [
        (3, "answers: need an object of objects by the task's name, found int"),
        ([COUNT], "answers: need an object of objects by the task's name, found list"),
        ({"Count it": COUNT}, "answers: 'Count it' is not the name of a task; write lower-case letters, digits and _"),
        ({"count": 3}, "answers.count: need an object with fields, found int (value 3)"),
        ({"count": [COUNT, "3"]}, "answers.count.1: need an object with fields, found str (value '3')"),
        ({"count": {}}, "answers.count: need an object with fields, found dict (value {})"),
        ({"count": {"number": float("nan")}}, "answers.count: nan is not a number that JSON has"),
        ({"count": {"a": [[[[[[[[1]]]]]]]]}}, "answers.count: nested deeper than 8; write it flatter"),
    ],
)
def test_what_is_none_is_rejected_alone(answers: Any, detail: str, tmp_path: Path) -> None:
    (row,), (reject,) = read(tmp_path, ROW | {"answers": answers})
    assert (row.caption, reject.item, reject.reason) == ("It rains.", "annotations.jsonl:1", "bad-answer")
    assert reject.detail.startswith(detail)
    assert rows_rejected([reject]) == 0


def test_rows_about_one_clip_are_joined(tmp_path: Path) -> None:
    other = COUNT | {"number": 4}
    (row,), (reject,) = read(
        tmp_path,
        ROW | {"answers": {"count": COUNT}},
        {"video": "a.mp4", "answers": {"count": [COUNT, other], "ocr": {"text": "47"}}},
    )
    assert row.answers == {"count": (COUNT, other), "ocr": ({"text": "47"},)}
    assert (row.rows, reject.reason) == (2, "repeated-part")
    assert "the clip has this answer of count already (annotations.jsonl:1)" in reject.detail
