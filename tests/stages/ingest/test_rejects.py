"""Rejects are listed by reason and as a person counts: in files, on the page, in the terminal."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from rich.table import Table

from flows.console import show
from stages.domain.core.records import Reject, natural, reject_order
from stages.lib.rows.jsonl import read_rows, write_rows
from stages.runtime import paths
from stages.synthesize.shards import sort_rejects
from stages.tools.dataset import browse

LISTED = [
    Reject(item=item, reason=reason, detail=detail)
    for item, reason, detail in (
        ("a.jsonl:1", "bad-event", "events.2: x"),
        ("a.jsonl:1", "bad-event", "events.10: x"),
        ("a.jsonl:2", "bad-event", "x"),
        ("a.jsonl:10", "bad-event", "x"),
        ("a.jsonl:100", "bad-event", "x"),
        ("a.jsonl:3", "missing-file", "x"),
        ("b" + "9" * 6000, "missing-file", "a name of thousands of digits"),
    )
]


def test_numbers_count_as_numbers() -> None:
    assert sorted(["10", "9", "1.mp4", "a10b2", "a9", "a10b10", "", "-"], key=natural) == [
        "",
        "1.mp4",
        "9",
        "10",
        "-",
        "a9",
        "a10b2",
        "a10b10",
    ]
    assert sorted(Random(1).sample(LISTED, len(LISTED)), key=reject_order) == LISTED


def test_a_file_of_rejects_is_put_in_order(tmp_path: Path) -> None:
    file = tmp_path / "rejects.jsonl"
    write_rows(file, LISTED[::-1])
    sort_rejects(file)
    assert read_rows(file, Reject) == LISTED
    assert [path.name for path in tmp_path.iterdir()] == ["rejects.jsonl"]


def test_the_page_lists_stage_after_stage_and_the_commonest_reason_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "CLIPS", tmp_path / "clips")
    monkeypatch.setattr(paths, "SAMPLES", tmp_path / "samples")
    write_rows(
        tmp_path / "clips/rejects.jsonl",
        sorted([*LISTED, Reject(item="z", reason="a-rare-one", detail="x")], key=reject_order),
    )
    write_rows(tmp_path / "samples/rejects.jsonl", LISTED[:1])
    rows, counts = browse._rejects()
    assert [(row["stage"], row["reason"], row["item"]) for row in rows] == [
        *(("ingest", reject.reason, reject.item) for reject in LISTED),
        ("ingest", "a-rare-one", "z"),
        ("synthesize", "bad-event", "a.jsonl:1"),
    ]
    assert counts[0] == ("ingest", "bad-event", 5)


def test_data_are_shown_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    table.add_column("a file :dog:")
    table.add_row("train.jsonl:100: x")
    show.console().print(table)
    show.console(error=True).print("annotations.jsonl:100: :smile:")
    out, err = capsys.readouterr()
    assert "train.jsonl:100: x" in out
    assert "a file :dog:" in out
    assert err == "annotations.jsonl:100: :smile:\n"
    assert "train.jsonl:100: x" in show.as_text(table)
