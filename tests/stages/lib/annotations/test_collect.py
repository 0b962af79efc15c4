"""Rows about one clip become one; the rows of a file are the rows used and the rows set aside."""

from __future__ import annotations

import json
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from stages.lib.annotations.annotation import Annotation, TimedEvent, rows_rejected
from stages.lib.annotations.collect import Source
from stages.lib.annotations.formats import FORMATS
from stages.lib.annotations.jsonl import read_annotations
from stages.lib.annotations.writing import write_annotations


def _read(folder: Path, *rows: Any, videos: tuple[str, ...] = ("a.mp4", "b.mp4")) -> Source:
    for video in videos:
        (folder / video).touch()
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "annotations.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = read_annotations(folder)
    assert _adds_up(source)
    return source


def _adds_up(source: Source) -> bool:
    return source.read == sum(row.rows for row in source.rows) + rows_rejected(source.rejects)


A, B = {"video": "a.mp4"}, {"video": "b.mp4"}
EVENTS = [{"start": n, "end": n + 1, "caption": f"it moves {n} times"} for n in range(3)]
CHOICE = {"question": "What moves?", "options": ["a cup", "a book"], "answer": "B"}
OPEN = {"question": "What moves?", "answer": "a book"}


def test_rows_about_one_clip_become_one(tmp_path: Path) -> None:
    rows, rejects, read, _ = _read(
        tmp_path,
        A | {"caption": "A book.", "events": EVENTS[:1]},
        B,
        A | {"caption": "It moves.", "qa": [CHOICE, OPEN], "licence": "CC0"},
        A | {"captions": ["A book moves."], "events": EVENTS[1:], "split": "test", "subjects": [{"name": "book"}]},
    )
    joined, alone = rows
    assert (read, rejects, [row.rows for row in rows]) == (4, [], [3, 1])
    assert (joined.caption, joined.captions) == ("A book.", ("It moves.", "A book moves."))
    assert [event.caption for event in joined.events] == [event["caption"] for event in EVENTS]
    assert ([q.answer for q in joined.qa], [q.answer for q in joined.open_qa]) == (["B"], ["a book"])
    assert (joined.licence, joined.split, joined.subjects[0].name, joined.label) == ("CC0", "test", "book", None)
    assert (joined.where, joined.clip_id, alone.clip_id) == ("annotations.jsonl:1", "a", "b")


