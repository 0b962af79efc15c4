"""``vidbridge data check``: what ingest would say of a folder, without a stage, a run or a file written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REAL = Path(__file__).parent / "data" / "clips"


def test_a_folder_is_checked_and_everything_in_it_accounted_for(tmp_path: Path) -> None:
    project, videos = tmp_path / "project", tmp_path / "videos"
    project.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(REAL, videos)
    (videos / "broken.mp4").write_text("no video")
    with (videos / "annotations.jsonl").open("a") as rows:
        rows.write(json.dumps({"video": "broken.mp4"}) + "\n" + json.dumps({"video": "gone [red].mp4"}) + "\n")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "data", "check", str(videos)],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VIDBRIDGE_PROJECT": str(project), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 accepted, 2 set aside, of 3" in done.stdout
    assert "not for decord  none: decord is right on all of them" in done.stdout
    assert "1 dark_event_infer, 0 mix_vid_qa, 2 mcqa, 1 caption, 0 structured_caption" in done.stdout
    assert "broken: broken.mp4: no known video format" in done.stdout
    # What a file is called is text, never markup.
    assert "video: 'gone [red].mp4' does not exist in the folder" in done.stdout
    after = sorted(path for path in tmp_path.rglob("*") if path.is_file() and ".vidbridge" not in path.parts)
    assert after == before


def test_a_folder_that_cannot_be_used_is_one_message_and_status_2(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, project)
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "data", "check", str(tmp_path / "nowhere")],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: folder: ")
    assert "is no folder; name one with videos and annotations.jsonl" in done.stderr
