"""Corpus and ingest on real files: what is made is accepted, what is broken is rejected with its
reason, bytes are the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.domain.core.records import Clip, Reject
from stages.ingest.examine import examine_source
from stages.lib.rows.jsonl import read_rows, write_rows
from stages.lib.video.encoder import encode
from stages.lib.video.errors import VideoError
from stages.lib.video.probe import probe
from stages.lib.video.reader import read_frames
from stages.params import ExcludedVideo, Params, load_params
from stages.runtime.dispatch import run_verb
from stages.runtime.workers import ItemFailure, WorkersError, map_items, map_whole, worker_count
from tests.support.checkout import ROOT

REAL = ROOT / "tests/data/clips"


def _params(source: Path) -> Params:
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(update={"ingest": params.ingest.model_copy(update={"source": str(source)})})


def _moving(frames: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(noise, number, axis=1) for number in range(frames)])


def _examined(params: Params, journal: Path | None = None) -> tuple[list[Clip], list[Reject], Counter[str]]:
    return examine_source(params.ingest, params.seed, journal)[:3]


def test_the_real_clip_is_ingested() -> None:
    clips, rejects, hazards = _examined(_params(REAL))
    assert rejects == []
    assert not hazards
    (clip,) = clips
    assert (clip.clip_id, clip.frames, clip.rate, clip.width, clip.height, clip.codec) == (
        "bigbuckbunny",
        132,
        Fraction(25),
        1280,
        720,
        "h264",
    )
    assert [(event.span.start, event.span.stop) for event in clip.events] == [(0, 38), (38, 53), (53, 105), (105, 132)]
    assert [question.answer for question in clip.questions] == ["B", "C"]
    pixels, backend = read_frames(REAL / clip.path, [0, 66, 131])
    assert backend == "pyav"  # decord is right as well, and slower at 720p
    # The rabbit is grey and the meadow green: a swapped colour plane would show.
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    assert green > red > blue


def test_broken_files_are_set_aside_and_the_others_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    for number, name in enumerate(("good", "late", "short")):
        encode(_moving(4 if name == "short" else 24, number), Fraction(8), tmp_path / f"{name}.mp4", crf=20)
    good = (tmp_path / "good.mp4").read_bytes()
    contents = {"empty": b"", "text": b"hello\n" * 99, "cut": good[: len(good) * 2 // 3], "same": good, "stray": good}
    contents["rotten"] = good[:1200] + bytes(b ^ 0x3C for b in good[1200:])
    for name, content in contents.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    events = [{"start": 1, "end": 3.2, "caption": "it goes on"}, {"start": 1, "end": 3.4, "caption": "it never ends"}]
    late = {"video": "late.mp4", "events": events}
    rows = [{"video": f"{name}.mp4"} for name in ("good", "short", "empty", "text", "cut", "rotten", "gone")] + [late]
    rows.append({"video": "same.mp4", "id": "twice"})
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips, rejects, _ = _examined(_params(tmp_path))
    assert [clip.clip_id for clip in clips] == ["good", "late"]
    assert [(event.span.start, event.span.stop, event.cut_s) for event in clips[1].events] == [(8, 24, Fraction(1, 5))]
    assert {reject.item: reject.reason for reject in rejects} == {
        "short": "too-short",
        "empty": "empty-file",
        "text": "not-a-video",
        "cut": "damaged",
        "rotten": "damaged",
        "annotations.jsonl:7": "missing-file",
        "late": "event-outside-clip",
        "twice": "duplicate-video",
        "stray.mp4": "no-annotation",
    }
    assert [reject.reason for reject in rejects] == sorted(reject.reason for reject in rejects)
    (outside,) = (reject for reject in rejects if reject.item == "late")
    assert outside.detail == (
        "late.mp4: event 'it never ends' [1, 3.4) s reaches beyond the clip, which has 3 s, by 0.4 s; correct its"
        " times (ingest.tolerance is 1 s and 0.1 of the clip) (annotations.jsonl:8, events)"
    )


def test_a_removed_video_is_set_aside_with_all_its_copies_and_moves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    for number, name in enumerate(("a", "b")):
        encode(_moving(8, number), Fraction(8), tmp_path / f"{name}.mp4", crf=20)
    shutil.copyfile(tmp_path / "a.mp4", tmp_path / "copy.mp4")
    # The annotated split of "a" counts for its whole source, also when the video is gone.
    rows = [
        {"video": "a.mp4", "source": "s", "split": "test"},
        {"video": "b.mp4", "source": "s"},
        {"video": "copy.mp4", "source": "other"},
    ]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    journal = tmp_path / "journal.jsonl"
    before, _, _ = _examined(_params(tmp_path), journal)
    assert [(clip.clip_id, clip.split) for clip in before] == [("a", "test"), ("b", "test")]
    params = _params(tmp_path)
    video = ExcludedVideo(video="./a.mp4", sha256=before[0].sha256)
    ingest = params.ingest.model_copy(update={"exclude": (video,)})
    after, rejects, *_ = examine_source(ingest, params.seed, journal)
    assert after == before[1:]
    assert [(one.item, one.reason, one.detail) for one in rejects] == [
        ("a", "removed-on-request", "a.mp4: named in ingest.exclude; it was removed on request"),
        (
            "copy",
            "removed-on-request",
            "copy.mp4: holds the same bytes as './a.mp4', which is named in ingest.exclude; it was removed on request",
        ),
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own, with a tiny corpus made by one worker."""
    folder = tmp_path_factory.mktemp("project")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["corpus"] |= {"train_clips": 5, "validation_clips": 2, "test_clips": 4}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True, timeout=60)
    done = _verb(folder, "corpus", workers=1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("corpus: 11 clips of 16 frames, ")
    assert done.stdout.endswith("11 ffmpeg commands built by ffmpeg-python\n")
    return folder


def _verb(folder: Path, name: str, workers: int) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VIDBRIDGE_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "VIDBRIDGE_WORKERS": str(workers),
        "VIDBRIDGE_PROJECT": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    command = [sys.executable, "-m", "stages", name]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False
    )


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_two_workers_make_the_same_corpus_and_stale_clips_go(project: Path) -> None:
    before = _bytes(project / "data" / "corpus")
    assert len(before) == 12
    (project / "data" / "corpus" / "videos" / "train-99999.mp4").touch()
    done = _verb(project, "corpus", workers=2)
    assert done.returncode == 0, done.stderr
    assert _bytes(project / "data" / "corpus") == before


