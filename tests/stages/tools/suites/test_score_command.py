"""``vidbridge score`` as a person types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.suites.annotations import lines, predicted, video_mme


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this checkout's parameters, in which nothing was run."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_the_table_the_file_and_the_messages(project: Path, tmp_path: Path) -> None:
    def vidbridge(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli.main", "score", *map(str, arguments)]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)

    rows = [video_mme(question_id=f"[b]{i}", task_type="[red]OCR") for i in range(3)]
    annotations = lines(tmp_path / "videomme.jsonl", rows)
    predictions = predicted(tmp_path, {"[b]0": "B", "[b]1": ""})
    asked = ("--annotations", annotations, "--predictions", predictions)
    shown = vidbridge("--benchmark", "video-mme", *asked, "--out", tmp_path / "scores.json")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "PARTIAL",
        "2 of 3 questions answered",
        "strict",
        "VLMEvalKit",
        "(constant)",
        "task: [red]OCR",
        "[b]2",
        "50.0",
    ):
        assert words in shown.stdout, words
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["missing"] == ["[b]2"]
    assert written["scores"]["strict"]["overall"]["accuracy"]["mean"] == 50
    wrong = vidbridge("--benchmark", "mvbench", *asked)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "pass --benchmark video-mme" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert vidbridge("--benchmark", "videomme", *asked).returncode == 2
    same = vidbridge("--benchmark", "video-mme", *asked, "--out", predictions)
    assert same.returncode == 2
    assert predictions.read_text().startswith('{"id"'), "what was given is never overwritten"


def test_annotations_may_lie_on_the_hub(project: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = f"hf://datasets/someone/Video-MME@{commit}"
    # The cache of an earlier download by the hub's own client; without a network only that is
    # found.
    snapshot = tmp_path / "hub/datasets--someone--Video-MME/snapshots" / commit
    snapshot.mkdir(parents=True)
    lines(snapshot / "videomme.jsonl", [video_mme(question_id="a")])
    predictions = predicted(tmp_path, {"a": "B"})
    offline = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    def score(at: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "flows.cli.main",
            "score",
            "--benchmark",
            "video-mme",
            "--annotations",
            at,
            "--no-baselines",
        ]
        command += ["--predictions", str(predictions)]
        return subprocess.run(
            command, cwd=project, env=offline, capture_output=True, text=True, timeout=120, check=False
        )

    there = score(place)
    assert there.returncode == 0, there.stderr
    assert "1 of 1 questions answered" in there.stdout
    for wrong, says in (
        (place.replace("someone", "nobody"), "the hub does not provide it"),
        (place[:-1], "names no dataset of the hub at a commit"),
    ):
        refused = score(wrong)
        assert refused.returncode == 1
        assert says in refused.stderr
        assert "Traceback" not in refused.stderr