def test_rows_about_one_clip_are_joined_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: comparisons of events, and entries that copies of rows were given."""
    work = Counter[str]()
    compare, copy = TimedEvent.__eq__, Annotation.model_copy

    def compared(one: TimedEvent, other: object) -> bool:
        work["compared"] += 1
        return compare(one, other)

    def copied(row: Annotation, *, update: dict[str, Any]) -> Annotation:
        work["copied"] += sum(len(value) for value in update.values() if isinstance(value, tuple))
        return copy(row, update=update)

    monkeypatch.setattr(TimedEvent, "__eq__", compared)
    monkeypatch.setattr(Annotation, "model_copy", copied)
    count = 300
    events = [{"start": n, "end": n + 1, "caption": f"it moves {n} times"} for n in range(count)]
    told = [A | {"events": [event], "captions": [event["caption"]]} for event in events]
    (clip,), rejects, *_ = _read(tmp_path, *told, *told[: count // 2], videos=("a.mp4",))
    assert (len(clip.events), len(clip.captions), clip.rows) == (count, count - 1, count * 3 // 2)
    assert len(rejects) == count
    # Each repeated event is compared with its equal, and few others share a hash's place.
    assert work["compared"] < count
    assert work["copied"] < 3 * count


def test_what_a_clip_has_already_is_not_taken_twice(tmp_path: Path) -> None:
    row = A | {"caption": "A book.", "events": EVENTS[:2], "qa": [CHOICE], "subjects": [{"name": "book"}]}
    (clip,), rejects, *_ = _read(tmp_path, row, B | {"id": "a2"}, row | {"events": EVENTS[1:]}, videos=("a.mp4",))[:3]
    assert (clip.caption, clip.captions, len(clip.events), len(clip.qa), len(clip.subjects)) == ("A book.", (), 3, 1, 1)
    repeated = [reject for reject in rejects if reject.reason == "repeated-part"]
    assert {reject.item for reject in repeated} == {"annotations.jsonl:3"}
    assert [reject.detail.partition(" already")[0] for reject in repeated] == [
        f"a.mp4: the clip has this {part}" for part in ("event", "question", "subject", "caption")
    ]
    assert '"it moves 1 times"' in repeated[0].detail


@pytest.mark.parametrize(
    ("second", "reason", "detail"),
    [
        ({"split": "test"}, "conflicting-row", "split: 'test', and annotations.jsonl:1 says 'train' of the same clip"),
        ({"label": "x"}, "conflicting-row", "label: 'x', and annotations.jsonl:1 says 'book' of the same clip"),
        ({"source": "x"}, "conflicting-row", "source: 'x', and annotations.jsonl:1 says 'tape'"),
        ({"id": "x"}, "duplicate-id", "video 'a.mp4' stands in annotations.jsonl:1 already, as clip 'a'"),
    ],
)
def test_a_row_that_contradicts_the_first_is_set_aside(
    second: dict[str, str], reason: str, detail: str, tmp_path: Path
) -> None:
    first = A | {"split": "train", "label": "book", "source": "tape"}
    rows, rejects, read, _ = _read(
        tmp_path, first, A | second | {"caption": "Not taken."}, A | {"caption": "Taken."}, B
    )
    assert (read, rows[0].rows, rows[0].caption) == (4, 2, "Taken.")
    ((item, why, said),) = [(reject.item, reject.reason, reject.detail) for reject in rejects]
    assert (item, why) == ("annotations.jsonl:2", reason)
    assert detail in said


def test_parts_of_a_file_are_clips_of_their_own_and_one_id_names_one_clip(tmp_path: Path) -> None:
    rows, rejects, *_ = _read(
        tmp_path,
        *(A | {"start": 10 * n, "end": 10 * n + 10, "caption": f"part {n}"} for n in range(3)),
        A | {"start": 10, "end": 20, "caption": "part 1 again"},
        A | {"start": 30},
        A | {"end": 2.5},
        B | {"id": "a@0-10"},
        A,
        B,
    )
    ids = ["a@0-10", "a@10-20", "a@20-30", "a@30-", "a@0-2.5", "a", "b"]
    assert [row.clip_id for row in rows] == ids
    assert {row.source_id for row in rows} == {"a", "b"}
    assert (rows[1].caption, rows[1].captions, rows[1].rows) == ("part 1", ("part 1 again",), 2)
    assert [(reject.item, reject.reason) for reject in rejects] == [("annotations.jsonl:7", "duplicate-id")]
    assert rows_rejected(rejects) == 1


def test_a_part_that_takes_no_time_is_set_aside(tmp_path: Path) -> None:
    _, (reject,), *_ = _read(tmp_path, A | {"start": 2, "end": 2}, B)
    assert reject.reason == "bad-annotation"
    assert "start 2 s and end 2 s: need start < end" in reject.detail


def test_the_order_of_rows_changes_only_which_caption_is_first(tmp_path: Path) -> None:
    told = [A | {"caption": f"Caption {n}.", "events": EVENTS[n : n + 1]} for n in range(3)]
    seen = Counter[Any]()
    for number, order in enumerate(permutations(told)):
        (tmp_path / str(number)).mkdir()
        (clip,), _, *_ = _read(tmp_path / str(number), *order, videos=("a.mp4",))
        seen[clip.clip_id, frozenset(clip.events), frozenset((clip.caption, *clip.captions))] += 1
    assert list(seen.values()) == [6]


def test_rows_are_written_as_they_are_read(tmp_path: Path) -> None:
    row = Annotation.model_validate(
        A | {"start": "1/3", "end": 2.5, "caption": "A.", "captions": ["B."], "open_qa": [OPEN], "qa": [CHOICE]}
    )
    for video in ("a.mp4", "b.mp4"):
        (tmp_path / video).touch()
    write_annotations([row, Annotation(video="b.mp4")], tmp_path / "annotations.jsonl")
    rows, rejects, *_ = read_annotations(tmp_path)
    assert rejects == []
    assert [r.model_copy(update={"where": ""}) for r in rows] == [row, Annotation(video="b.mp4")]


COIN = {"class": "Wave", "subset": "training", "annotation": [{"id": "1", "segment": [1, 2], "label": "wave"}]}
ACTIVITYNET = {"duration": 9, "timestamps": [[1, 2]], "sentences": ["She waves."]}
KINETICS = "label,youtube_id,time_start,time_end,split,is_cc"
VIDBRIDGE = [
    {"video": "a/1.mp4", "problem": "What?\nA. A cup\nB. A book", "solution": "B", "problem_type": "MCQA"},
    {"video": "a/1.mp4", "problem": "Describe it.", "solution": "A book.", "problem_type": "caption"},
    {"video": "dark/2.mp4", "problem": "What happens?", "solution": "It rains.", "problem_type": "DarkEventInfer"},
]
#: By format, a file that has rows of every fate (used, joined, broken, without a video), the number
#: of its rows, and the videos that are there.
FILES: dict[str, tuple[str, str, int, tuple[str, ...]]] = {
    "jsonl": (
        "annotations.jsonl",
        "\n".join(
            [*(json.dumps(A | {"caption": f"{n}"}) for n in range(3)), "{", json.dumps({"video": "gone.mp4"}), "[]"]
        ),
        6,
        ("a.mp4", "stray.mp4"),
    ),
    "coin": (
        "COIN.json",
        json.dumps({"database": {"abc": COIN, "gone": COIN, "bad": {"duration": "long"}}}),
        3,
        ("abc.mp4", "stray.mp4"),
    ),
    "kinetics": (
        "train.csv",
        "\n".join([KINETICS, "wave,abc,1,11,train,1", "wave,gone,1,11,train,0", "wave,bad,x,y,train,0"]),
        3,
        ("abc_000001_000011.mp4",),
    ),
    "activitynet_captions": (
        "train.json",
        json.dumps({"v_abc": ACTIVITYNET, "v_gone": ACTIVITYNET, "v_bad": {"timestamps": []}}),
        3,
        ("v_abc.mp4", "v_bad.mp4"),
    ),
    "vidbridge_r1": (
        "train.jsonl",
        "\n".join(json.dumps(row) for row in [*VIDBRIDGE, VIDBRIDGE[0] | {"video": "gone.mp4"}, {"video": 7}]),
        5,
        ("a/1.mp4", "dark/2.mp4"),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_read_are_rows_used_and_rows_set_aside(name: str, tmp_path: Path) -> None:
    file, text, held, videos = FILES[name]
    for video in videos:
        (tmp_path / video).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / video).touch()
    (tmp_path / file).write_text(text, encoding="utf-8")
    source = FORMATS[name].read(tmp_path, file)
    assert _adds_up(source), source
    assert source.read == held
    assert source.rows
    assert rows_rejected(source.rejects) >= 2