def test_the_corpus_is_ingested_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = _verb(project, "ingest", workers=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ingest: 11 clips accepted, 0 rejected\n"
    written = project / "data" / "clips"
    clips = read_rows(written / "manifest.jsonl", Clip)
    assert [clip.clip_id for clip in clips] == sorted(clip.clip_id for clip in clips)
    assert read_rows(written / "rejects.jsonl", Reject) == []
    summary = json.loads((written / "summary.json").read_text())
    assert summary["splits"] == {"train": 5, "validation": 2, "test": 4}
    assert (summary["events"], summary["questions"], summary["not_for_decord"]) == (22, 44, {})
    for clip in clips:
        assert [clip.frames, clip.rate, clip.width] == [16, 8, 64]
        assert 1 <= clip.events[0].span.start <= 2
        assert clip.events[1].span.stop == 14
    # One worker gives the same rows in the same order.
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    assert _examined(_params(project / "data" / "corpus"))[0] == clips


def test_nothing_accepted_is_an_error_that_lists_why(project: Path, tmp_path: Path) -> None:
    bad = tmp_path / "project"
    shutil.copytree(project, bad, ignore=shutil.ignore_patterns("videos"))
    done = _verb(bad, "ingest", workers=1)
    assert done.returncode == 1
    assert "ingest: 0 clips accepted, 11 rejected (11 missing-file)" in done.stdout
    assert (
        "error: ingest.source: 'data/corpus' gave no clip\n  annotations.jsonl:1: missing-file: video: " in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert len(read_rows(bad / "data" / "clips" / "rejects.jsonl", Reject)) == 11


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device")
def test_a_full_disk_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.jsonl.unfinished").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as caught:
        run_verb(lambda: write_rows(tmp_path / "manifest.jsonl", [Reject(item="x", reason="y", detail="z" * 100_000)]))
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: the disk is full")


def test_unexpected_errors_keep_their_traceback() -> None:
    def bug() -> int:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run_verb(bug)


def test_the_number_of_workers_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "two", "-1"):
        monkeypatch.setenv("VIDBRIDGE_WORKERS", value)
        with pytest.raises(WorkersError, match=f"VIDBRIDGE_WORKERS: '{value}' is not a number of processes"):
            worker_count()
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "2")
    assert list(map_items(str, [3, 1, 2], "numbers", timeout_s=60)) == ["3", "1", "2"]
    assert list(map_items(str, [], "numbers", timeout_s=60)) == []


