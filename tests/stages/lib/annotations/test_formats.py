"""Published annotation formats: each fixture follows a public record's field names, and a bad entry
is named by file, line and field."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from stages.lib.annotations.annotation import Annotation, SourceError
from stages.lib.annotations.formats import read_source
from stages.params import IngestParams
from tests.support.siblings import CASES

#: After the entry that the README of github.com/coin-dataset/annotations shows at 4450e37.
COIN: dict[str, Any] = {
    "LtRSn-ntcLY": {
        "duration": 131.0309,
        "class": "ReplaceCDDriveWithSSD",
        "video_url": "https://www.youtube.com/embed/LtRSn-ntcLY",
        "start": 56.640895694775196,
        "annotation": [
            {"id": "212", "segment": [60.0, 69.0], "label": "take out the drive"},
            {"id": "216", "segment": [71.0, 82.0], "label": "insert the tray"},
        ],
        "subset": "training",
        "end": 85.714362947023,
        "recipe_type": 131,
    }
}
#: Field names as evaluate.py of github.com/ranjaykrishna/densevid_eval reads them at 5759c13.
ACTIVITYNET: dict[str, Any] = {
    "v_abc": {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17.37, 60.81]],
        "sentences": ["A woman stands.", " She dances."],
    }
}
#: The header of the files that github.com/cvdfoundation/kinetics-dataset downloads (3f0f5d9), is_cc
#: in Kinetics-400 only.
KINETICS = "label,youtube_id,time_start,time_end,split,is_cc"
#: Field names as src/open_r1_video/grpo.py of github.com/VidBridge-R1/VidBridge-R1 reads them at
#: 2ae764b.
VIDBRIDGE: list[dict[str, Any]] = [
    {
        "video": "a/1.mp4",
        "problem": "What falls?\nA. A cup\nB. A book",
        "solution": "<answer>B</answer>",
        "problem_type": "MCQA",
    },
    {"video": "a/1.mp4", "problem": "Describe the video.", "solution": "A book falls.", "problem_type": "caption"},
    {"video": "dark/2.mp4", "problem": "What happens?", "solution": "It rains.", "problem_type": "DarkEventInfer"},
]


def read(
    folder: Path, name: str, annotations: str | None = None
) -> tuple[list[Annotation], list[tuple[str, str, str]]]:
    params = IngestParams.model_validate(
        {
            "source": str(folder),
            "format": name,
            "annotations": annotations,
            "videos": None,
            "names": None,
            "validation_share": 0.1,
            "test_share": 0.1,
            "min_frames": 8,
            "max_duration_s": 600,
            "longer": "reject",
            "tolerance": {"seconds": 1, "share": 0.1},
            "timeout_s": 60,
            "validation": {"mode": "whole", "whole_up_to": 0},
            "frame_rate": None,
            "normalise": False,
            "exclude": [],
            "source_pattern": None,
            "curate": False,
            "near_duplicates": None,
        }
    )
    rows, rejects, *_ = read_source(params)
    return rows, [(r.item, r.reason, r.detail) for r in rejects]


def put(folder: Path, name: str, text: str, *videos: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    for video in videos:
        (folder / video).parent.mkdir(parents=True, exist_ok=True)
        (folder / video).touch()
    return folder


def test_a_format_that_is_not_read_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"^ingest\.format: 'coins' is not a supported format; set one of jsonl, coin, "
    ):
        read(tmp_path, "coins")


def test_coin_gives_timed_steps_and_finds_videos_where_the_download_script_puts_them(tmp_path: Path) -> None:
    put(tmp_path, "COIN.json", json.dumps({"database": COIN}), "131/LtRSn-ntcLY.mp4")
    (row,), rejects = read(tmp_path, "coin")
    assert rejects == []
    assert (row.video, row.clip_id, row.split, row.label) == (
        "131/LtRSn-ntcLY.mp4",
        "LtRSn-ntcLY",
        "train",
        "ReplaceCDDriveWithSSD",
    )
    assert [(e.start, e.end, e.caption) for e in row.events] == [
        (60, 69, "take out the drive"),
        (71, 82, "insert the tray"),
    ]
    assert "research only" in (row.licence or "")


def test_activitynet_captions_keeps_overlaps_exactly_and_takes_the_split_from_the_file(tmp_path: Path) -> None:
    put(tmp_path, "train.json", json.dumps(ACTIVITYNET), "v_abc.mkv")
    put(tmp_path, "val_1.json", json.dumps(ACTIVITYNET))
    (row,), _ = read(tmp_path, "activitynet_captions")
    assert (row.split, row.caption) == ("train", "A woman stands. She dances.")
    assert [(e.start, e.end) for e in row.events] == [
        (Fraction("0.83"), Fraction("19.86")),
        (Fraction("17.37"), Fraction("60.81")),
    ]
    (row,), _ = read(tmp_path, "activitynet_captions", "val_1.json")
    assert row.split == "validation"


def test_kinetics_names_clips_by_seconds_and_keeps_a_recording_together(tmp_path: Path) -> None:
    lines = [
        KINETICS,
        '"air drumming",_dbcJuKJQNs,40,50,val,0',
        "abseiling,_dbcJuKJQNs,59,69,val,1",
        "abseiling,gone0000000,0,10,val,0",
        "abseiling,zzz,0,ten,val,0",
        "abseiling,yyy,0,10,dev,0",
    ]
    videos = ["air drumming/_dbcJuKJQNs_000040_000050.mp4", "_dbcJuKJQNs_000059_000069.mp4", "yyy.mp4"]
    rows, rejects = read(put(tmp_path, "kinetics.csv", "\n".join(lines), *videos), "kinetics")
    assert [(r.clip_id, r.source_id, r.split, r.label) for r in rows] == [
        ("_dbcJuKJQNs_000040_000050", "_dbcJuKJQNs", "validation", "air drumming"),
        ("_dbcJuKJQNs_000059_000069", "_dbcJuKJQNs", "validation", "abseiling"),
    ]
    assert [r.licence for r in rows] == [None, "CC BY (is_cc)"]
    assert [(item, reason) for item, reason, _ in rejects] == [
        ("kinetics.csv:4", "missing-file"),
        ("kinetics.csv:5", "bad-annotation"),
        ("kinetics.csv:6", "bad-annotation"),
    ]
    assert "time_end: Input should be a valid integer" in rejects[1][2]
    assert "split: 'dev' is none of train, val" in rejects[2][2]


def test_vidbridge_r1_gathers_the_samples_of_a_video_and_sets_edited_ones_aside(tmp_path: Path) -> None:
    broken = [
        {**VIDBRIDGE[0], "solution": "E"},
        {**VIDBRIDGE[1], "solution": "Another caption."},
        {key: value for key, value in VIDBRIDGE[0].items() if key != "problem"},
    ]
    text = "\n".join(json.dumps(row) for row in [*VIDBRIDGE, *broken]) + "\n{\n"
    (row,), rejects = read(put(tmp_path, "train.jsonl", text, "a/1.mp4", "dark/2.mp4"), "vidbridge_r1")
    assert (row.video, row.caption, row.captions, row.rows) == ("a/1.mp4", "A book falls.", ("Another caption.",), 3)
    assert [(q.question, q.options, q.answer) for q in row.qa] == [("What falls?", ("A cup", "A book"), "B")]
    assert [(item, reason) for item, reason, _ in rejects] == [
        ("train.jsonl:3", "already-edited"),
        ("train.jsonl:4", "bad-question"),
        ("train.jsonl:6", "bad-annotation"),
        ("train.jsonl:7", "bad-annotation"),
    ]
    assert (
        rejects[1][2]
        == "solution: 'E' names no option: there are 2 (A to B); give a letter, or an option's own words (of 'What"
        " falls?')"
    )
    assert rejects[2][2] == "problem: missing"


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        ({**COIN["LtRSn-ntcLY"], "subset": "dev"}, "b.subset: Input should be 'training', 'validation' or 'testing'"),
        ([], "b: need one JSON object, found list"),
    ],
)
def test_a_bad_entry_is_named_by_file_line_and_field(entry: Any, detail: str, tmp_path: Path) -> None:
    text = json.dumps({"database": {**COIN, "b": entry}}, indent=1)
    rows, rejects = read(put(tmp_path, "COIN.json", text, "LtRSn-ntcLY.mp4", "b.mp4"), "coin")
    assert [row.clip_id for row in rows] == ["LtRSn-ntcLY"]
    ((item, reason, said),) = rejects
    line = next(number for number, line in enumerate(text.splitlines(), start=1) if '"b":' in line)
    assert (item, reason) == (f"COIN.json:{line}", "bad-annotation")
    assert detail in said


@pytest.mark.parametrize(
    ("step", "detail"),
    [
        ({"segment": [1.0, "soon"], "label": "x"}, "b.annotation.1.segment.1: no time in seconds"),
        ({"segment": [9.0], "label": "x"}, "b.annotation.1.segment.1: missing"),
        ({"segment": [9.0, 12.0]}, "b.annotation.1.label: missing"),
        ({"segment": [9.0, 3.0], "label": "x"}, "b.events.1: start 9 s and end 3 s: need start < end"),
        ({"segment": [3.0, 9.0], "label": " "}, "b.events.1: caption is blank"),
        (7, "b.annotation.1: need one JSON object, found int"),
    ],
)
def test_a_bad_step_of_coin_is_set_aside_alone(step: Any, detail: str, tmp_path: Path) -> None:
    entry = {**COIN["LtRSn-ntcLY"], "annotation": [COIN["LtRSn-ntcLY"]["annotation"][0], step]}
    (row,), rejects = read(put(tmp_path, "COIN.json", json.dumps({"database": {"b": entry}}), "b.mp4"), "coin")
    assert [e.caption for e in row.events] == ["take out the drive"]
    assert row.length_s == Fraction("131.0309")
    ((item, reason, said),) = rejects
    assert (item, reason) == ("COIN.json:1", "bad-event")
    assert detail in said


@pytest.mark.parametrize(
    ("changes", "events", "caption", "detail"),
    [
        (
            {"timestamps": [[5, 5], [1, 2]]},
            ["She dances."],
            "A woman stands. She dances.",
            "v_abc.events.0: start 5 s and end 5 s: need start < end",
        ),
        (
            {"timestamps": [[5, "x"], [1, 2]]},
            ["She dances."],
            "A woman stands. She dances.",
            "v_abc.events.0.timestamps.1: no time",
        ),
        (
            {"timestamps": [[1, 2, 3], [1, 2]]},
            ["She dances."],
            "A woman stands. She dances.",
            "v_abc.events.0.timestamps: Tuple should",
        ),
        (
            {"sentences": ["  ", "She dances."]},
            ["She dances."],
            "She dances.",
            "v_abc.events.0.caption: String should have at least",
        ),
        (
            {"sentences": [None, "She dances."]},
            ["She dances."],
            "She dances.",
            "v_abc.events.0.sentences: Input should be a valid string",
        ),
        ({"sentences": ["She dances."]}, [], "She dances.", "v_abc: 2 timestamps and 1 sentences: need as many"),
        ({"timestamps": None}, [], "A woman stands. She dances.", "v_abc.timestamps: need a list, found NoneType"),
    ],
)
def test_a_bad_event_of_activitynet_captions_is_set_aside_alone(
    changes: Any, events: list[str], caption: str, detail: str, tmp_path: Path
) -> None:
    text = json.dumps({"v_abc": ACTIVITYNET["v_abc"] | changes})
    (row,), rejects = read(put(tmp_path, "train.json", text, "v_abc.mkv"), "activitynet_captions")
    assert ([e.caption for e in row.events], row.caption, row.length_s) == (events, caption, Fraction("82.73"))
    ((item, reason, said),) = rejects
    assert (item, reason) == ("train.json:1", "bad-event")
    assert detail in said


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("<answer>\n(b)\n</answer>", "B"),
        ("B. It slips", "B"),
        ("It slips.", "B"),
        ("Because it is pushed", None),
        ("A man pushes it", None),
        ("B. It is pushed", None),
        ("A, B", None),
        ("C", None),
        ("<answer></answer>", None),
    ],
)
def test_a_solution_of_vidbridge_r1_is_read_strictly(solution: str, answer: str | None, tmp_path: Path) -> None:
    lines = [
        json.loads((CASES / "text-solution.jsonl").read_text()) | {"solution": solution},
        VIDBRIDGE[1] | {"video": "a.mp4"},
    ]
    put(tmp_path, "train.jsonl", "\n".join(map(json.dumps, lines)), "a.mp4")
    (row,), rejects = read(tmp_path, "vidbridge_r1")
    # A rejected question does not affect the rest of the row.
    assert row.caption == "A book falls."
    assert [question.answer for question in row.qa] == ([answer] if answer else [])
    assert [(item, reason) for item, reason, _ in rejects] == ([] if answer else [("train.jsonl:1", "bad-question")])


def test_a_caption_of_vidbridge_r1_that_says_nothing_leaves_its_video_the_questions(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row) for row in [VIDBRIDGE[0], VIDBRIDGE[1] | {"solution": "<answer> </answer>"}])
    (row,), rejects = read(put(tmp_path, "train.jsonl", text, "a/1.mp4"), "vidbridge_r1")
    assert (len(row.qa), row.caption) == (1, None)
    assert [(item, reason) for item, reason, _ in rejects] == [("train.jsonl:2", "bad-caption")]


def test_kinetics_rows_that_csv_cannot_read_or_whose_window_is_empty_are_set_aside_alone(tmp_path: Path) -> None:
    lines = [
        KINETICS,
        "a,aaa,9,9,val,0",
        "b\u2028c,bbb,0,10,val,0",
        "d,ddd,0,10,val,0",
        f'"{"x" * 140_000}"',
        "e,eee,5,15,val,0",
    ]
    videos = ["aaa.mp4", "bbb_000000_000010.mp4", "ddd_000000_000010.mp4", "eee_000005_000015.mp4"]
    rows, rejects = read(put(tmp_path, "kinetics.csv", "\n".join(lines), *videos), "kinetics")
    assert [(row.label, row.where, row.length_s) for row in rows] == [
        ("b\u2028c", "kinetics.csv:3", 10),
        ("d", "kinetics.csv:4", 10),
        ("e", "kinetics.csv:6", 10),
    ]
    assert [(item, reason) for item, reason, _ in rejects] == [
        ("kinetics.csv:2", "bad-annotation"),
        ("kinetics.csv:5", "bad-annotation"),
    ]
    assert rejects[0][2] == "time_start 9 and time_end 9: need time_start < time_end"


def test_windows_of_a_whole_recording_are_parts_of_it(tmp_path: Path) -> None:
    lines = [KINETICS, "a,aaa,0,10,val,0", "b,aaa,20,30,val,0", "c,aaa,40,50,val,0"]
    put(tmp_path, "kinetics.csv", "\n".join(lines), "aaa.mp4", "aaa_000040_000050.mp4")
    rows, rejects = read(tmp_path, "kinetics")
    assert rejects == []
    assert [(row.clip_id, row.source_id, row.video, row.start, row.end, row.length_s) for row in rows] == [
        ("aaa_000000_000010", "aaa", "aaa.mp4", 0, 10, None),
        ("aaa_000020_000030", "aaa", "aaa.mp4", 20, 30, None),
        ("aaa_000040_000050", "aaa", "aaa_000040_000050.mp4", None, None, 10),
    ]


def test_activitynet_captions_takes_classes_from_the_file_beside(tmp_path: Path) -> None:
    put(tmp_path, "train.json", json.dumps({**ACTIVITYNET, "v_two": ACTIVITYNET["v_abc"]}), "v_abc.mkv", "v_two.mkv")
    segments = {"abc": ["Tango", "Tango"], "two": ["Tango", "Salsa"]}
    database = {key: {"annotations": [{"label": label} for label in labels]} for key, labels in segments.items()}
    put(tmp_path, "activity_net.v1-3.min.json", json.dumps({"database": database}))
    rows, rejects = read(tmp_path, "activitynet_captions")
    assert rejects == []
    # A video of two classes has no single one.
    assert [(row.clip_id, row.label) for row in rows] == [("v_abc", "Tango"), ("v_two", None)]


def test_a_sentence_that_stands_for_none_is_a_placeholder(tmp_path: Path) -> None:
    entries = {
        "a": {"timestamps": [[0, 1]], "sentences": ["None"]},
        "b": {"timestamps": [[0, 1]], "sentences": ["None of them moves."]},
        "c": {"timestamps": [[3, 9]], "sentences": ["None"]},
    }
    put(tmp_path, "test.json", json.dumps(entries), "a.mp4", "b.mp4", "c.mp4")
    rows, ((item, reason, detail),) = read(tmp_path, "activitynet_captions", "test.json")
    assert [row.clip_id for row in rows] == ["b", "c"]
    assert (item, reason) == ("test.json:1", "placeholder")
    assert detail == "a: 'None' at [0, 1] stands for no annotation; leave the entry out"


def test_two_files_of_one_name_are_not_guessed_between(tmp_path: Path) -> None:
    put(tmp_path, "COIN.json", json.dumps({"database": COIN}), "1/LtRSn-ntcLY.mp4", "2/LtRSn-ntcLY.webm")
    rows, rejects = read(tmp_path, "coin")
    assert rows == []
    assert rejects[0][1] == "ambiguous-file"
    assert "1/LtRSn-ntcLY.mp4, 2/LtRSn-ntcLY.webm" in rejects[0][2]


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("coin", "COIN.json", "{", "COIN.json: not JSON"),
        ("activitynet_captions", "train.json", '{"a": 1}\n{"b": 2}', "these are JSON lines, not a JSON document"),
        ("vidbridge_r1", "train.jsonl", '[\n{"video": "a.mp4"}\n]', "this is a JSON document .*, not JSON lines"),
        ("coin", "COIN.json", '{"database": []}', "database is not an object with an entry for each video"),
        ("kinetics", "kinetics.csv", "label,split\n", "line 1: no column youtube_id, time_start, time_end"),
        ("activitynet_captions", "other.json", "{}", "has no train.json"),
    ],
)
def test_a_file_that_is_of_another_format_is_an_error(
    name: str, file: str, text: str, message: str, tmp_path: Path
) -> None:
    put(tmp_path, file, text)
    with pytest.raises(SourceError, match=message):
        read(tmp_path, name)
