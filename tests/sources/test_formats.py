"""Published annotation formats: each fixture follows a public record's field names, and a bad entry is named by file, line and field."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import pytest

from stages.params import IngestParams
from stages.sources.annotation import Annotation, SourceError
from stages.sources.formats import FORMATS, read_source

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
    "v_abc": {"duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 60.81]], "sentences": ["A woman stands.", " She dances."]}
}
#: The header of the files that github.com/cvdfoundation/kinetics-dataset downloads (3f0f5d9), is_cc in Kinetics-400 only.
KINETICS = "label,youtube_id,time_start,time_end,split,is_cc"
#: Field names as src/open_r1_video/grpo.py of github.com/VidBridge-R1/VidBridge-R1 reads them at 2ae764b.
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


def read(folder: Path, name: str, annotations: str | None = None) -> tuple[list[Annotation], list[tuple[str, str, str]]]:
    params = IngestParams.model_validate(
        {
            "source": str(folder),
            "format": name,
            "annotations": annotations,
            "validation_share": 0.1,
            "test_share": 0.1,
            "min_frames": 8,
            "max_duration_s": 600,
            "timeout_s": 60,
            "normalise": False,
        }
    )
    rows, rejects = read_source(params)
    return rows, [(r.item, r.reason, r.detail) for r in rejects]


def put(folder: Path, name: str, text: str, *videos: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    for video in videos:
        (folder / video).parent.mkdir(parents=True, exist_ok=True)
        (folder / video).touch()
    return folder


def test_the_parameter_knows_every_format() -> None:
    assert set(get_args(IngestParams.model_fields["format"].annotation)) == set(FORMATS)


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
    assert [(e.start, e.end, e.caption) for e in row.events] == [(60, 69, "take out the drive"), (71, 82, "insert the tray")]
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
    assert (row.video, row.caption) == ("a/1.mp4", "A book falls.")
    assert [(q.question, q.options, q.answer) for q in row.qa] == [("What falls?", ("A cup", "A book"), "B")]
    assert [(item, reason) for item, reason, _ in rejects] == [
        ("train.jsonl:3", "already-edited"),
        ("train.jsonl:4", "bad-annotation"),
        ("train.jsonl:5", "duplicate-caption"),
        ("train.jsonl:6", "bad-annotation"),
        ("train.jsonl:7", "bad-annotation"),
    ]
    assert "solution 'E'" in rejects[1][2]
    assert rejects[3][2] == "problem: missing"


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        ({**COIN["LtRSn-ntcLY"], "subset": "dev"}, "b.subset: Input should be 'training', 'validation' or 'testing'"),
        (
            {**COIN["LtRSn-ntcLY"], "annotation": [{"segment": [1.0, "soon"], "label": "x"}]},
            "b.annotation.0.segment.1: no time in seconds",
        ),
        (
            {**COIN["LtRSn-ntcLY"], "annotation": [{"segment": [9.0, 3.0], "label": "x"}]},
            "b.events.0: start 9 s and end 3 s: need start < end",
        ),
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
        ("coin", "COIN.json", '{"database": []}', "database is no object with an entry for each video"),
        ("kinetics", "kinetics.csv", "label,split\n", "line 1: no column youtube_id, time_start, time_end"),
        ("activitynet_captions", "other.json", "{}", "has no train.json"),
    ],
)
def test_a_file_that_is_of_another_format_is_an_error(name: str, file: str, text: str, message: str, tmp_path: Path) -> None:
    put(tmp_path, file, text)
    with pytest.raises(SourceError, match=message):
        read(tmp_path, name)
