"""Parts of real files through ingest: each file is examined once, and each row is accounted for."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from stages.domain.core.records import Reject
from stages.ingest import examine as examining
from stages.ingest.card import summarise
from stages.ingest.examination import Asked, FileReport, examine
from stages.ingest.examine import examine_source
from stages.lib.annotations.annotation import rows_rejected
from stages.lib.video.encoder import encode, ffmpeg_binary
from stages.params import ExcludedVideo, IngestParams, load_params
from tests.support.checkout import ROOT
from tests.support.video.numbered_frames import draw_numbers

PARAMS = load_params(ROOT / "params.yaml").ingest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    encode(draw_numbers(list(range(100))), Fraction(10), folder / "a.mp4", crf=18)
    encode(draw_numbers(list(range(200, 240))), Fraction(10), folder / "b.mp4", crf=18)
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    return folder


@pytest.fixture(autouse=True)
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are examined, in this process: starting others takes longer."""
    names: list[str] = []

    def in_process(
        asked: Sequence[Asked], params: IngestParams, reencoded: Path | None, *_: object
    ) -> Iterator[FileReport]:
        for one in asked:
            names.append(one.video)
            yield examine(one, Path(params.source), reencoded)

    monkeypatch.setattr(examining, "_examined", in_process)
    return names


def _source(folder: Path, *rows: dict[str, Any], **changes: Any) -> IngestParams:
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return PARAMS.model_copy(update={"source": str(folder)} | changes)


def test_a_file_is_examined_once_and_its_rows_are_all_counted(folder: Path, examined: list[str]) -> None:
    a = [{"video": "a.mp4", "start": n, "end": n + 2, "caption": f"part {n}"} for n in range(0, 10, 2)]
    rows = [
        *a,
        {"video": "a.mp4", "start": 2, "end": 4, "caption": "another"},
        {"video": "a.mp4", "start": 9, "end": 12},
        {"video": "copy.mp4", "start": 0, "end": 2},
        {"video": "b.mp4"},
        {"video": "b.mp4", "split": "test", "caption": "b"},
        {"video": "b.mp4", "split": "train"},
        {"video": "gone.mp4"},
    ]
    clips, rejects, _, counts, _ = examine_source(_source(folder, *rows), 7)
    assert sorted(examined) == ["a.mp4", "b.mp4", "copy.mp4"]
    assert [clip.clip_id for clip in clips] == ["a@0-2", "a@2-4", "a@4-6", "a@6-8", "a@8-10", "b"]
    assert {clip.sha256 for clip in clips[:5]} == {clips[0].sha256}
    assert counts == (12, 8)
    assert sorted(reject.reason for reject in rejects) == [
        "conflicting-row",
        "duplicate-video",
        "missing-file",
        "part-outside-file",
    ]
    assert counts.read == counts.used + rows_rejected(rejects)


def test_a_divided_recording_is_one_row_whatever_becomes_of_its_parts(folder: Path) -> None:
    rows = [
        {"video": "a.mp4"},
        {"video": "b.mp4"},
        {"video": "copy.mp4", "source": "a"},
        {"video": "copy.mp4", "source": "a", "caption": "all"},
    ]
    clips, rejects, _, counts, _ = examine_source(_source(folder, *rows, longer="parts", max_duration_s=4), 7)
    assert [clip.clip_id for clip in clips] == ["a@0-3.3", "a@3.3-6.6", "a@6.6-10", "b"]
    assert [(reject.item, reject.reason, reject.rows) for reject in rejects] == [
        ("copy", "about-whole-recording", None),
        ("copy@0-3.3", "duplicate-video", 2),
        ("copy@3.3-6.6", "duplicate-video", 0),
        ("copy@6.6-10", "duplicate-video", 0),
    ]
    assert counts == (4, 2)
    assert counts.read == counts.used + rows_rejected(rejects)
    assert summarise(clips, rejects, {})["rows_rejected"] == 2
    # A part that a row of its own has taken is not missing twice.
    rows[2:] = [{"video": "copy.mp4", "id": "0", "start": 0, "end": 3.3, "source": "a"}]
    clips, rejects, _, counts, _ = examine_source(_source(folder, *rows, longer="parts", max_duration_s=4), 7)
    assert [clip.clip_id for clip in clips] == ["0", "a@3.3-6.6", "a@6.6-10", "b"]
    assert [(reject.item, reject.rows) for reject in rejects] == [("a@0-3.3", 0)]
    assert counts == (3, 3)


def test_a_removed_file_takes_all_its_parts_with_it(folder: Path) -> None:
    rows = [{"video": "a.mp4", "start": n, "end": n + 2} for n in range(0, 10, 2)]
    rows += [{"video": "copy.mp4", "start": 1, "end": 3}, {"video": "b.mp4"}]
    sha256 = examine_source(_source(folder, *rows), 7).clips[0].sha256
    excluded = _source(folder, *rows, exclude=(ExcludedVideo(video="a.mp4", sha256=sha256),))
    clips, rejects, _, counts, _ = examine_source(excluded, 7)
    assert [clip.clip_id for clip in clips] == ["b"]
    assert [(reject.item, reject.reason) for reject in rejects] == [
        *((f"a@{n}-{n + 2}", "removed-on-request") for n in range(0, 10, 2)),
        ("copy@1-3", "removed-on-request"),
    ]
    assert counts.read == counts.used + rows_rejected(rejects)


def test_a_reencoded_file_is_written_once_for_all_its_parts(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    command = [ffmpeg_binary(), "-v", "error", "-i", str(folder / "a.mp4"), "-c", "copy", str(source / "a.mkv")]
    subprocess.run(command, check=True)
    rows = [{"video": "a.mkv", "start": n, "end": n + 5} for n in (0, 5)]
    journal = tmp_path / "examined" / "x.jsonl"
    clips, rejects, hazards, *_ = examine_source(_source(source, *rows, normalise=True), 7, journal)
    assert (rejects, hazards["container"]) == ([], 1)
    assert len({clip.path for clip in clips}) == 1
    assert [clip.first_frame for clip in clips] == [0, 50]
    examining.copy_normalised(clips, journal, tmp_path / "clips")
    assert len(list((tmp_path / "clips").rglob("*.mp4"))) == 1
    assert journal.read_text().count("\n") == 1
    assert all(clip.normalised for clip in clips)


def test_rejects_of_one_row_are_written_as_before() -> None:
    written = Reject(item="a", reason="missing-file", detail="x").model_dump_json(exclude_none=True)
    assert written == '{"schema_version":1,"item":"a","reason":"missing-file","detail":"x"}'
