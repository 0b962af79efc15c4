"""The zoo through ingest and the reader: no wrong frame, no crash, no hang, and a reason for every
reject."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stages.domain.core.records import SPLITS, Clip, Reject, Sample
from stages.domain.core.timeline import plain
from stages.ingest.examine import copy_normalised, examine_source
from stages.lib.rows.jsonl import read_rows
from stages.lib.video.loader import FrameLoader
from stages.params import IngestParams, load_params
from tests.support.checkout import ROOT
from tests.support.video.zoo import Animal, build, read_blocks, upright


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Animal]]:
    folder = tmp_path_factory.mktemp("zoo") / "animals"
    animals = build(folder)
    rows = "".join(json.dumps({"video": animal.name, "id": animal.name}) + "\n" for animal in animals)
    (folder / "annotations.jsonl").write_text(rows, encoding="utf-8")
    return folder, animals


def _ingest(folder: Path, **changes: object) -> IngestParams:
    return load_params(ROOT / "params.yaml").ingest.model_copy(update={"source": str(folder), **changes})


def _reason(rejects: list[Reject], animal: Animal, number: int) -> str | None:
    # A row that names no file of the folder is identified by its line.
    return next((r.reason for r in rejects if r.item in (animal.name, f"annotations.jsonl:{number}")), None)


def _numbers(clip: Clip, loader: FrameLoader, name: str) -> Iterator[list[int]]:
    """Every slot in order, and a few out of order."""
    timeline = plain(clip.clip_id, clip.frames, clip.rate)
    for wanted in (list(range(clip.frames)), [clip.frames - 1, 0, clip.frames // 2, 3, clip.frames // 2, 1]):
        shown = read_blocks(upright(loader.frames(timeline, wanted), name))
        yield [shown[wanted.index(slot)] for slot in sorted(set(wanted))]


@pytest.mark.parametrize("normalise", [False, True], ids=["as they are", "re-encoded"])
def test_no_wrong_frame(
    zoo: tuple[Path, list[Animal]], normalise: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, animals = zoo
    params, journal = _ingest(folder, normalise=normalise), tmp_path / "journal.jsonl"
    clips, rejects, *_ = examine_source(params, 7, journal)
    copy_normalised(clips, journal, tmp_path)
    by_name = {clip.clip_id: clip for clip in clips}
    assert len(clips) + len(rejects) == len(animals), "every file is a clip or rejected, and none is both"

    table, failures = [], []
    for number, animal in enumerate(animals, start=1):
        reason, clip = _reason(rejects, animal, number), by_name.get(animal.name)
        right = wrong = 0
        if clip is not None:
            loader = FrameLoader(by_name, folder, cache_bytes=0, manifest=tmp_path)
            truth = animal.shows or ()
            for numbers, slots in zip(
                _numbers(clip, loader, animal.name),
                (range(clip.frames), sorted({clip.frames - 1, 0, clip.frames // 2, 3, 1})),
                strict=True,
            ):
                expected = [truth[slot] if slot < len(truth) else None for slot in slots]
                right += sum(a == b for a, b in zip(numbers, expected, strict=True))
                wrong += sum(a != b for a, b in zip(numbers, expected, strict=True))
            if normalise:
                assert clip.decord_safe
        by = "" if clip is None else "decord" if clip.decord_safe else f"PyAV: {', '.join(clip.hazards)}"
        table.append(f"{animal.name:<34} {right:>5} {wrong:>5}  {reason or '':<16} {by}")
        expected_length = len(animal.shows) if animal.shows is not None else None
        if (
            wrong
            or (clip is not None) != (animal.shows is not None)
            or (clip is not None and clip.frames != expected_length)
        ):
            failures.append(
                f"{animal.name}: {wrong} wrong, {clip.frames if clip else 'no'} frames, {expected_length} expected,"
                f" {reason}"
            )
        if animal.shows is None and reason not in animal.reasons:
            failures.append(f"{animal.name}: rejected as {reason}, expected {sorted(animal.reasons)}")
    with capsys.disabled():
        print("\n" + "\n".join([f"{'file':<34} {'right':>5} {'wrong':>5}  {'rejected':<16} read by", *table]))
    assert not failures, "\n".join(failures)


@pytest.mark.slow
def test_the_zoo_and_a_real_clip_through_check_and_pipeline(zoo: tuple[Path, list[Animal]], tmp_path: Path) -> None:
    """Counts add up, each reason is right, nothing is lost, and no stage fails."""
    animals_folder, animals = zoo
    source, project = tmp_path / "videos", tmp_path / "project"
    shutil.copytree(animals_folder, source, symlinks=True)
    shutil.copy(ROOT / "tests/data/clips/bigbuckbunny.mp4", source)
    (tmp_path / "secret.mp4").write_bytes((source / "plain.mp4").read_bytes())
    (source / "link-out.mp4").symlink_to(tmp_path / "secret.mp4")
    shutil.copy(source / "plain.mp4", source / "nobody-names-it.mp4")
    real = json.loads((ROOT / "tests/data/clips/annotations.jsonl").read_text()) | {"label": "rabbit"}
    event = {"start": 1.0, "end": 3.5, "caption": "the numbers go up"}
    rows = [
        {
            "video": a.name,
            "id": a.name,
            "label": "numbers",
            "caption": "numbers go up",
            "events": [event] if a.shows else [],
        }
        for a in animals
    ]
    rows += [
        real,
        {"video": "../secret.mp4"},
        {"video": "link-out.mp4"},
        {"video": "/etc/passwd"},
        {"video": "http://example.org/x.mp4"},
    ]
    (source / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    project.mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["ingest"]["source"] = str(source)
    params["judge"]["kind"] = "rule_on_real_text"
    params["synthesize"]["tasks"]["mix_vid_qa"] |= {"min_piece_s": 1.5, "max_piece_s": 2, "min_piece_frames": 1}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copy(ROOT / "dvc.yaml", project)

    def call(*command: str, status: int = 0) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "VIDBRIDGE_PROJECT": str(project), "COLUMNS": "250"}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    call("-m", "dvc", "init", "--no-scm", "-q")
    checked = call("-c", "from flows.cli.main import main; main()", "data", "check", str(source), "--all")
    # DVC itself cannot hash a folder with a broken link: that is reported before anything starts.
    refused = call("-c", "from flows.cli.main import main; main()", "run", "ingest", "--yes", status=1)
    assert "\nerror: ingest.source: " in refused
    assert "loop.mp4' is a link that leads nowhere" in refused
    (source / "loop.mp4").unlink()
    assert "will run" in call("-c", "from flows.cli.main import main; main()", "plan", "ingest")
    call("-m", "stages", "ingest")
    call("-m", "stages", "synthesize")

    clips = read_rows(project / "data/clips/manifest.jsonl", Clip)
    rejects = read_rows(project / "data/clips/rejects.jsonl", Reject)
    accepted = {animal.name for animal in animals if animal.shows}
    assert {clip.clip_id for clip in clips} == accepted | {"bigbuckbunny"}
    assert len(clips) + len(rejects) == len(rows) + 1, "every row, and the file that no row names"
    reasons = Counter(reject.reason for reject in rejects)
    rows_counted = f"{len(rows)} rows read: {len(clips)} used, {len(rejects) - 1} rejected"
    assert f"{len(clips)} accepted; {rows_counted}; 1 files that no row names" in checked
    assert [(reason, count) for reason, count in reasons.items() if f"{count}  {reason}" not in checked] == []
    assert reasons["outside-folder"] == 3
    assert reasons["missing-file"] == 2
    assert reasons["no-annotation"] == 1
    assert "secret" not in " ".join(clip.path for clip in clips)
    # Each clip gives a sample of each task, or a reason why not.
    set_aside = read_rows(project / "data/samples/rejects.jsonl", Reject)
    for task in ("dark_event_infer", "mix_vid_qa", "mcqa", "caption"):
        made = {
            s.clip_id for split in SPLITS for s in read_rows(project / f"data/samples/{split}/{task}.jsonl", Sample)
        }
        assert made | {reject.item for reject in set_aside} >= {clip.clip_id for clip in clips}
    page = call("-c", "from flows.cli.main import main; main()", "data", "browse")
    assert "opens offline" in page
    shown = (project / "data.html").read_text(encoding="utf-8")
    assert "it&#39;s; $(quoted).mp4" in shown
    assert "http://" not in shown.replace("http://example.org", "").replace("http://www.w3.org", "")
    assert "<img" in shown