def test_an_item_that_kills_its_process_or_hangs_is_lost_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "2")
    items: list[float | str] = [0.01, "die", 0.02, "die once", 60.0, *[0.0] * 40]
    results = list(map_items(partial(_misbehave, folder=tmp_path), items, "items", timeout_s=2))
    assert results[0::2] == [
        *items[0:4:2],
        ItemFailure("timeout", "not done within 2 s; its process was ended"),
        *items[6::2],
    ]
    assert isinstance(results[1], ItemFailure)
    assert (results[1].reason, "died 2 times (exit status -9" in results[1].detail) == ("worker-died", True)
    assert results[3] == "die once"
    assert results[5::2] == items[5::2]


def test_the_loss_of_an_item_that_is_needed_ends_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "1")
    work = partial(_misbehave, folder=tmp_path)
    assert map_whole(work, [0.0, 0.01], "items", timeout_s=60, name=str, remedy="try again") == [0.0, 0.01]
    with pytest.raises(WorkersError, match=r"^item die: its process died 2 times .*; try again$"):
        map_whole(work, [0.0, "die"], "items", timeout_s=60, name=lambda item: f"item {item}", remedy="try again")


def _misbehave(item: float | str, folder: Path) -> float | str:
    if item == "die" or (item == "die once" and not (folder / "died").exists()):
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(item, float):
        time.sleep(item)
    return item


def test_an_error_in_a_worker_comes_out_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDBRIDGE_WORKERS", "2")
    with pytest.raises(VideoError, match=r"missing-file: 1\.mp4") as caught:
        list(map_items(probe, [tmp_path / "1.mp4", tmp_path / "2.mp4"], "clips", timeout_s=60))
    assert caught.value.reason == "missing-file"


def test_what_was_found_is_kept_until_the_file_changes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, journal = tmp_path / "videos", tmp_path / "state/journal.jsonl"
    shutil.copytree(project / "data" / "corpus", folder)
    rows = [json.loads(line) for line in (folder / "annotations.jsonl").read_text().splitlines()][:4]
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / rows[1]["video"]).write_bytes(b"no video")
    whole = _examined(_params(folder), journal)
    assert len(whole[0]) == 3
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 4

    # Killed in the middle of a line: what was written whole is not looked at again, and the outcome
    # is the same.
    journal.write_text("".join(lines[:2]) + lines[2][:30])
    looked: list[str] = []
    monkeypatch.setattr(
        "stages.ingest.examine.map_items",
        lambda work, items, *_, **__: (looked.append(i.video) or work(i) for i in items),
    )
    assert _examined(_params(folder), journal) == whole
    assert looked == sorted(row["video"] for row in rows)[2:]

    # A file that was mended is looked at again, and nothing else is.
    looked.clear()
    shutil.copy(folder / rows[0]["video"], folder / rows[1]["video"])
    clips, rejects, _ = _examined(_params(folder), journal)
    assert looked == [rows[1]["video"]]
    assert [reject.reason for reject in rejects if reject.item == rows[1]["id"]] in ([], ["duplicate-video"])
    assert len(clips) == 3
