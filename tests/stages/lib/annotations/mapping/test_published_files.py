"""Every published file with rows about videos for training, read by its format: the counts add up,
and values are those that a person reads in the file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from stages.lib.annotations.annotation import Annotation
from stages.lib.annotations.collect import Source
from stages.lib.annotations.formats import read_source
from tests.support.annotations.by_hand import READ_BY_HAND
from tests.support.annotations.files import FILES, Published
from tests.support.annotations.reading import PAGE, counts, ingest_params, one_video, read_published
from tests.support.siblings import ANNOTATIONS, needs_annotations

pytestmark = needs_annotations


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Published], Source]:
    """Read a published file; each is read once."""
    folder = tmp_path_factory.mktemp("published")
    video = one_video(folder)
    known: dict[str, Source] = {}

    def read(published: Published) -> Source:
        if published.file not in known:
            known[published.file] = read_published(published, folder / str(len(known)), video)
        return known[published.file]

    return read


@pytest.mark.parametrize("published", FILES, ids=lambda published: published.file)
def test_rows_are_used_or_set_aside_and_the_page_says_how_many(
    published: Published, reading: Callable[[Published], Source]
) -> None:
    source = reading(published)
    found = counts(source)
    assert found.read == found.used + sum(found.set_aside.values()) > 0
    assert len(source.rows) <= found.used
    # Each video was named for a row, so that none is left over but those of rows about several.
    strays = [r.item for r in source.rejects if r.reason == "no-annotation"]
    assert strays == {
        "messages/mllm_demo.json": ["unrelated.mp4"],
        "messages/made/ms_swift/train.jsonl": ["videos/made_2.mp4"],
    }.get(published.file, [])
    for reject in source.rejects:
        assert re.match(r"[^:]+:(row )?\d+$", reject.item) or reject.reason == "no-annotation", reject
        assert ":" in reject.detail
    assert found.line(published) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_names_every_file_once() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(named) == len(set(named))
    files = [
        path.relative_to(ANNOTATIONS).as_posix()
        for path in ANNOTATIONS.rglob("*")
        if path.is_file() and path.name != "README.md" and "LICENSES" not in path.parts
    ]
    covered = {pattern: [file for file in files if _matches(file, pattern)] for pattern in named}
    assert [pattern for pattern, of in covered.items() if not of] == []
    times = {file: sum(file in of for of in covered.values()) for file in files}
    assert {file: count for file, count in times.items() if count != 1} == {}


def _matches(file: str, pattern: str) -> bool:
    regular = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    return re.fullmatch(regular, file) is not None


@pytest.mark.parametrize(("file", "clip"), READ_BY_HAND)
def test_values_are_those_that_a_person_reads(file: str, clip: str, reading: Callable[[Published], Source]) -> None:
    published = next(one for one in FILES if one.file == file)
    row = next(row for row in reading(published).rows if row.clip_id == clip)
    for field, expected in READ_BY_HAND[(file, clip)].items():
        _same(row, field, expected)


def _same(row: Annotation, field: str, expected: Any) -> None:
    found = getattr(row, field)
    if field == "events":
        assert len(found) == len(expected)
        for event, (start, end, caption) in zip(found, expected, strict=True):
            assert (event.start, event.end) == (Fraction(start), Fraction(end))
            assert caption is None or event.caption == caption
    elif field == "qa":
        assert [(one.question, one.options, one.answer) for one in found] == expected
    elif field == "open_qa":
        assert [(one.question, one.answer) for one in found] == expected
    elif field in ("start", "end", "length_s"):
        assert found == (None if expected is None else Fraction(expected))
    elif field == "captions":
        assert list(found) == expected
    else:
        assert found == expected


def test_frames_are_exact_at_their_rate(reading: Callable[[Published], Source]) -> None:
    tacos = next(one for one in FILES if one.file == "tacos/test.json")
    row = next(row for row in reading(tacos).rows if row.video.endswith("s30-d52.avi"))
    # The first span is [141, 354], at 29.4 frames a second, of 7,346 frames.
    assert (row.events[0].start * Fraction("29.4"), row.events[0].end * Fraction("29.4")) == (141, 354)
    assert row.events[0].caption == "She took out kiwi"
    assert row.length_s == 7346 / Fraction("29.4")
    assert len(row.events) == 182


def test_thinking_of_video_r1_is_kept(reading: Callable[[Published], Source]) -> None:
    cot = next(one for one in FILES if one.file.endswith("COT-165k.json"))
    assert reading(cot).rows[0].qa[0].rationale == "A made thought."


def test_columns_that_are_not_used_are_listed(tmp_path: Path) -> None:
    params = ingest_params(ANNOTATIONS / "nextqa", "nextqa", "val.csv")
    assert read_source(params).unused == ("frame_count", "width", "height", "qid", "type")
    (tmp_path / "annotations.jsonl").write_text('{"video": "gone.mp4"}')
    assert read_source(ingest_params(tmp_path, "jsonl")).unused == ()


def _spans(file: Path) -> int:
    return sum(len(entry["timestamps"]) for entry in json.loads(file.read_text()).values())


def _windows(file: Path) -> int:
    return sum(len(json.loads(line)["relevant_windows"]) for line in file.read_text().splitlines())


def _captions(file: Path) -> int:
    return sum(len(entry["caption"]) for entry in json.loads(file.read_text()))


def _lines(file: Path) -> int:
    return sum(bool(line.strip()) for line in file.read_text().splitlines())


def _table(file: Path) -> int:
    with file.open(newline="") as text:
        return sum(1 for _ in csv.DictReader(text))


@pytest.mark.parametrize(
    ("file", "field", "count"),
    [
        ("activitynet_captions/train.json", "events", _spans),
        ("youcook2/yc2_train.json", "events", _spans),
        ("youcook2/yc2_val.json", "events", _spans),
        ("tacos/test.json", "events", _spans),
        ("qvhighlights/highlight_val_release.jsonl", "events", _windows),
        ("qvhighlights/highlight_train_release.jsonl", "events", _windows),
        ("charades_sta/charades_sta_train.txt", "events", _lines),
        ("youcook2/validation_youcook.csv", "events", _table),
        ("nextqa/val.csv", "qa", _table),
        ("nextqa/test.csv", "qa", _table),
        ("video_rts/cgbench_selected_training_samples.jsonl", "qa", _lines),
        ("msrvtt/msrvtt_caption_test.json", "captions", _captions),
        ("msvd/msvd_caption_test.json", "captions", _captions),
    ],
)
def test_no_event_question_or_caption_is_lost(
    file: str, field: str, count: Callable[[Path], int], reading: Callable[[Published], Source]
) -> None:
    source = reading(next(one for one in FILES if one.file == file))
    kept = sum(len(getattr(row, field)) + (field == "captions" and row.caption is not None) for row in source.rows)
    parts = {"events": ("bad-event",), "qa": ("bad-question",), "captions": ()}[field]
    set_aside = sum(reject.reason in (*parts, "repeated-part") for reject in source.rejects)
    assert kept + set_aside == count(ANNOTATIONS / file)
