"""A row that breaks a rule is rejected with line, field and value; a folder that cannot be used is
an error."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from stages.lib.annotations.annotation import Annotation, SourceError
from stages.lib.annotations.jsonl import read_annotations

GOOD: dict[str, Any] = {"video": "a.mp4", "events": [{"start": 0, "end": 1.5, "caption": "it moves"}]}


def _folder(tmp_path: Path, *rows: Any, videos: tuple[str, ...] = ("a.mp4",)) -> Path:
    for video in videos:
        (tmp_path / video).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / video).touch()
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "annotations.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ('{"video": ', "not JSON: "),
        ("[1, 2]", "need one JSON object, found list"),
        ({"caption": "no video"}, "video: missing"),
        (GOOD | {"vidoe": 1}, "vidoe: unknown field (value 1); remove it or correct its spelling"),
        (GOOD | {"split": "dev"}, "split: Input should be 'train', 'validation' or 'test' (value 'dev')"),
        (GOOD | {"caption": 7}, "caption: Input should be a valid string (value 7)"),
        (GOOD | {"id": ""}, "id: String should have at least 1 character"),
        (GOOD | {"where": "elsewhere"}, "where: unknown field (value 'elsewhere'); remove it or correct its spelling"),
        ('{"video": "films\\a.mp4"}', "not JSON: Invalid \\escape"),
    ],
)
def test_a_bad_row_names_line_and_field(row: Any, detail: str, tmp_path: Path) -> None:
    rows, rejects, *_ = read_annotations(
        _folder(tmp_path, GOOD | {"video": "b.mp4"}, "", row, videos=("a.mp4", "b.mp4"))
    )
    assert [r.video for r in rows] == ["b.mp4"]
    assert rejects[0].item == "annotations.jsonl:3"
    assert rejects[0].reason == "bad-annotation"
    assert detail in rejects[0].detail
    # The video of a broken row is not reported again, unless the row does not name it.
    assert len(rejects) == (1 if '"a.mp4' in str(row) or "'a.mp4" in str(row) else 2)


GOOD_EVENT = {"start": 0, "end": 1, "caption": "it moves"}
GOOD_QUESTION = {"question": "What moves?", "options": ["a cup", "a book"], "answer": "B"}


@pytest.mark.parametrize(
    ("part", "reason", "detail"),
    [
        ({"events": [{"start": "soon", "end": 1, "caption": "x"}]}, "bad-event", "events.1.start: no time in seconds"),
        ({"events": [{"start": True, "end": 2, "caption": "x"}]}, "bad-event", "events.1.start: no time in seconds"),
        (
            {"events": [{"start": 0, "end": float("nan"), "caption": "x"}]},
            "bad-event",
            "events.1.end: no time in seconds",
        ),
        (
            {"events": [{"start": 0, "end": "1e999999999", "caption": "x"}]},
            "bad-event",
            "events.1.end: no time in seconds",
        ),
        ({"events": [{"start": 0, "end": "1/0", "caption": "x"}]}, "bad-event", "events.1.end: no time in seconds"),
        (
            {"events": [{"start": 2, "end": 2, "caption": "a mark"}]},
            "bad-event",
            (
                "events.1: start 2 s and end 2 s: need start < end (value {'start': 2, 'end': 2, 'caption': 'a mark'})"
                " (of 'a mark')"
            ),
        ),
        ({"events": [{"start": 0, "end": 1, "caption": ""}]}, "bad-event", "events.1.caption: "),
        ({"events": [{"start": 0, "end": 1, "caption": " "}]}, "bad-event", "events.1: caption is blank"),
        ({"events": [{"start": 0, "end": 1, "text": "x"}]}, "bad-event", "events.1.text: unknown field (value 'x')"),
        ({"events": ["it moves"]}, "bad-event", "events.1: need one JSON object, found str"),
        (
            {"qa": [{"question": "q", "options": ["x", "y"], "answer": "C"}]},
            "bad-question",
            "qa.1: 'C' names no option: there are 2",
        ),
        ({"qa": [{"question": "q", "options": ["x"], "answer": "A"}]}, "bad-question", "qa.1.options: "),
        ({"qa": [{"question": "q", "options": ["x", " "], "answer": "A"}]}, "bad-question", "qa.1: option B is empty"),
        (
            {"qa": [{"question": "q", "options": ["It falls", "it  falls.", "y"], "answer": "C"}]},
            "bad-question",
            "qa.1: options A and B are both 'it  falls.'; an option must be right or wrong",
        ),
        ({"subjects": [{"name": ""}]}, "bad-subject", "subjects.1.name: "),
    ],
)
def test_a_bad_part_is_set_aside_and_the_rest_of_its_row_stays(
    part: dict[str, Any], reason: str, detail: str, tmp_path: Path
) -> None:
    whole: dict[str, Any] = {"events": [GOOD_EVENT], "qa": [GOOD_QUESTION], "subjects": [{"name": "cup"}]}
    ((field, entries),) = part.items()
    row = {"video": "a.mp4", **whole, field: [*whole[field], *entries]}
    (read,), rejects, *_ = read_annotations(_folder(tmp_path, "", row))
    assert (len(read.events), len(read.qa), len(read.subjects)) == (1, 1, 1)
    assert [(r.item, r.reason) for r in rejects] == [("annotations.jsonl:2", reason)]
    assert detail in rejects[0].detail
    # A clip stays, even if only its caption is usable.
    folder = _folder(tmp_path, {"video": "a.mp4", "caption": "A cup.", **part})
    (read,), rejects, *_ = read_annotations(folder)
    assert (read.caption, read.events, read.qa, read.subjects, len(rejects)) == ("A cup.", (), (), (), 1)


def test_options_that_carry_their_letters_lose_them_and_answers_are_read_in_their_spellings(tmp_path: Path) -> None:
    lettered = {"question": "What moves?", "options": ["A. It rises", "B. It falls"], "answer": "B. It falls"}
    spelled = [GOOD_QUESTION | {"answer": answer} for answer in ("b", "(B)", "B.", "a book")]
    (read,), rejects, *_ = read_annotations(_folder(tmp_path, {"video": "a.mp4", "qa": [lettered, *spelled]}))
    assert rejects == []
    assert (read.qa[0].options, read.qa[0].answer) == (("It rises", "It falls"), "B")
    assert [question.answer for question in read.qa[1:]] == ["B"] * 4
    bad = [
        lettered | {"options": ["B. x", "A. y"]},
        GOOD_QUESTION | {"answer": "A book falls"},
        GOOD_QUESTION | {"answer": 1},
    ]
    (read,), rejects, *_ = read_annotations(_folder(tmp_path, {"video": "a.mp4", "qa": bad}))
    assert read.qa == ()
    assert [reject.detail.partition(" (")[0] for reject in rejects] == [
        "qa.0: options carry the letters B, A; need A, B, C … in this order, or none",
        "qa.1: 'A book falls' names no option: there are 2",
        "qa.2.answer: Input should be a valid string",
    ]


def test_a_field_that_is_no_list_is_one_reject_and_null_is_as_good_as_absent(tmp_path: Path) -> None:
    (read,), rejects, *_ = read_annotations(_folder(tmp_path, {"video": "a.mp4", "events": {"start": 0}, "qa": None}))
    assert (read.events, read.qa) == ((), ())
    assert [(r.reason, r.detail) for r in rejects] == [
        ("bad-event", "events: need a list, found dict (value {'start': 0})")
    ]


@pytest.mark.parametrize(
    "text", ["[\n {}\n]\n", "[{}]", " [ {},\n{} ]", '{{\n "a": {}\n}}', '{{"rows": [\n{}]}}', "[\n {},"]
)
def test_a_json_document_is_said_to_be_one_once(text: str, tmp_path: Path) -> None:
    row = json.dumps(GOOD, indent=1)
    (tmp_path / "annotations.jsonl").write_text(text.replace("{}", row).replace("{{", "{").replace("}}", "}"))
    with pytest.raises(
        SourceError, match=r"this is a JSON document .*, not JSON lines; .*jq -c '\.\[\]' annotations\.jsonl"
    ):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("text", "at"),
    [("{}", [1]), ("{}\n\n{}\n", [1, 8]), ('{"video": "b.mp4",\n "caption": "It falls."}\n{"video": "c.mp4"}', [1])],
)
def test_a_row_that_spans_lines_is_one_reject_that_says_so(text: str, at: list[int], tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", videos=("c.mp4",))
    row = json.dumps({"video": "b.mp4", "caption": "It falls.", "qa": [], "events": []}, indent=1)
    (folder / "annotations.jsonl").write_text(text.replace("{}", row))
    rows, rejects, *_ = read_annotations(folder)
    assert [row.video for row in rows] == (["c.mp4"] if "c.mp4" in text else [])
    told = [reject for reject in rejects if reject.reason == "bad-annotation"]
    assert [reject.item for reject in told] == [f"annotations.jsonl:{number}" for number in at]
    assert [
        r
        for r in told
        if not (
            "a row must stand on one line" in r.detail
            and "jq -c . annotations.jsonl > lines-annotations.jsonl" in r.detail
        )
    ] == []


@pytest.mark.parametrize("video", ["../out.mp4", "/etc/passwd", "sub/../../out.mp4", "..\\out.mp4", "link.mp4"])
def test_a_path_never_leaves_the_folder(video: str, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").touch()
    folder = _folder(tmp_path / "in", {"video": video}, videos=("a.mp4",))
    (folder / "link.mp4").symlink_to(tmp_path / "out.mp4")
    rows, rejects, *_ = read_annotations(folder)
    assert rows == []
    assert rejects[0].item == "annotations.jsonl:1"
    assert rejects[0].reason == "outside-folder"
    assert repr(video) in rejects[0].detail


def test_every_row_and_every_video_is_accounted_for(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "id": "one"},
        {"video": "gone.mp4"},
        {"video": "sub/b.MP4", "id": "one"},
        {"video": "a.mp4", "id": "two"},
        {"video": "a.mp4", "id": "three"},
    ]
    folder = _folder(tmp_path, *rows, videos=("a.mp4", "sub/b.MP4", "c.webm", "notes.txt", ".hidden/d.mp4"))
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    accepted, rejects, *_ = read_annotations(folder)
    assert [row.clip_id for row in accepted] == ["one"]
    assert [(r.item, r.reason) for r in rejects] == [
        ("annotations.jsonl:2", "missing-file"),
        ("annotations.jsonl:3", "duplicate-id"),
        ("annotations.jsonl:4", "duplicate-id"),
        ("annotations.jsonl:5", "duplicate-id"),
        ("c.webm", "no-annotation"),
        ("loop.mp4", "no-annotation"),
    ]
    assert rejects[1].detail == "id 'one' stands in annotations.jsonl:1 already; give each row an id of its own"
    assert rejects[3].detail == (
        "video 'a.mp4' stands in annotations.jsonl:1 already, as clip 'one'; give one id to all rows about one clip, or"
        " start and end to parts of it"
    )


def test_names_are_made_from_the_video(tmp_path: Path) -> None:
    rows, _, *_ = read_annotations(
        _folder(tmp_path, {"video": "kitchen/0001.mp4", "source": "tape 1"}, videos=("kitchen/0001.mp4",))
    )
    assert (rows[0].clip_id, rows[0].source_id) == ("kitchen/0001", "tape 1")


@pytest.mark.parametrize("missing", ["folder", "file"])
def test_a_folder_that_cannot_be_used(missing: str, tmp_path: Path) -> None:
    folder = tmp_path / "gone" if missing == "folder" else tmp_path
    message = (
        "is not a folder; name one with videos"
        if missing == "folder"
        else "has no annotations.jsonl; write one JSON object a line"
    )
    with pytest.raises(SourceError, match=rf"ingest\.source: {re.escape(repr(str(folder)))} {message}"):
        read_annotations(folder)


def test_an_annotation_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").write_bytes('{"video": "ä"}'.encode("latin-1"))
    with pytest.raises(SourceError, match="not UTF-8 text"):
        read_annotations(tmp_path)


def test_seconds_are_exact() -> None:
    row = Annotation.model_validate(
        {"video": "a", "events": [{"start": 0.1, "end": "1001/30000", "caption": "x"}]} | {"events": []}
    )
    assert row.events == ()
    timed = Annotation.model_validate(
        {"video": "a", "events": [{"start": "1001/30000", "end": 2.1, "caption": "x"}]}
    ).events[0]
    assert (timed.start, timed.end) == (Fraction(1001, 30000), Fraction(21, 10))
