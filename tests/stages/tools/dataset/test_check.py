"""``vidbridge data check``: a preview of ingest on a folder, without a stage, a run or an output
file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

from stages.lib.judging.rule import RuleJudge
from stages.lib.video.encoder import encode
from stages.params import load_params
from stages.tools.dataset.check import check
from tests.support.checkout import ROOT
from tests.support.siblings import CASES

REAL = ROOT / "tests/data/clips"


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
        [sys.executable, "-c", "from flows.cli.main import main; main()", "data", "check", str(videos)],
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
    # File names are text, never markup.
    assert "video: 'gone [red].mp4' does not exist in the folder" in done.stdout
    after = sorted(path for path in tmp_path.rglob("*") if path.is_file() and ".vidbridge" not in path.parts)
    assert after == before


def test_a_folder_that_cannot_be_used_is_one_message_and_status_2(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, project)
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli.main import main; main()", "data", "check", str(tmp_path / "nowhere")],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: folder: ")
    assert "is not a folder; name one with videos and annotations.jsonl" in done.stderr


def test_chinese_annotations_give_what_their_english_counterpart_would(tmp_path: Path) -> None:
    shutil.copy(CASES / "chinese.jsonl", tmp_path / "annotations.jsonl")
    grey = np.stack([np.full((64, 64, 3), 20 + 4 * frame, np.uint8) for frame in range(40)])
    encode(grey, Fraction(10), tmp_path / "a.mp4", crf=18)
    params = load_params(ROOT / "infra/recipes/vidbridge-r1.yaml")
    found = check(params, str(tmp_path), None, None)
    assert (len(found.clips), found.rejects) == (1, ())
    assert [event.caption for event in found.clips[0].events] == ["一个人走进房间", "他在沙发上坐下"]
    assert (found.samples["dark_event_infer"], found.set_aside["dark_event_infer"]) == (1, ())
    assert found.samples["caption"] == 1

    judge = RuleJudge(full_share=0.8, partial_share=0.4)
    assert judge.entailed("一个人走进房间", "一个人走进房间然后坐下。").score == 1.0
    assert judge.extract_events("一个人走进房间，然后坐下。狗在叫！") == ("一个人走进房间", "坐下", "狗在叫")
